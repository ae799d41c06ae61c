// nms, batched_nms, nms_padded: greedy non-maximum suppression by intersection over union, with torchvision's results:
// falling score with ties in input order, a box is dropped where its overlap with a kept one is above the threshold.
#include "ops/nms.h"

#include "common/op.h"
#include "ops/suppression.h"

namespace pyposeext {
namespace {

std::tuple<Tensor, Tensor> run(const char* op, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& indices, double iou_threshold) {
  PYPOSEEXT_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, op, ": boxes must be [N, 4], got shape ", shape_of(boxes));
  const Suppression s = prepare_suppression(op, "boxes", boxes, scores, indices, "iou_threshold", iou_threshold, 5);
  if (boxes.size(0) == 0) return {s.kept, s.kept_count};
  const NmsArguments arguments{s.arguments, boxes.const_data_ptr(), {boxes.stride(0), boxes.stride(1)}};
  PYPOSEEXT_LAUNCH(nms, boxes, arguments);
  return {s.kept, s.kept_count};
}

}  // namespace

std::tuple<Tensor, Tensor> nms_padded(const Tensor& boxes, const Tensor& scores, double iou_threshold, const std::optional<Tensor>& indices) {
  return run("nms_padded", boxes, scores, indices, iou_threshold);
}

Tensor nms(const Tensor& boxes,   // [N, 4]: x1, y1, x2, y2
           const Tensor& scores,  // [N]
           double iou_threshold) {  // -> int64 [kept]
  return without_padding(run("nms", boxes, scores, std::nullopt, iou_threshold));
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& indices, double iou_threshold) {
  return without_padding(run("batched_nms", boxes, scores, indices, iou_threshold));
}

}  // namespace pyposeext

PYPOSEEXT_OP(nms_padded, "(Tensor boxes, Tensor scores, float iou_threshold, Tensor? indices) -> (Tensor, Tensor)");
PYPOSEEXT_OP(nms, "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
PYPOSEEXT_OP(batched_nms, "(Tensor boxes, Tensor scores, Tensor indices, float iou_threshold) -> Tensor");
