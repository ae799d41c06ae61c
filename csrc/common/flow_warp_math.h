// The geometry of flow_warp and flow_warp_pool, shared by the CPU and CUDA kernels and by the forward and all backwards.
//
// Output pixel p = (y, x) samples the map at p + flow(p), between the corners (low, low + 1) of one cell of each axis.
#pragma once
#include "common/numeric.h"

namespace pyposeext {

struct FlowMaps {  // [B, S, C, H, W]; S is 1 in flow_warp. Strides in elements.
  void* data;
  int64_t batch, step, channel, row, column;
};

struct FlowWarpArguments {
  DType dtype;  // of input, gradient and output; flow, weight and sums are float, or double where this is float64
  int64_t batch, steps, channels, height, width;  // height * width is below 2^31
  bool border;
  FlowMaps input;     // read by the forward and by the gradients of the flow and of the weight
  FlowMaps flow;      // [B, S, 2, H, W]: dx, dy in pixels
  FlowMaps gradient;  // of the output, read by the backwards; of a pooled output with step stride 0
  FlowMaps out;       // what the kernel writes: warped maps, or the gradient of the input or (as `flow`) of the flow
  const void* weight;  // [S, C] of the pooled sum, or null: all 1
  const void* bias;    // [C], or null: all 0
  void* partial;       // CUDA, [parts, S, C]: sums of the weight's gradient
  void* weight_gradient;  // [S, C]
  int32_t* begin;      // CUDA, [B * S, cells + 1]: where the list of each cell starts in `order`
  int32_t* order;      // CUDA, [B * S, H * W]: output pixels by the cell they sample, rising in each cell
  int64_t* cell;               // CUDA, large maps, [B * S, H * W]: the cell that each output pixel samples
  const int64_t* sorted_cell;  // CUDA, large maps: the same, rising in each frame
  const int64_t* sorted_pixel;  // CUDA, large maps: the output pixel each entry of sorted_cell belongs to
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
PYPOSEEXT_HOST_DEVICE FlowSample<A> flow_sample(const FlowWarpArguments& a, int64_t b, int64_t s, int64_t y, int64_t x) {
  const A* flow = static_cast<const A*>(a.flow.data) + b * a.flow.batch + s * a.flow.step + y * a.flow.row + x * a.flow.column;
  const FlowAxis<A> row = flow_axis(A(y) + flow[a.flow.channel], a.height, a.border);
  const FlowAxis<A> column = flow_axis(A(x) + flow[0], a.width, a.border);
  return {row, column, row.inside && column.inside};
}

// Corner k of a sample is pixel (low_y + k / 2, low_x + k % 2). A corner of weight 0, or outside the map, is not read, so that
// neither NaN nor infinity spreads from it.
template <typename A>
PYPOSEEXT_HOST_DEVICE A flow_weight(const FlowSample<A>& sample, int64_t height, int64_t width, int k) {
  const int64_t y = sample.y.low + k / 2, x = sample.x.low + k % 2;
  const A weight = (k / 2 ? sample.y.fraction : A(1) - sample.y.fraction) * (k % 2 ? sample.x.fraction : A(1) - sample.x.fraction);
  return sample.inside && y >= 0 && y < height && x >= 0 && x < width ? weight : A(0);
}

// What the difference of a corner's value moves dx and dy by: the derivatives of its weight.
template <typename A> struct FlowSlopes {
  A along_x, along_y;
};

template <typename A>
PYPOSEEXT_HOST_DEVICE FlowSlopes<A> flow_slopes(A fraction_y, A fraction_x, int k) {
  const A along_x = k / 2 ? fraction_y : A(1) - fraction_y, along_y = k % 2 ? fraction_x : A(1) - fraction_x;
  return {k % 2 ? along_x : -along_x, k / 2 ? along_y : -along_y};
}

// Cells of a frame: number (low_y + 1) * (W + 1) + low_x + 1, low from -1, so that all output pixels which sample one input
// pixel are found in two pairs of neighbouring cells: above it (side 0) as corners 3 and 2, below it (side 1) as 1 and 0.
PYPOSEEXT_HOST_DEVICE int64_t flow_cell_count(const FlowWarpArguments& a) { return (a.height + 1) * (a.width + 1); }

// The cell that a sample lies in, or flow_cell_count where it lies in none.
template <typename A>
PYPOSEEXT_HOST_DEVICE int64_t flow_cell(const FlowWarpArguments& a, const FlowSample<A>& sample) {
  return sample.inside ? (sample.y.low + 1) * (a.width + 1) + sample.x.low + 1 : flow_cell_count(a);
}

PYPOSEEXT_HOST_DEVICE int64_t flow_first_cell(const FlowWarpArguments& a, int64_t y, int64_t x, int side) {
  return (y + side) * (a.width + 1) + x;
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
