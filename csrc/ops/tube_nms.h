// The kernel behind tube_nms and tube_nms_padded.
#pragma once
#include "common/cpu_level.h"
#include "common/suppression.h"

namespace pyposeext {

struct TubeNmsArguments {
  SuppressionArguments suppression;
  const void* tubes;  // [N, T, 4], x1, y1, x2, y2
  int64_t tube_stride[3];
  int64_t frames;     // T
  bool plus_one;      // a box that ends at x2 holds the pixel x2
};

}  // namespace pyposeext

PYPOSEEXT_KERNEL(tube_nms, TubeNmsArguments)
