// The geometry of deform_conv2d, shared by the CPU and CUDA kernels and by its forward and backward.
#pragma once
#include "common/numeric.h"

namespace pyposeext {

struct DeformMaps {
  void* data;         // null where there are none
  int64_t stride[4];  // in elements
};

struct DeformConv2dArguments {
  DType dtype;  // of all tensors but offset and its gradient, which are float, or double where this is float64
  int64_t batch, channels, height, width, outputs, out_height, out_width;
  int64_t kernel_height, kernel_width, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
  int64_t groups, offset_groups;
  DeformMaps input;    // [N, C, H, W]
  DeformMaps offset;   // [N, 2 * offset groups * taps, OH, OW]: dy, dx of each tap
  DeformMaps mask;     // [N, offset groups * taps, OH, OW], or none: 1
  DeformMaps weight;   // [O, C / groups, kernel height, kernel width]
  DeformMaps bias;     // [O], or none: 0
  DeformMaps out;      // [N, O, OH, OW]: the result, or its gradient in the backward
  DeformMaps input_gradient, offset_gradient, mask_gradient, weight_gradient, bias_gradient;  // none: not wanted
  void* scratch;       // CUDA: what deform_conv2d_scratch says
};

inline namespace PYPOSEEXT_LEVEL {

PYPOSEEXT_HOST_DEVICE int64_t deform_taps(const DeformConv2dArguments& a) { return a.kernel_height * a.kernel_width; }

template <typename A> struct DeformAxis {
  int32_t low;  // the sample is (1 - fraction) * pixel[low] + fraction * pixel[low + 1]; pixels outside the map are 0
  A fraction;
  bool inside;  // otherwise the sample is 0 and nothing is read
};

// Without branches: the CPU kernel runs it on vectors. NaN and infinity are not inside.
template <typename A>
PYPOSEEXT_HOST_DEVICE DeformAxis<A> deform_axis(A position, A size) {
  const bool inside = position >= A(-1) && position < size;
  const A safe = inside ? position : A(0);
  const int32_t cut = int32_t(safe), low = cut - int32_t(safe < A(cut));
  return {low, safe - A(low), inside};
}

// Corner k of a sample is pixel (low_y + k / 2, low_x + k % 2): its number y * W + x, or -1 where it is outside the map.
template <typename A>
PYPOSEEXT_HOST_DEVICE int32_t deform_corner(const DeformAxis<A>& y, const DeformAxis<A>& x, int k, int32_t height, int32_t width) {
  const int32_t row = y.low + k / 2, column = x.low + k % 2;
  const bool exists = y.inside & x.inside & (row >= 0) & (row < height) & (column >= 0) & (column < width);
  return exists ? row * width + column : -1;
}

template <typename A>
PYPOSEEXT_HOST_DEVICE A deform_weight(A fraction_y, A fraction_x, int k) {
  return (k / 2 ? fraction_y : A(1) - fraction_y) * (k % 2 ? fraction_x : A(1) - fraction_x);
}

// The slopes of the sample along y and x, from its corners (0 where they are outside) or from sums of products with them.
template <typename A>
PYPOSEEXT_HOST_DEVICE A deform_slope_y(const A* corner, A fraction_x) {
  return (A(1) - fraction_x) * (corner[2] - corner[0]) + fraction_x * (corner[3] - corner[1]);
}
template <typename A>
PYPOSEEXT_HOST_DEVICE A deform_slope_x(const A* corner, A fraction_y) {
  return (A(1) - fraction_y) * (corner[1] - corner[0]) + fraction_y * (corner[3] - corner[2]);
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
