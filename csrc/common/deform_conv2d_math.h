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
  // CUDA only: copies that the op makes, and the scratch of the backward.
  const void* packed_input;     // [N, H, W, C]
  const void* packed_gradient;  // [N, OH, OW, O]
  const void* packed_weight;    // forward: [C / groups, taps, O]; backward: [O, taps, C / groups]
  int32_t* cell;                // [N, offset groups, taps, OH * OW]: the cell that each sample lies in
  const int32_t* sorted_cell;   // the same, rising in each row
  const int64_t* order;         // the output pixel that each entry of sorted_cell belongs to
  int32_t* begin;               // [N, offset groups, taps, cells + 1]: the first entry of each cell
  void* weight_sums;            // [splits, groups, taps * C / groups, O / groups], in the type that sums are kept in
  int64_t splits;               // parts of the output pixels that are summed apart
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

// The gradient of the input is gathered on CUDA: no two threads write one element, and the order of every sum is fixed.
// Cells are numbered (low_y + 1) * (W + 1) + low_x + 1, low from -1, so that all samples with one pixel as a corner are found
// in two pairs of neighbouring cells. Samples in no cell get the number after the last.
PYPOSEEXT_HOST_DEVICE int64_t deform_cell_count(const DeformConv2dArguments& a) { return (a.height + 1) * (a.width + 1); }

// The first of the two cells above pixel (y, x) (side 0), where it is corner 3 and 2, or below (side 1), where it is 1 and 0.
PYPOSEEXT_HOST_DEVICE int64_t deform_first_cell(const DeformConv2dArguments& a, int64_t y, int64_t x, int side) {
  return (y + side) * (a.width + 1) + x;
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
