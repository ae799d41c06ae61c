// Bicubic resizing (a = -0.75, half-pixel centres, edge replicated: OpenCV's and PyTorch's rule), shared by both backends.
#pragma once
#include "common/numeric.h"

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

template <typename A> struct CubicTaps {
  int64_t pixel[4];
  A weight[4];
};

// The four source pixels of target pixel `target` when `size` pixels are resized to `target_size`.
template <typename A>
PYPOSEEXT_HOST_DEVICE CubicTaps<A> cubic_taps(int64_t target, int64_t size, int64_t target_size) {
  const A a = A(-0.75), position = (A(target) + A(0.5)) * (A(size) / A(target_size)) - A(0.5), base = floor(position), t = position - base;
  CubicTaps<A> taps;
  for (int i = 0; i < 4; ++i) {
    const int64_t pixel = int64_t(base) - 1 + i;
    taps.pixel[i] = pixel < 0 ? 0 : pixel >= size ? size - 1 : pixel;
    const A d = i < 2 ? t + A(1 - i) : A(i - 1) - t;  // distance to the tap: 1 + t, t, 1 - t, 2 - t
    taps.weight[i] = i == 1 || i == 2 ? ((a + A(2)) * d - (a + A(3))) * d * d + A(1) : ((a * d - A(5) * a) * d + A(8) * a) * d - A(4) * a;
  }
  return taps;
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
