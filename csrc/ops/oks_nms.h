// The kernel behind oks_nms and oks_nms_padded.
#pragma once
#include "common/cpu_level.h"
#include "common/suppression.h"

namespace pyposeext {

enum class JointFilter : int32_t {
  none,       // every joint counts
  candidate,  // joints that the candidate for suppression sees: what HRNet's released code does
  both,       // joints that both people see: MMPose's rule
};

struct OksNmsArguments {
  SuppressionArguments suppression;
  const void* keypoints;  // [N, K, 3], x, y, score
  int64_t keypoint_stride[3];
  int64_t joints;         // K
  const void* areas;      // [N], packed, in the type that sums are kept in; as is the next
  const void* sigmas;     // [K]
  JointFilter filter;
  double visible_above;   // a joint counts as seen where its score is above this
};

}  // namespace pyposeext

PYPOSEEXT_KERNEL(oks_nms, OksNmsArguments)
