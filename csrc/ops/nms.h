// The kernel behind nms, batched_nms and nms_padded.
#pragma once
#include "common/cpu_level.h"
#include "common/suppression.h"

namespace pyposeext {

struct NmsArguments {
  SuppressionArguments suppression;
  const void* boxes;  // [N, 4], x1, y1, x2, y2
  int64_t box_stride[2];
};

}  // namespace pyposeext

PYPOSEEXT_KERNEL(nms, NmsArguments)
