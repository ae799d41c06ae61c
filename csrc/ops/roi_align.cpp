// roi_align: the mean of bilinear samples in each bin of each box (He et al. 2017), with torchvision's rules: a sample
// outside [-1, size] counts as 0, one between -1 and 0 or beyond the last pixel is clamped, boxes get no gradient.
#include "common/op.h"
#include "ops/roi_pooling_checks.h"

namespace pyposeext {

Tensor roi_align(const Tensor& input,  // [B, C, H, W]
                 const Tensor& boxes,  // [K, 5]: image index, x1, y1, x2, y2 in image pixels
                 int64_t pooled_height, int64_t pooled_width, double spatial_scale, int64_t sampling_ratio, bool aligned) {  // -> [K, C, P, Q]
  const char* op = "roi_align";
  check_dim(op, "input", input, 4, "[B, C, H, W]");
  const DType dtype = floating_dtype(op, "input", input);
  check_device(op, "input", input);
  check_pooled_size(op, pooled_height, pooled_width);
  check_scale(op, spatial_scale);
  const Tensor rois = check_rois(op, boxes, "input", input, dtype, input.size(0));
  Tensor pooled = empty_with_layout({rois.size(0), input.size(1), pooled_height, pooled_width}, input.scalar_type(), input, is_channels_last(input));
  if (pooled.numel() == 0) return pooled;
  RoiAlignArguments arguments = roi_arguments(dtype, input.size(0), input.size(1), rois, {pooled_height, pooled_width, sampling_ratio, aligned});
  arguments.level[0] = level_of(input, spatial_scale);
  set_pooled(&arguments, pooled);
  PYPOSEEXT_LAUNCH(roi_pooling_forward, input, arguments);
  return pooled;
}

Tensor roi_align_backward(const Tensor& gradient,  // [K, C, P, Q]
                          const Tensor& boxes,     // [K, 5]
                          int64_t batch, int64_t channels, int64_t height, int64_t width, double spatial_scale, int64_t sampling_ratio, bool aligned,
                          bool channels_last) {  // -> [B, C, H, W]
  const char* op = "roi_align_backward";
  check_dim(op, "gradient", gradient, 4, "[K, C, P, Q]");
  check_pooled_size(op, gradient.size(2), gradient.size(3));
  check_scale(op, spatial_scale);
  const DType dtype = floating_dtype(op, "gradient", gradient);
  check_device(op, "gradient", gradient);
  const Tensor rois = check_rois(op, boxes, "gradient", gradient, dtype, batch);
  PYPOSEEXT_CHECK(gradient.size(0) == rois.size(0) && gradient.size(1) == channels, op, ": gradient must be [", rois.size(0), ", ", channels,
                  ", P, Q], got shape ", shape_of(gradient));
  Tensor result = empty_with_layout({batch, channels, height, width}, gradient.scalar_type(), gradient, channels_last);
  if (result.numel() == 0) return result;
  RoiAlignArguments arguments = roi_arguments(dtype, batch, channels, rois, {gradient.size(2), gradient.size(3), sampling_ratio, aligned});
  arguments.level[0] = level_of(result, spatial_scale);
  set_pooled(&arguments, gradient);
  launch_backward(arguments, gradient);
  return result;
}

}  // namespace pyposeext

PYPOSEEXT_OP(roi_align, "(Tensor input, Tensor boxes, int pooled_height, int pooled_width, float spatial_scale, int sampling_ratio, bool aligned) -> Tensor");
PYPOSEEXT_OP(roi_align_backward,
             "(Tensor gradient, Tensor boxes, SymInt batch, SymInt channels, SymInt height, SymInt width, float spatial_scale, int sampling_ratio, "
             "bool aligned, bool channels_last) -> Tensor");
