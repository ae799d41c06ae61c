// The geometry of RoIAlign, shared by the CPU and CUDA kernels and by the 2D, multilevel and tube ops.
//
// A bin's value is the mean of its samples, each bilinear. Validity and clamping act per axis, so the mean factorises:
//   out[p, q] = sum_y Wy[p, y] * sum_x Wx[q, x] * input[y, x],
// where W[p, i] (axis_weight) is the mean weight that the samples of bin p give to pixel i of that axis. Forward and
// backward both read these weights, so that one is exactly the transpose of the other.
#pragma once
#include "common/numeric.h"

namespace pyposeext {

constexpr int kMaximumRoiLevels = 8;

struct RoiLevel {
  void* data;            // [B, C, T, H, W]: read in the forward, written in the backward
  int64_t height, width;
  int64_t stride[5];     // of B, C, T, H, W in elements
  double scale;          // feature pixels per image pixel
};

// One call of any of the three ops. Coordinates are float, or double where the dtype is float64.
struct RoiAlignArguments {
  DType dtype;
  int64_t batch, channels, frames, rois, pooled_height, pooled_width;
  int64_t sampling_ratio;      // samples per bin and axis, or <= 0: one per pixel, rounded up
  bool aligned;
  int64_t levels;
  RoiLevel level[kMaximumRoiLevels];
  double canonical_size, canonical_level, finest_level, level_epsilon;  // the level rule, read only where levels > 1
  bool epsilon_inside_log, legacy_plus_one;
  const void* boxes;           // x1, y1, x2, y2 of roi k and frame t begin at boxes[k * box_stride + box_offset + 4 * t]
  int64_t box_stride, box_offset;
  const int64_t* batch_index;  // [rois], or null: then it is boxes[k * box_stride]
  void* pooled;                // [rois, C, T, P, Q]: written in the forward, read in the backward
  int64_t pooled_stride[5];    // of roi, C, T, P, Q in elements
  void* scratch;               // CUDA backward: roi_pooling_scratch_words int64, 16 bytes aligned
};

inline namespace PYPOSEEXT_LEVEL {

PYPOSEEXT_HOST_DEVICE float largest_grid(float) { return 4194304.0f; }              // 2^22
PYPOSEEXT_HOST_DEVICE double largest_grid(double) { return 1125899906842624.0; }     // 2^50

template <typename A> struct RoiAxis {
  A start, bin, grid;  // bin p covers [start + p * bin, start + (p + 1) * bin) and holds `grid` samples, a whole number
};

template <typename A> struct AxisSample {
  int64_t low, high;
  A fraction;  // the sample is (1 - fraction) * pixel[low] + fraction * pixel[high]
  bool inside;
};

template <typename A>
PYPOSEEXT_HOST_DEVICE AxisSample<A> sample_axis(A position, int64_t size) {
  // Written so that NaN is outside: nothing is read for it.
  if (!(position >= A(-1) && position <= A(size)) || size == 0) return {0, 0, A(0), false};
  if (position < A(0)) position = A(0);
  const int64_t low = int64_t(position);
  if (low >= size - 1) return {size - 1, size - 1, A(0), true};
  return {low, low + 1, position - A(low), true};
}

template <typename A>
PYPOSEEXT_HOST_DEVICE RoiAxis<A> roi_axis(A from, A to, A scale, int64_t bins, int64_t sampling_ratio, bool aligned) {
  const A offset = aligned ? A(0.5) : A(0);
  const A start = from * scale - offset;
  A length = to * scale - offset - start;
  if (!is_finite(start) || !is_finite(length)) return {A(0), A(0), A(0)};  // no samples: the output is 0
  if (!aligned && length < A(1)) length = A(1);
  const A grid = sampling_ratio > 0 ? A(sampling_ratio) : ceil(length / A(bins));
  // Of so many samples a bin, hardly any can lie on a map: their mean is 0, and beyond it A cannot count by ones.
  if (!(grid > A(0)) || grid > largest_grid(A(0))) return {start, length / A(bins), A(0)};
  return {start, length / A(bins), grid};
}

// Position of sample i of bin p.
template <typename A>
PYPOSEEXT_HOST_DEVICE A sample_position(const RoiAxis<A>& axis, int64_t p, A i) {
  return axis.start + A(p) * axis.bin + (i + A(0.5)) * axis.bin / axis.grid;
}

// The samples i in [*first, *last) of bin p that can lie in [from, to]. Without this bound the adaptive grid of a box far
// larger than the map would run for ever.
template <typename A>
PYPOSEEXT_HOST_DEVICE void sample_range(const RoiAxis<A>& axis, int64_t p, A from, A to, A* first, A* last) {
  *first = A(0);
  *last = axis.grid;
  const A step = axis.bin / axis.grid;
  if (!(step > A(0))) return;
  const A base = axis.start + A(p) * axis.bin;
  const A low = floor((from - base) / step) - A(2), high = ceil((to - base) / step) + A(2);
  if (low > *first) *first = low;
  if (high < *last) *last = high;
}

// W[p, pixel]: the mean weight of bin p's samples on one pixel.
template <typename A>
PYPOSEEXT_HOST_DEVICE A axis_weight(const RoiAxis<A>& axis, int64_t p, int64_t pixel, int64_t size) {
  A first, last, sum = A(0);
  sample_range(axis, p, A(pixel - 1), A(pixel + 1), &first, &last);
  for (A i = first; i < last; i += A(1)) {
    const AxisSample<A> sample = sample_axis(sample_position(axis, p, i), size);
    if (!sample.inside) continue;
    if (sample.low == pixel) sum += A(1) - sample.fraction;
    if (sample.high == pixel && sample.high != sample.low) sum += sample.fraction;
  }
  return axis.grid > A(0) ? sum / axis.grid : A(0);
}

// The pixels [*first, *last) of an axis on which bins [p, p + bins) can have weight.
template <typename A>
PYPOSEEXT_HOST_DEVICE void pixel_range(const RoiAxis<A>& axis, int64_t p, int64_t bins, int64_t size, int64_t* first, int64_t* last) {
  *first = *last = 0;
  if (!(axis.grid > A(0)) || size == 0) return;
  const A a = axis.start + A(p) * axis.bin, b = axis.start + A(p + bins) * axis.bin;
  const A low = a < b ? a : b, high = a < b ? b : a;
  if (!(low <= A(size) && high >= A(-1))) return;
  *first = low <= A(1) ? 0 : low >= A(size) ? size - 1 : int64_t(low) - 1;
  *last = high >= A(size - 2) ? size : high < A(0) ? 1 : int64_t(high) + 2;
}

// The image of roi k, or -1 where its index is no image: such a roi pools to 0 and gives no gradient.
template <typename A>
PYPOSEEXT_HOST_DEVICE int64_t roi_image(const RoiAlignArguments& arguments, int64_t k) {
  if (arguments.batch_index != nullptr) {
    const int64_t index = arguments.batch_index[k];
    return index >= 0 && index < arguments.batch ? index : -1;
  }
  const A index = static_cast<const A*>(arguments.boxes)[k * arguments.box_stride];
  return index >= A(0) && index < A(arguments.batch) ? int64_t(index) : -1;
}

template <typename A>
PYPOSEEXT_HOST_DEVICE const A* roi_box(const RoiAlignArguments& arguments, int64_t k, int64_t t) {
  return static_cast<const A*>(arguments.boxes) + k * arguments.box_stride + arguments.box_offset + 4 * t;
}

// The area that decides the level of roi k: the mean over its frames. Detectron's boxes hold their last pixel, which
// makes a side one longer (legacy_plus_one).
template <typename A>
PYPOSEEXT_HOST_DEVICE A level_area(const RoiAlignArguments& arguments, int64_t k) {
  const A extra = arguments.legacy_plus_one ? A(1) : A(0);
  A sum = A(0);
  for (int64_t t = 0; t < arguments.frames; ++t) {
    const A* box = roi_box<A>(arguments, k, t);
    sum += (box[2] - box[0] + extra) * (box[3] - box[1] + extra);
  }
  return sum / A(arguments.frames);
}

// The pyramid level of roi k (Lin et al. 2017, equation 1): floor(canonical_level + log2(sqrt(area) / canonical_size)),
// clamped to the levels there are. Where the guard against rounding goes differs between libraries, so it is an argument.
template <typename A>
PYPOSEEXT_HOST_DEVICE int64_t roi_level(const RoiAlignArguments& arguments, int64_t k) {
  if (arguments.levels == 1) return 0;
  const A size = sqrt(level_area<A>(arguments, k)) / A(arguments.canonical_size), epsilon = A(arguments.level_epsilon);
  const A level = arguments.epsilon_inside_log ? floor(A(arguments.canonical_level) + log2(size + epsilon))
                                               : floor(A(arguments.canonical_level) + log2(size) + epsilon);
  const A index = level - A(arguments.finest_level);
  if (!(index > A(0))) return 0;  // also NaN, from a negative area
  return index < A(arguments.levels - 1) ? int64_t(index) : arguments.levels - 1;
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
