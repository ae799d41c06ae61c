// Loops over a small constant number of values side by side, for the CPU kernels.
#pragma once
#include "common/numeric.h"

// GCC unrolls such a loop whole before it looks for vectors, and then finds none: forbidding that keeps the lanes in
// vector registers.
#if defined(__GNUC__) && !defined(__clang__)
#define PYPOSEEXT_LANES(index, count) _Pragma("GCC unroll 1") for (int64_t index = 0; index < (count); ++index)
#else
#define PYPOSEEXT_LANES(index, count) for (int64_t index = 0; index < (count); ++index)
#endif

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

// `Count` neighbouring elements, a multiple of 8, in the type that sums are kept in.
template <int64_t Count, typename T>
inline void load_lanes(const T* from, Accumulate<T>* to) {
  PYPOSEEXT_LANES(i, Count) to[i] = load(from[i]);
}

#if defined(__F16C__)
template <int64_t Count>
inline void load_lanes(const Half* from, float* to) {  // the one conversion that the compiler does not vectorise
  for (int64_t i = 0; i < Count; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
}
#endif

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
