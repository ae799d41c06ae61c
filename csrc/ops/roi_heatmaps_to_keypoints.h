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
};

inline namespace PYPOSEEXT_LEVEL {

// A box side as it is resized: at least one pixel, in whole pixels. 0 where the box cannot be decoded.
template <typename A>
PYPOSEEXT_HOST_DEVICE int64_t target_size(A side) {
  if (!(side <= A(kLargestBoxSide))) return 0;
  return side > A(1) ? int64_t(ceil(side)) : 1;
}

template <typename A>
PYPOSEEXT_HOST_DEVICE bool is_finite_box(const A* box) {
  return is_finite(box[0]) && is_finite(box[1]) && is_finite(box[2]) && is_finite(box[3]);
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext

PYPOSEEXT_KERNEL(roi_heatmaps_to_keypoints, RoiHeatmapsArguments)
