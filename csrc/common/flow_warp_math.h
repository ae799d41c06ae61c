// The geometry of flow_warp, shared by the CPU and CUDA kernels and by its forward and both backwards.
//
// Output pixel p = (y, x) samples the map at p + flow(p), between the corners (low, low + 1) of one cell of each axis.
// Cells are numbered (low_y + 1) * (W + 1) + low_x + 1, low from -1, so that all pixels which sample one input pixel are
// found in two pairs of neighbouring cells. The gradient of the input is gathered through these lists: no two threads
// write the same element, and the order of every sum is fixed.
#pragma once
#include "common/numeric.h"

namespace pyposeext {

struct StridedMaps {
  void* data;         // [B, C, H, W]
  int64_t stride[4];  // in elements
};

struct FlowWarpArguments {
  DType dtype;  // of input, gradient and output; flow is float, or double where this is float64
  int64_t batch, channels, height, width;
  bool border;
  StridedMaps input;     // read by the forward and by the gradient of the flow
  StridedMaps flow;      // [B, 2, H, W]: dx, dy in pixels
  StridedMaps gradient;  // of the output, read by both backwards
  StridedMaps out;       // what the kernel writes: warped maps, or the gradient of the input or (as `flow`) of the flow
  int64_t* cell;               // CUDA, [B, H * W]: the cell that each output pixel samples
  const int64_t* sorted_cell;  // CUDA, [B, H * W]: the same, rising in each image
  const int64_t* order;        // CUDA, [B, H * W]: the output pixel each entry of sorted_cell belongs to
};

inline namespace PYPOSEEXT_LEVEL {

template <typename A> struct FlowAxis {
  int64_t low;  // the sample is (1 - fraction) * pixel[low] + fraction * pixel[low + 1]; pixels outside the map are 0
  A fraction;
  A slope;  // derivative of the sampled position by the flow: 0 where it is clamped
  bool inside;
};

template <typename A> struct FlowSample {
  FlowAxis<A> y, x;
  bool inside;  // otherwise the output is 0 and nothing is read
};

template <typename A>
PYPOSEEXT_HOST_DEVICE FlowAxis<A> flow_axis(A position, int64_t size, bool border) {
  A slope = A(1);
  if (!is_finite(position)) return {0, A(0), A(0), false};
  if (border && position <= A(0)) {
    position = slope = A(0);
  } else if (border && position >= A(size - 1)) {
    position = A(size - 1);
    slope = A(0);
  }
  if (!(position >= A(-1) && position < A(size))) return {0, A(0), A(0), false};
  const A low = std::floor(position);
  return {int64_t(low), position - low, slope, true};
}

template <typename A>
PYPOSEEXT_HOST_DEVICE FlowSample<A> flow_sample(const FlowWarpArguments& a, int64_t b, int64_t y, int64_t x) {
  const A* flow = static_cast<const A*>(a.flow.data) + b * a.flow.stride[0] + y * a.flow.stride[2] + x * a.flow.stride[3];
  const FlowAxis<A> row = flow_axis(A(y) + flow[a.flow.stride[1]], a.height, a.border);
  const FlowAxis<A> column = flow_axis(A(x) + flow[0], a.width, a.border);
  return {row, column, row.inside && column.inside};
}

// Corner k of a sample is pixel (low_y + k / 2, low_x + k % 2). True where it lies in the map; then also its offset in a
// plane of these maps.
template <typename A>
PYPOSEEXT_HOST_DEVICE bool flow_corner(const FlowWarpArguments& a, const FlowSample<A>& sample, int k, const StridedMaps& maps, int64_t* offset) {
  const int64_t y = sample.y.low + k / 2, x = sample.x.low + k % 2;
  *offset = y * maps.stride[2] + x * maps.stride[3];
  return sample.inside && y >= 0 && y < a.height && x >= 0 && x < a.width;
}

// A corner of weight 0 is not read, so that neither NaN nor infinity spreads from it.
template <typename A>
PYPOSEEXT_HOST_DEVICE A flow_weight(A fraction_y, A fraction_x, int k) {
  return (k / 2 ? fraction_y : A(1) - fraction_y) * (k % 2 ? fraction_x : A(1) - fraction_x);
}

// The gradient (dx, dy) of the flow at one pixel, from product[k] = the sum over channels of the output's gradient times
// corner k, 0 for a corner outside the map.
template <typename A>
PYPOSEEXT_HOST_DEVICE void flow_gradient(const FlowSample<A>& sample, const A* product, A* dx, A* dy) {
  *dx = *dy = A(0);
  for (int k = 0; k < 4; ++k) {
    const A along_x = (k % 2 ? sample.x.slope : -sample.x.slope) * (k / 2 ? sample.y.fraction : A(1) - sample.y.fraction);
    const A along_y = (k / 2 ? sample.y.slope : -sample.y.slope) * (k % 2 ? sample.x.fraction : A(1) - sample.x.fraction);
    if (along_x != A(0)) *dx += along_x * product[k];
    if (along_y != A(0)) *dy += along_y * product[k];
  }
}

PYPOSEEXT_HOST_DEVICE int64_t flow_cell_count(const FlowWarpArguments& a) { return (a.height + 1) * (a.width + 1); }

// The cell that a sample lies in, or flow_cell_count where it lies in none.
template <typename A>
PYPOSEEXT_HOST_DEVICE int64_t flow_cell(const FlowWarpArguments& a, const FlowSample<A>& sample) {
  return sample.inside ? (sample.y.low + 1) * (a.width + 1) + sample.x.low + 1 : flow_cell_count(a);
}

// The first of two neighbouring cells whose samples have input pixel (y, x) as a corner: above it (side 0) as corners 3
// and 2, below it (side 1) as corners 1 and 0.
PYPOSEEXT_HOST_DEVICE int64_t flow_first_cell(const FlowWarpArguments& a, int64_t y, int64_t x, int side) {
  return (y + side) * (a.width + 1) + x;
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
