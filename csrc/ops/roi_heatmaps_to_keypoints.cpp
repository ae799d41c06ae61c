// roi_heatmaps_to_keypoints: Mask R-CNN's keypoint decoding. Each map is resized to its box (bicubic) and its first
// maximum taken; the resized map is never stored.
#include "ops/roi_heatmaps_to_keypoints.h"

#include "common/op.h"
#include "common/tensor.h"

namespace pyposeext {

std::tuple<Tensor, Tensor> roi_heatmaps_to_keypoints(const Tensor& heatmaps,  // [N, K, h, w]
                                                     const Tensor& boxes,     // [N, 4]
                                                     const std::string& score) {  // -> [N, K, 2] x and y, [N, K]
  const char* op = "roi_heatmaps_to_keypoints";
  check_dim(op, "heatmaps", heatmaps, 4, "[N, K, h, w]");
  PYPOSEEXT_CHECK(boxes.dim() == 2 && boxes.size(0) == heatmaps.size(0) && boxes.size(1) == 4, op, ": boxes must be [", heatmaps.size(0),
                  ", 4], got shape ", shape_of(boxes));
  PYPOSEEXT_CHECK(heatmaps.numel() > 0 || heatmaps.size(0) == 0 || heatmaps.size(1) == 0, op, ": heatmaps must have at least one pixel, got shape ",
                  shape_of(heatmaps));
  PYPOSEEXT_CHECK(score == "logit" || score == "softmax", op, ": score must be logit or softmax, got ", score);
  const DType dtype = floating_dtype(op, "heatmaps", heatmaps);
  check_device(op, "heatmaps", heatmaps);
  check_same_device(op, "boxes", boxes, "heatmaps", heatmaps);
  const Tensor corners = coordinates(op, "boxes", boxes, dtype);
  const int64_t n = heatmaps.size(0), joints = heatmaps.size(1);
  Tensor keypoints = empty_with_layout({n, joints, 2}, accumulate_dtype(dtype), heatmaps, false);
  Tensor scores = empty_with_layout({n, joints}, accumulate_dtype(dtype), heatmaps, false);
  if (scores.numel() == 0) return {keypoints, scores};
  RoiHeatmapsArguments arguments{dtype, n, joints, heatmaps.size(2), heatmaps.size(3), {}, heatmaps.const_data_ptr(), corners.const_data_ptr(),
                                 keypoints.mutable_data_ptr(), scores.mutable_data_ptr(), score == "softmax"};
  for (int d = 0; d < 4; ++d) arguments.stride[d] = heatmaps.stride(d);
  PYPOSEEXT_LAUNCH(roi_heatmaps_to_keypoints, heatmaps, arguments);
  return {keypoints, scores};
}

}  // namespace pyposeext

PYPOSEEXT_OP(roi_heatmaps_to_keypoints, "(Tensor heatmaps, Tensor boxes, str score) -> (Tensor, Tensor)");
