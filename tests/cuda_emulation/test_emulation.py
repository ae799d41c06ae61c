"""The emulation itself: launches are translated, warps and barriers work, and faults show."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cuda_emulation.translate import translate

HERE = Path(__file__).parent
TOOLKITS = [os.environ.get("CUDA_PATH", "/usr/local/cuda"), Path(shutil.which("nvcc") or "/").resolve().parent.parent]
HEADERS = [Path(root) / "include" for root in TOOLKITS if (Path(root) / "include/vector_types.h").exists()]
PROGRAM = """
#include <cstdio>
__global__ void reverse(int* values) {
  __shared__ int copy[64];
  copy[threadIdx.x] = values[threadIdx.x];
  BARRIER;
  values[threadIdx.x] = copy[63 - threadIdx.x];
}
__global__ void sums(const int* values, int* out) {
  int sum = values[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  const unsigned odd = __ballot_sync(0xffffffffu, values[threadIdx.x] % 2);
  if (threadIdx.x % 32 == 0) out[blockIdx.x * 4 + threadIdx.x / 32] = sum + (__popc(odd) << 16);
}
template <typename T> __global__ void dynamic(T* out) {
  extern __shared__ int words[];
  words[threadIdx.x] = int(threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) *out = words[blockDim.x - 1];
}
int main() {
  int values[64], out[8], last;
  for (int i = 0; i < 64; ++i) values[i] = i;
  reverse<<<1, 64>>>(values);
  sums<<<dim3(2), 64>>>(values, out);
  dynamic<int><<<1, 96, 96 * sizeof(int), nullptr>>>(&last);
  std::printf("%d %d %d %d %d %d\\n", values[0], values[63], out[0] & 0xffff, out[1] & 0xffff, out[5] >> 16, last);
}
"""


def run(tmp_path: Path, barrier: str) -> subprocess.CompletedProcess[str]:
    """Translates, compiles and runs PROGRAM."""
    source = tmp_path / "program.cpp"
    source.write_text(translate(PROGRAM.replace("BARRIER", barrier)))
    binary = tmp_path / "program"
    command = ["g++", "-std=c++20", "-O1", f"-I{HERE}", f"-I{HEADERS[0]}", "-include", str(HERE / "cuda_runtime.h")]
    subprocess.run([*command, str(source), str(HERE / "emulator.cpp"), "-o", str(binary)], check=True)
    return subprocess.run([str(binary)], capture_output=True, text=True, check=False)


def test_launches_are_translated() -> None:
    text = "if (x)\n  kernel<decltype(zero), 3>\n      <<<blocks(n, (1)), 64, 0, stream>>>(a, f(b));"
    want = "emulation::launch_kernel([&] { kernel<decltype(zero), 3>(a, f(b)); }, blocks(n, (1)), 64, 0, stream)"
    assert translate(text) == f"if (x)\n  {want};"
    assert "static_cast<unsigned char*>(emulation::dynamic_shared_memory())" in translate(
        "extern __shared__ __align__(16) unsigned char memory[];"
    )


@pytest.mark.skipif(not HEADERS, reason="needs the headers of the CUDA toolkit")
def test_threads_warps_and_barriers(tmp_path: Path) -> None:
    done = run(tmp_path, "__syncthreads()")
    assert done.stdout.split() == ["63", "0", str(sum(range(32, 64))), str(sum(range(32))), "16", "95"]


@pytest.mark.skipif(not HEADERS, reason="needs the headers of the CUDA toolkit")
def test_a_missing_barrier_shows(tmp_path: Path) -> None:
    assert run(tmp_path, "").stdout.split()[:2] != ["63", "0"]


@pytest.mark.skipif(not HEADERS, reason="needs the headers of the CUDA toolkit")
def test_a_barrier_that_part_of_a_warp_never_reaches_ends_the_process(tmp_path: Path) -> None:
    done = run(tmp_path, "if (threadIdx.x % 32 < 7) __syncwarp(); else __syncthreads()")
    assert done.returncode != 0
    assert "wait for others that never come" in done.stderr
