#include "ops/scale_add.h"

#include "common/cuda_launch.cuh"
#include "common/scale_add_math.h"

namespace pyposeext::cuda {
namespace {

// Neighbouring elements that one instruction loads or stores.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / sizeof(T);
  T element[kCount];
};

// The first `packs` packs, and the elements after them one by one.
template <typename T>
__global__ void kernel(const ScaleAddArguments a, int64_t packs) {
  const auto alpha = Accumulate<T>(a.alpha);
  PYPOSEEXT_GRID_STRIDE(i, packs) {
    const Pack<T> x = static_cast<const Pack<T>*>(a.x)[i], y = static_cast<const Pack<T>*>(a.y)[i];
    Pack<T> out;
#pragma unroll
    for (int n = 0; n < Pack<T>::kCount; ++n) scale_add_element(x.element[n], y.element[n], alpha, out.element + n);
    static_cast<Pack<T>*>(a.out)[i] = out;
  }
  const int64_t packed = packs * Pack<T>::kCount;
  PYPOSEEXT_GRID_STRIDE(i, a.count - packed)
    scale_add_element(static_cast<const T*>(a.x)[packed + i], static_cast<const T*>(a.y)[packed + i], alpha, static_cast<T*>(a.out) + packed + i);
}

bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace

void scale_add(const ScaleAddArguments& a, void* stream) {
  dispatch_floating(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t packs = is_aligned(a.x) && is_aligned(a.y) && is_aligned(a.out) ? a.count / Pack<T>::kCount : 0;
    const int64_t items = packs > 0 ? packs : a.count;  // the rest is smaller than a block
    kernel<T><<<blocks_for(items), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, packs);
  });
  check_launch("scale_add");
}

}  // namespace pyposeext::cuda
