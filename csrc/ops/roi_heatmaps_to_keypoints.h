#pragma once
#include "common/cpu_level.h"
#include "common/numeric.h"

namespace pyposeext {

constexpr double kLargestBoxSide = 1 << 14;  // pixels; a box beyond it, or not finite, decodes to zeros

struct RoiHeatmapsArguments {
  DType dtype;
  int64_t rois, joints, height, width;
  int64_t stride[4];     // of N, K, h, w in elements
  const void* heatmaps;  // [N, K, h, w]
  const void* boxes;     // [N, 4], float or double
  void* keypoints;       // [N, K, 2], as boxes
  void* scores;          // [N, K], as boxes
  bool softmax;          // the score is the maximum's share of the softmax, not the maximum itself
};

inline namespace PYPOSEEXT_LEVEL {

// A box side as it is resized: at least one pixel, in whole pixels. 0 where the box cannot be decoded.
template <typename A>
PYPOSEEXT_HOST_DEVICE int64_t target_size(A side) {
  if (!(side <= A(kLargestBoxSide))) return 0;
  return side > A(1) ? int64_t(ceil(side)) : 1;
}

// A box and the size its maps are resized to.
template <typename A> struct TargetBox {
  A x, y, width, height;
  int64_t rows, columns;
  bool decodes;
};

template <typename A>
PYPOSEEXT_HOST_DEVICE TargetBox<A> target_box(const A* box) {
  const A width = box[2] - box[0], height = box[3] - box[1];
  TargetBox<A> target{box[0], box[1], width > A(1) ? width : A(1), height > A(1) ? height : A(1), target_size(height), target_size(width), false};
  target.decodes = target.rows > 0 && target.columns > 0 && is_finite(box[0]) && is_finite(box[1]) && is_finite(box[2]) && is_finite(box[3]);
  return target;
}

// The best value of a resized map so far. Of equal ones the first in row-major order counts, in whatever order they are met.
template <typename A> struct ResizedPeak {
  A value = -A(INFINITY);
  int64_t row = 0, column = 0;

  PYPOSEEXT_HOST_DEVICE void keep_better(const ResizedPeak& other) {
    const bool earlier = other.row < row || (other.row == row && other.column < column);
    if (other.value > value || (other.value == value && earlier)) *this = other;
  }
};

template <typename A>
PYPOSEEXT_HOST_DEVICE void write_undecoded(const RoiHeatmapsArguments& a, int64_t map) {
  A* keypoint = static_cast<A*>(a.keypoints) + 2 * map;
  keypoint[0] = keypoint[1] = static_cast<A*>(a.scores)[map] = A(0);
}

// `maximum` of the map before it is resized, and `sum` of e^(value - maximum) over it, count only for the softmax.
template <typename A>
PYPOSEEXT_HOST_DEVICE void write_keypoint(const RoiHeatmapsArguments& a, int64_t map, const TargetBox<A>& box, const ResizedPeak<A>& peak, A maximum,
                                          A sum) {
  A* keypoint = static_cast<A*>(a.keypoints) + 2 * map;
  keypoint[0] = (A(peak.column) + A(0.5)) * (box.width / A(box.columns)) + box.x;
  keypoint[1] = (A(peak.row) + A(0.5)) * (box.height / A(box.rows)) + box.y;
  A score = peak.value;
  if (a.softmax) score = is_finite(peak.value) && is_finite(maximum) ? std::exp(peak.value - maximum) / sum : A(0);
  static_cast<A*>(a.scores)[map] = score;
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext

PYPOSEEXT_KERNEL(roi_heatmaps_to_keypoints, RoiHeatmapsArguments)
