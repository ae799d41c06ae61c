// oks_nms, oks_nms_padded: greedy suppression of poses by object keypoint similarity, as HRNet's and MMPose's released code
// do before COCO's evaluation.
#include "ops/oks_nms.h"

#include "common/op.h"
#include "ops/suppression.h"

namespace pyposeext {
namespace {

JointFilter joint_filter(const char* op, const std::string& visibility) {
  if (visibility == "none") return JointFilter::none;
  if (visibility == "hrnet") return JointFilter::candidate;
  PYPOSEEXT_CHECK(visibility == "mmpose", op, ": visibility must be 'none', 'hrnet' or 'mmpose', got '", visibility, "'");
  return JointFilter::both;
}

std::tuple<Tensor, Tensor> run(const char* op, const Tensor& keypoints, const Tensor& scores, const Tensor& areas, double oks_threshold,
                               const Tensor& sigmas, const std::optional<Tensor>& indices, const std::string& visibility,
                               double visibility_threshold) {
  PYPOSEEXT_CHECK(keypoints.dim() == 3 && keypoints.size(2) == 3, op, ": keypoints must be [N, K, 3], got shape ", shape_of(keypoints));
  const int64_t n = keypoints.size(0), joints = keypoints.size(1);
  PYPOSEEXT_CHECK(areas.dim() == 1 && areas.size(0) == n, op, ": areas must be [", n, "], got shape ", shape_of(areas));
  PYPOSEEXT_CHECK(sigmas.dim() == 1 && sigmas.size(0) == joints, op, ": sigmas must be [", joints, "], got shape ", shape_of(sigmas));
  PYPOSEEXT_CHECK(visibility_threshold == visibility_threshold, op, ": visibility_threshold must be a number, got NaN");
  const JointFilter filter = joint_filter(op, visibility);
  const Suppression s = prepare_suppression(op, "keypoints", keypoints, scores, indices, "oks_threshold", oks_threshold, 1 + 3 * joints);
  check_same_device(op, "areas", areas, "keypoints", keypoints);
  check_same_device(op, "sigmas", sigmas, "keypoints", keypoints);
  // Two small copies where they are not packed or of another dtype; poses are read as they lie.
  const Tensor area = coordinates(op, "areas", areas, s.arguments.dtype), sigma = coordinates(op, "sigmas", sigmas, s.arguments.dtype);
  if (n == 0) return {s.kept, s.kept_count};
  const OksNmsArguments arguments{s.arguments,
                                  keypoints.const_data_ptr(),
                                  {keypoints.stride(0), keypoints.stride(1), keypoints.stride(2)},
                                  joints,
                                  area.const_data_ptr(),
                                  sigma.const_data_ptr(),
                                  filter,
                                  visibility_threshold};
  PYPOSEEXT_LAUNCH(oks_nms, keypoints, arguments);
  return {s.kept, s.kept_count};
}

}  // namespace

std::tuple<Tensor, Tensor> oks_nms_padded(const Tensor& keypoints, const Tensor& scores, const Tensor& areas, double oks_threshold,
                                          const Tensor& sigmas, const std::optional<Tensor>& indices, const std::string& visibility,
                                          double visibility_threshold) {
  return run("oks_nms_padded", keypoints, scores, areas, oks_threshold, sigmas, indices, visibility, visibility_threshold);
}

Tensor oks_nms(const Tensor& keypoints,  // [N, K, 3]: x, y, score
               const Tensor& scores,     // [N]
               const Tensor& areas,      // [N]
               double oks_threshold,
               const Tensor& sigmas,     // [K]
               const std::optional<Tensor>& indices, const std::string& visibility, double visibility_threshold) {  // -> int64 [kept]
  return without_padding(run("oks_nms", keypoints, scores, areas, oks_threshold, sigmas, indices, visibility, visibility_threshold));
}

}  // namespace pyposeext

PYPOSEEXT_OP(oks_nms_padded,
             "(Tensor keypoints, Tensor scores, Tensor areas, float oks_threshold, Tensor sigmas, Tensor? indices, str visibility, "
             "float visibility_threshold) -> (Tensor, Tensor)");
PYPOSEEXT_OP(oks_nms,
             "(Tensor keypoints, Tensor scores, Tensor areas, float oks_threshold, Tensor sigmas, Tensor? indices, str visibility, "
             "float visibility_threshold) -> Tensor");
