// Bicubic resizing (a = -0.75, half-pixel centres, edge replicated: OpenCV's and PyTorch's rule), shared by both backends.
//
// All targets whose four taps begin at the same pixel, along both axes, read the same 4 x 4 pixels: a cell. Of the four weights
// along an axis the outer two are 0 to -n together, and all four sum to 1. So four pixels give no more than the larger inner
// one, plus n times what that lies above the smaller outer one; and the same once more for the rows that result. A cell whose
// bound stays below a value that was found cannot hold the maximum.
#pragma once
#include "common/numeric.h"
#if !defined(__CUDACC__)
#include "common/vector.h"
#endif

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

constexpr int kCubicTaps = 4;
constexpr double kNegativeWeight = 0.1875;  // n: the kernel's largest, halfway between two pixels

template <typename A> struct CubicTaps {
  int64_t cell;  // one more than the pixel left of the position: from 0 to `size`; the taps are pixels cell - 2 to cell + 1
  A weight[kCubicTaps];
};

// The source pixels of target pixel `target` when `size` pixels are resized to `target_size`.
template <typename A>
PYPOSEEXT_HOST_DEVICE CubicTaps<A> cubic_taps(int64_t target, int64_t size, int64_t target_size) {
  const A a = A(-0.75), position = (A(target) + A(0.5)) * (A(size) / A(target_size)) - A(0.5), base = floor(position), t = position - base;
  CubicTaps<A> taps;
  taps.cell = int64_t(base) + 1;
  for (int i = 0; i < kCubicTaps; ++i) {
    const A d = i < 2 ? t + A(1 - i) : A(i - 1) - t;  // distance to the tap: 1 + t, t, 1 - t, 2 - t
    taps.weight[i] = i == 1 || i == 2 ? ((a + A(2)) * d - (a + A(3))) * d * d + A(1) : ((a * d - A(5) * a) * d + A(8) * a) * d - A(4) * a;
  }
  return taps;
}

// The pixel that tap `i` of a cell reads.
PYPOSEEXT_HOST_DEVICE int64_t tap_pixel(int64_t cell, int64_t i, int64_t size) {
  const int64_t pixel = cell - 2 + i;
  return pixel < 0 ? 0 : pixel >= size ? size - 1 : pixel;
}

// The first target whose cell is `cell` or a later one, `target_size` where there is none: where each cell's targets begin.
template <typename A>
PYPOSEEXT_HOST_DEVICE int64_t first_target(int64_t cell, int64_t size, int64_t target_size) {
  int64_t target = int64_t((A(cell) - A(0.5)) * (A(target_size) / A(size)) - A(0.5)) - 1;  // one or two too early
  target = target < 0 ? 0 : target < target_size ? target : target_size;
  while (target < target_size && cubic_taps<A>(target, size, target_size).cell < cell) ++target;
  return target;
}

PYPOSEEXT_HOST_DEVICE float larger(float a, float b) { return a > b ? a : b; }  // b where a is NaN, as for vectors
PYPOSEEXT_HOST_DEVICE double larger(double a, double b) { return a > b ? a : b; }
PYPOSEEXT_HOST_DEVICE float smaller(float a, float b) { return a < b ? a : b; }
PYPOSEEXT_HOST_DEVICE double smaller(double a, double b) { return a < b ? a : b; }

// What four values can give at most and at least along an axis: numbers, or vectors of numbers.
template <typename A, typename V>
PYPOSEEXT_HOST_DEVICE V cubic_highest(V outer_a, V inner_a, V inner_b, V outer_b) {
  const V inner = larger(inner_a, inner_b);
  return inner + A(kNegativeWeight) * larger(inner - smaller(outer_a, outer_b), V{});
}
template <typename A, typename V>
PYPOSEEXT_HOST_DEVICE V cubic_lowest(V outer_a, V inner_a, V inner_b, V outer_b) {
  const V inner = smaller(inner_a, inner_b);
  return inner - A(kNegativeWeight) * larger(larger(outer_a, outer_b) - inner, V{});
}

// The bound of a cell from the lowest that its outer rows and the highest that its inner rows can give, rounding included.
template <typename A, typename V>
PYPOSEEXT_HOST_DEVICE V cell_bound(V outer_a, V inner_a, V inner_b, V outer_b) {
  const A rounding = A(64) * (sizeof(A) == sizeof(double) ? A(2.220446049250313e-16) : A(1.1920928955078125e-7));
  const V bound = cubic_highest<A>(outer_a, inner_a, inner_b, outer_b), low = smaller(outer_a, outer_b);
  return bound + rounding * (larger(bound, -bound) + larger(low, -low));
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
