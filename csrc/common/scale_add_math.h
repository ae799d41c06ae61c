// The arithmetic of scale_add, shared by the CPU and CUDA kernels.
#pragma once
#include "common/numeric.h"

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

// One rounding of the sum in the accumulation type, one more where the element type is narrower.
template <typename T>
PYPOSEEXT_HOST_DEVICE void scale_add_element(T x, T y, Accumulate<T> alpha, T* out) {
  store(multiply_add(alpha, load(y), load(x)), out);
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
