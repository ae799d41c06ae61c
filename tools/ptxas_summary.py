"""Registers, shared memory and spills of every CUDA kernel, as the table of docs/cuda_resources.md.

python tools/ptxas_summary.py --architecture 90 --output docs/cuda_resources.md
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNEL = re.compile(r"Compiling entry function '(\w+)' for '\w+'")
USE = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


def compile_report(source: Path, architecture: str) -> str:
    """What ptxas says about one file, with readable names."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
        command += ["-c", str(source), "-o", f"{folder}/object.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{source.name} does not compile:\n{done.stderr}")
    return done.stderr


def readable(mangled: str) -> str:
    """The kernel's name, without namespaces and template arguments, which the table sums up."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    return re.sub(r"[<(].*", "", name.removeprefix("void ").replace("(anonymous namespace)::", "")).split("::")[-1]


def kernels(report: str) -> dict[str, list[tuple[int, int, int, int]]]:
    """Kernel -> (registers, shared bytes, stack bytes, spilled bytes) of each instantiation."""
    found: dict[str, list[tuple[int, int, int, int]]] = defaultdict(list)
    name, stack, spilled = "", 0, 0
    for line in report.splitlines():
        if match := KERNEL.search(line):
            name = readable(match[1])
        elif match := SPILLS.search(line):
            stack, spilled = int(match[1]), int(match[2]) + int(match[3])
        elif (match := USE.search(line)) and name:
            found[name].append((int(match[1]), int(match[2] or 0), stack, spilled))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Registers, shared memory and spills of every CUDA kernel.")
    parser.add_argument("--architecture", default="90")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda source: compile_report(source, options.architecture), sources))
    about = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    version = about.split("release ")[1].split(",")[0]
    lines = [
        "# What the CUDA kernels use",
        "",
        f"As ptxas reports it for sm_{options.architecture}, nvcc {version}; written by "
        "`python tools/ptxas_summary.py --output docs/cuda_resources.md`.",
        "A kernel has one instantiation for each element type, and some for each layout: ranges are over them. Shared",
        "memory is what is fixed when compiling; more is asked for at the launch where a kernel needs it.",
        "",
        "| file | kernel | instantiations | registers | shared bytes | stack bytes | spilled bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    for source, report in zip(sources, reports, strict=True):
        for name, uses in sorted(kernels(report).items()):
            ranges = []
            for values in zip(*uses, strict=True):
                low, high = min(values), max(values)
                ranges.append(str(low) if low == high else f"{low} to {high}")
            lines.append(f"| `{source.name}` | `{name}` | {len(uses)} | " + " | ".join(ranges) + " |")
    temporary = options.output.with_suffix(".part")
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(options.output)


if __name__ == "__main__":
    main()
