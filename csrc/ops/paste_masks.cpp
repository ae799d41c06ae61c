// paste_masks: masks of boxes blown up to the image, as torchvision (roi_heads.paste_masks_in_image) or detectron2
// (layers.paste_masks_in_image) do. paste_masks_runs: the same masks as COCO's run lengths, without the image.
#include "ops/paste_masks.h"

#include "common/op.h"
#include "common/tensor.h"

namespace pyposeext {
namespace {

constexpr int64_t kLongest = int64_t(1) << 31;  // run lengths are 32-bit numbers, and so are pixels counted along a side

PasteRule rule_of(const char* op, const std::string& rule) {
  PYPOSEEXT_CHECK(rule == "torchvision" || rule == "detectron2", op, ": rule must be torchvision or detectron2, got ", rule);
  return rule == "torchvision" ? PasteRule::torchvision : PasteRule::detectron2;
}

// *corners keeps the boxes alive that the arguments point to.
PasteMasksArguments checked(const char* op, const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width, double threshold,
                            const std::string& rule, Tensor* corners) {
  const int64_t rank = masks.dim();
  const bool is_stack = rank == 3 || (rank == 4 && masks.size(1) == 1);
  PYPOSEEXT_CHECK(is_stack && masks.size(rank - 1) == masks.size(rank - 2) && masks.size(rank - 1) > 0, op,
                  ": masks must be [N, M, M] or [N, 1, M, M] with M at least 1, got shape ", shape_of(masks));
  const DType dtype = floating_dtype(op, "masks", masks);
  check_device(op, "masks", masks);
  PYPOSEEXT_CHECK(boxes.dim() == 2 && boxes.size(0) == masks.size(0) && boxes.size(1) == 4, op, ": boxes must be [", masks.size(0),
                  ", 4], got shape ", shape_of(boxes));
  check_same_device(op, "boxes", boxes, "masks", masks);
  PYPOSEEXT_CHECK(height >= 0 && width >= 0 && height < kLongest && width < kLongest, op, ": size must be in 0..2^31 - 1, got ", height,
                  " x ", width);
  PYPOSEEXT_CHECK(threshold == threshold, op, ": threshold must be a number, got NaN");
  const bool in_double = dtype == DType::float64 || floating_dtype(op, "boxes", boxes) == DType::float64;
  *corners = coordinates(op, "boxes", boxes, in_double ? DType::float64 : DType::float32);
  PasteMasksArguments arguments{};
  arguments.dtype = dtype;
  arguments.double_boxes = in_double;
  arguments.rule = rule_of(op, rule);
  arguments.count = masks.size(0);
  arguments.side = masks.size(rank - 1);
  arguments.height = height;
  arguments.width = width;
  arguments.masks = masks.const_data_ptr();
  arguments.stride[0] = masks.stride(0);
  arguments.stride[1] = masks.stride(rank - 2);
  arguments.stride[2] = masks.stride(rank - 1);
  arguments.boxes = corners->const_data_ptr();
  arguments.threshold = threshold;
  return arguments;
}

}  // namespace

Tensor paste_masks(const Tensor& masks,  // [N, M, M] or [N, 1, M, M]
                   const Tensor& boxes,  // [N, 4]
                   int64_t height, int64_t width, double threshold, bool soft, const std::string& rule) {  // -> [N, height, width]
  Tensor corners;
  PasteMasksArguments arguments = checked("paste_masks", masks, boxes, height, width, threshold, rule, &corners);
  Tensor out = empty_with_layout({arguments.count, height, width}, soft ? masks.scalar_type() : ScalarType::Bool, masks, false);
  if (out.numel() == 0) return out;
  arguments.soft = soft;
  arguments.out = out.mutable_data_ptr();
  PYPOSEEXT_LAUNCH(paste_masks, masks, arguments);
  return out;
}

std::tuple<Tensor, Tensor> paste_masks_runs(const Tensor& masks,  // [N, M, M] or [N, 1, M, M]
                                            const Tensor& boxes,  // [N, 4]
                                            int64_t height, int64_t width, double threshold, const std::string& rule,
                                            int64_t capacity) {  // -> [N, capacity] int32, [N] int64
  const char* op = "paste_masks_runs";
  Tensor corners;
  PasteMasksRunsArguments arguments{};
  arguments.paste = checked(op, masks, boxes, height, width, threshold, rule, &corners);
  const int64_t n = arguments.paste.count;
  PYPOSEEXT_CHECK(width == 0 || height < kLongest / width, op, ": size must be fewer than 2^31 pixels, got ", height, " x ", width);
  PYPOSEEXT_CHECK(capacity >= 0, op, ": capacity must not be negative, got ", capacity);
  Tensor counts = empty_with_layout({n, capacity}, ScalarType::Int, masks, false);
  Tensor lengths = empty_with_layout({n}, ScalarType::Long, masks, false);
  if (n == 0) return {counts, lengths};
  arguments.capacity = capacity;
  arguments.counts = counts.mutable_data_ptr<int32_t>();
  arguments.lengths = lengths.mutable_data_ptr<int64_t>();
  Tensor first_row;
  if (uses_cuda(masks)) {
    first_row = empty_with_layout({n, arguments.paste.side + 3}, ScalarType::Int, masks, false);
    arguments.first_row = first_row.mutable_data_ptr<int32_t>();
  }
  PYPOSEEXT_LAUNCH(paste_masks_runs, masks, arguments);
  return {counts, lengths};
}

}  // namespace pyposeext

PYPOSEEXT_OP(paste_masks, "(Tensor masks, Tensor boxes, SymInt height, SymInt width, float threshold, bool soft, str rule) -> Tensor");
PYPOSEEXT_OP(paste_masks_runs,
             "(Tensor masks, Tensor boxes, SymInt height, SymInt width, float threshold, str rule, SymInt capacity) -> (Tensor, Tensor)");
