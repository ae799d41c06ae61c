// tube_roi_align: frame t of a tube is roi_align of its box t on frame t of the clip (Girdhar et al. 2018, section 3.2).
#include "common/op.h"
#include "ops/tube_checks.h"

namespace pyposeext {
Tensor tube_roi_align(const Tensor& input,        // [B, C, T, H, W]
                      const Tensor& tubes,        // [N, T, 4]: x1, y1, x2, y2 in image pixels
                      const Tensor& batch_index,  // [N]
                      int64_t pooled_height, int64_t pooled_width, double spatial_scale, int64_t sampling_ratio, bool aligned) {  // -> [N, C, T, P, Q]
  const char* op = "tube_roi_align";
  check_dim(op, "input", input, 5, "[B, C, T, H, W]");
  const DType dtype = floating_dtype(op, "input", input);
  check_device(op, "input", input);
  check_pooled_size(op, pooled_height, pooled_width);
  check_scale(op, spatial_scale);
  const Tensor boxes = check_tubes(op, tubes, "input", input, dtype, input.size(2));
  const Tensor indices = check_batch_index(op, batch_index, boxes, input.size(0));
  Tensor pooled = empty_with_layout({boxes.size(0), input.size(1), input.size(2), pooled_height, pooled_width}, input.scalar_type(), input, is_channels_last(input));
  if (pooled.numel() == 0) return pooled;
  RoiAlignArguments arguments = tube_arguments(dtype, input.size(0), input.size(1), boxes, indices, {pooled_height, pooled_width, sampling_ratio, aligned});
  arguments.level[0] = level_of(input, spatial_scale);
  set_pooled(&arguments, pooled);
  PYPOSEEXT_LAUNCH(roi_pooling_forward, input, arguments);
  return pooled;
}

Tensor tube_roi_align_backward(const Tensor& gradient,     // [N, C, T, P, Q]
                               const Tensor& tubes,        // [N, T, 4]
                               const Tensor& batch_index,  // [N]
                               int64_t batch, int64_t channels, int64_t height, int64_t width, double spatial_scale, int64_t sampling_ratio, bool aligned,
                               bool channels_last) {  // -> [B, C, T, H, W]
  const char* op = "tube_roi_align_backward";
  check_dim(op, "gradient", gradient, 5, "[N, C, T, P, Q]");
  check_pooled_size(op, gradient.size(3), gradient.size(4));
  check_scale(op, spatial_scale);
  const DType dtype = floating_dtype(op, "gradient", gradient);
  check_device(op, "gradient", gradient);
  const Tensor boxes = check_tubes(op, tubes, "gradient", gradient, dtype, gradient.size(2));
  const Tensor indices = check_batch_index(op, batch_index, boxes, batch);
  check_tube_gradient(op, gradient, boxes, channels);
  Tensor result = empty_with_layout({batch, channels, gradient.size(2), height, width}, gradient.scalar_type(), gradient, channels_last);
  if (result.numel() == 0) return result;
  RoiAlignArguments arguments = tube_arguments(dtype, batch, channels, boxes, indices, {gradient.size(3), gradient.size(4), sampling_ratio, aligned});
  arguments.level[0] = level_of(result, spatial_scale);
  set_pooled(&arguments, gradient);
  launch_backward(arguments, gradient);
  return result;
}

}  // namespace pyposeext

PYPOSEEXT_OP(tube_roi_align,
             "(Tensor input, Tensor tubes, Tensor batch_index, int pooled_height, int pooled_width, float spatial_scale, int sampling_ratio, bool aligned) -> Tensor");
PYPOSEEXT_OP(tube_roi_align_backward,
             "(Tensor gradient, Tensor tubes, Tensor batch_index, SymInt batch, SymInt channels, SymInt height, SymInt width, float spatial_scale, "
             "int sampling_ratio, bool aligned, bool channels_last) -> Tensor");
