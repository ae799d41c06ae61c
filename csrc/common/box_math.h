// Overlap of boxes, shared by the CPU and CUDA kernels. Products are never fused with sums here: rounding decides ties.
#pragma once
#include "common/numeric.h"

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

PYPOSEEXT_HOST_DEVICE float exact_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

PYPOSEEXT_HOST_DEVICE double exact_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

template <typename A> PYPOSEEXT_HOST_DEVICE A box_area(A x1, A y1, A x2, A y2) { return exact_product(x2 - x1, y2 - y1); }

// Intersection over union of two boxes whose areas are known; NaN where both are empty, which is above no threshold.
template <typename A>
PYPOSEEXT_HOST_DEVICE A box_iou(A ax1, A ay1, A ax2, A ay2, A a_area, A bx1, A by1, A bx2, A by2, A b_area) {
  const A left = ax1 > bx1 ? ax1 : bx1, top = ay1 > by1 ? ay1 : by1, right = ax2 < bx2 ? ax2 : bx2, bottom = ay2 < by2 ? ay2 : by2;
  const A width = right - left > A(0) ? right - left : A(0), height = bottom - top > A(0) ? bottom - top : A(0);
  const A overlap = exact_product(width, height);
  return overlap / (a_area + b_area - overlap);
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
