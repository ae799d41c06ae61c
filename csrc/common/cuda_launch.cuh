// What every CUDA launcher does: a grid that covers n elements, and the check after the launch.
#pragma once
#include <cuda_runtime.h>

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

// Asks for no synchronisation: it reports a refused launch, not a fault inside the kernel.
inline void check_launch(const char* name) {
  const cudaError_t error = cudaGetLastError();
  PYPOSEEXT_CHECK(error == cudaSuccess, name, ": CUDA launch failed: ", cudaGetErrorString(error));
}

}  // namespace pyposeext::cuda

#define PYPOSEEXT_GRID_STRIDE(index, n)                                                                          \
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < (n); index += int64_t(blockDim.x) * gridDim.x)
