// nms, batched_nms, nms_padded: greedy non-maximum suppression by intersection over union, with torchvision's results:
// falling score with ties in input order, a box is dropped where its overlap with a kept one is above the threshold.
#include "common/op.h"
#include "common/sort.h"
#include "common/tensor.h"
#include "ops/nms.h"

namespace pyposeext {
namespace {

std::tuple<Tensor, Tensor> run(const char* op, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& indices, double iou_threshold) {
  PYPOSEEXT_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, op, ": boxes must be [N, 4], got shape ", shape_of(boxes));
  const int64_t n = boxes.size(0);
  PYPOSEEXT_CHECK(scores.dim() == 1 && scores.size(0) == n, op, ": scores must be [", n, "], got shape ", shape_of(scores));
  PYPOSEEXT_CHECK(iou_threshold == iou_threshold, op, ": iou_threshold must be a number, got NaN");
  const DType dtype = floating_dtype(op, "boxes", boxes);
  floating_dtype(op, "scores", scores);
  check_device(op, "boxes", boxes);
  check_same_device(op, "scores", scores, "boxes", boxes);
  const Tensor coordinates_ = coordinates(op, "boxes", boxes, dtype);
  Tensor group;
  if (indices.has_value()) {
    PYPOSEEXT_CHECK(indices->dim() == 1 && indices->size(0) == n && indices->scalar_type() == ScalarType::Long, op, ": indices must be int64 [", n,
                    "], got shape ", shape_of(*indices));
    check_same_device(op, "indices", *indices, "boxes", boxes);
    group = torch::stable::contiguous(*indices);
  }
  Tensor kept = empty_with_layout({n}, ScalarType::Long, boxes, false), count = torch::stable::full({}, 0.0, ScalarType::Long, std::nullopt, boxes.device());
  if (n == 0) return {kept, count};
  const Tensor order = std::get<1>(stable_sort(scores, 0, true));  // stable, because ties decide results
  NmsArguments arguments{};
  arguments.dtype = dtype == DType::float64 ? DType::float64 : DType::float32;
  arguments.boxes_count = n;
  arguments.boxes = coordinates_.const_data_ptr();
  arguments.order = order.const_data_ptr<int64_t>();
  arguments.group = indices.has_value() ? group.const_data_ptr<int64_t>() : nullptr;
  arguments.iou_threshold = iou_threshold;
  arguments.kept = kept.mutable_data_ptr<int64_t>();
  arguments.count = count.mutable_data_ptr<int64_t>();
  Tensor mask, removed;
  if (uses_cuda(boxes)) {
    const int64_t words = (n + 63) / 64;
    mask = empty_with_layout({n, words}, ScalarType::Long, boxes, false);
    removed = empty_with_layout({words}, ScalarType::Long, boxes, false);
    arguments.mask = reinterpret_cast<uint64_t*>(mask.mutable_data_ptr<int64_t>());
    arguments.removed = reinterpret_cast<uint64_t*>(removed.mutable_data_ptr<int64_t>());
  }
  PYPOSEEXT_LAUNCH(nms, boxes, arguments);
  return {kept, count};
}

// The first `count` rows, in memory of their own. On a GPU this reads one number back.
Tensor cut(const std::tuple<Tensor, Tensor>& padded) {
  const Tensor& count = std::get<1>(padded);
  const Tensor on_host = count.is_cpu() ? count : torch::stable::to(count, torch::stable::Device("cpu"));
  Tensor kept = std::get<0>(padded);
  return torch::stable::clone(torch::stable::narrow(kept, 0, 0, *on_host.const_data_ptr<int64_t>()));
}

}  // namespace

std::tuple<Tensor, Tensor> nms_padded(const Tensor& boxes, const Tensor& scores, double iou_threshold, const std::optional<Tensor>& indices) {
  return run("nms_padded", boxes, scores, indices, iou_threshold);
}

Tensor nms(const Tensor& boxes,   // [N, 4]: x1, y1, x2, y2
           const Tensor& scores,  // [N]
           double iou_threshold) {  // -> int64 [kept]
  return cut(run("nms", boxes, scores, std::nullopt, iou_threshold));
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& indices, double iou_threshold) {
  return cut(run("batched_nms", boxes, scores, indices, iou_threshold));
}

}  // namespace pyposeext

PYPOSEEXT_OP(nms_padded, "(Tensor boxes, Tensor scores, float iou_threshold, Tensor? indices) -> (Tensor, Tensor)");
PYPOSEEXT_OP(nms, "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
PYPOSEEXT_OP(batched_nms, "(Tensor boxes, Tensor scores, Tensor indices, float iou_threshold) -> Tensor");
