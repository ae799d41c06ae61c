// The kernel behind nms, batched_nms and nms_padded.
#pragma once
#include "common/cpu_level.h"
#include "common/numeric.h"

namespace pyposeext {

struct NmsArguments {
  DType dtype;               // of boxes: float32 or float64
  int64_t boxes_count;
  const void* boxes;         // [N, 4], x1, y1, x2, y2
  const int64_t* order;      // [N], the boxes by falling score
  const int64_t* group;      // [N], boxes of different groups never suppress each other; or null
  double iou_threshold;
  int64_t* kept;             // [N]: the boxes kept, by falling score, then -1
  int64_t* count;            // []: how many were kept
  uint64_t* mask;            // CUDA: [N, ceil(N / 64)], scratch
  uint64_t* removed;         // CUDA: [ceil(N / 64)], scratch
};

}  // namespace pyposeext

PYPOSEEXT_KERNEL(nms, NmsArguments)
