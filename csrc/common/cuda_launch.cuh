// What every CUDA launcher does: a grid that covers n elements or fills the device, and the check after the launch.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "common/check.h"
#include "common/numeric.h"

namespace pyposeext::cuda {

constexpr int kThreads = 256;

// Blocks for a grid-stride loop over n elements: kernels loop, so the cap costs nothing and no size overflows it.
inline unsigned blocks_for(int64_t n, int threads = kThreads) {
  const int64_t blocks = (n + threads - 1) / threads;
  return unsigned(blocks < 1 ? 1 : blocks < (1 << 20) ? blocks : (1 << 20));
}

// Multiprocessors of the current device. Asked once per device: launchers read it to choose how finely to cut their work.
inline int multiprocessors() {
  static std::atomic<int> known[64];
  int device = 0, count = 0;
  PYPOSEEXT_CHECK(cudaGetDevice(&device) == cudaSuccess, "no CUDA device is current");
  if (device < 64 && (count = known[device].load(std::memory_order_relaxed)) > 0) return count;
  PYPOSEEXT_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess, "CUDA device ", device, " cannot be asked");
  if (device < 64) known[device].store(count, std::memory_order_relaxed);
  return count;
}

// Asks for no synchronisation: it reports a refused launch, not a fault inside the kernel.
inline void check_launch(const char* name) {
  const cudaError_t error = cudaGetLastError();
  PYPOSEEXT_CHECK(error == cudaSuccess, name, ": CUDA launch failed: ", cudaGetErrorString(error));
}

}  // namespace pyposeext::cuda

#define PYPOSEEXT_GRID_STRIDE(index, n)                                                                          \
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < (n); index += int64_t(blockDim.x) * gridDim.x)
