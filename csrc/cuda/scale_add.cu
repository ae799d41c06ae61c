#include "ops/scale_add.h"

#include "common/cuda_launch.cuh"
#include "common/scale_add_math.h"

namespace pyposeext::cuda {
namespace {

template <typename T>
__global__ void kernel(const ScaleAddArguments a) {
  const auto alpha = Accumulate<T>(a.alpha);
  PYPOSEEXT_GRID_STRIDE(i, a.count)
    scale_add_element(static_cast<const T*>(a.x)[i], static_cast<const T*>(a.y)[i], alpha, static_cast<T*>(a.out) + i);
}

}  // namespace

void scale_add(const ScaleAddArguments& a, void* stream) {
  dispatch_floating(a.dtype, [&](auto zero) {
    kernel<decltype(zero)><<<blocks_for(a.count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
  check_launch("scale_add");
}

}  // namespace pyposeext::cuda
