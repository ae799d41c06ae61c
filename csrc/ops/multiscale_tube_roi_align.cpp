// multiscale_tube_roi_align: tube_roi_align on the pyramid level that fits the mean area of each tube's boxes (Girdhar et
// al. 2018; the level rule of Lin et al. 2017, equation 1), a tube being whole on one level, all levels in one launch.
#include "common/op.h"
#include "ops/tube_checks.h"

namespace pyposeext {

Tensor multiscale_tube_roi_align(std::vector<Tensor> features,  // L maps [B, C, T, H_l, W_l], finest first
                                 const Tensor& tubes,           // [N, T, 4]: x1, y1, x2, y2 in image pixels
                                 const Tensor& batch_index,     // [N]
                                 int64_t pooled_height, int64_t pooled_width, std::vector<double> spatial_scales, int64_t sampling_ratio, bool aligned,
                                 double canonical_size, double canonical_level, double level_epsilon, bool epsilon_inside_log,
                                 bool legacy_plus_one) {  // -> [N, C, T, P, Q]
  const char* op = "multiscale_tube_roi_align";
  check_level_count(op, "input", features.size(), "spatial_scale", spatial_scales.size());
  const Tensor& first = features[0];
  const DType dtype = floating_dtype(op, "input", first);
  check_device(op, "input", first);
  check_pyramid(op, "input", features, 5, "[B, C, T, H, W]");
  check_pooled_size(op, pooled_height, pooled_width);
  const int64_t batch = first.size(0), channels = first.size(1), frames = first.size(2);
  const Tensor boxes = check_tubes(op, tubes, "input", first, dtype, frames);
  const Tensor indices = check_batch_index(op, batch_index, boxes, batch);
  RoiAlignArguments arguments = tube_arguments(dtype, batch, channels, boxes, indices, {pooled_height, pooled_width, sampling_ratio, aligned});
  set_level_rule(op, "spatial_scale", &arguments, spatial_scales,
                 {canonical_size, canonical_level, level_epsilon, epsilon_inside_log, legacy_plus_one});
  Tensor pooled = empty_with_layout({boxes.size(0), channels, frames, pooled_height, pooled_width}, first.scalar_type(), first, is_channels_last(first));
  if (pooled.numel() == 0) return pooled;
  for (size_t l = 0; l < features.size(); ++l) arguments.level[l] = level_of(features[l], spatial_scales[l]);
  set_pooled(&arguments, pooled);
  PYPOSEEXT_LAUNCH(roi_pooling_forward, first, arguments);
  return pooled;
}

std::vector<Tensor> multiscale_tube_roi_align_backward(const Tensor& gradient,     // [N, C, T, P, Q]
                                                       const Tensor& tubes,        // [N, T, 4]
                                                       const Tensor& batch_index,  // [N]
                                                       int64_t batch, int64_t channels, std::vector<int64_t> heights, std::vector<int64_t> widths,
                                                       std::vector<double> spatial_scales, int64_t sampling_ratio, bool aligned, double canonical_size,
                                                       double canonical_level, double level_epsilon, bool epsilon_inside_log, bool legacy_plus_one,
                                                       bool channels_last) {  // -> L maps [B, C, T, H_l, W_l]
  const char* op = "multiscale_tube_roi_align_backward";
  check_level_count(op, "heights", heights.size(), "spatial_scales", spatial_scales.size());
  PYPOSEEXT_CHECK(heights.size() == widths.size(), op, ": heights and widths must be of one length, got ", heights.size(), " and ", widths.size());
  check_dim(op, "gradient", gradient, 5, "[N, C, T, P, Q]");
  check_pooled_size(op, gradient.size(3), gradient.size(4));
  const DType dtype = floating_dtype(op, "gradient", gradient);
  check_device(op, "gradient", gradient);
  const Tensor boxes = check_tubes(op, tubes, "gradient", gradient, dtype, gradient.size(2));
  const Tensor indices = check_batch_index(op, batch_index, boxes, batch);
  check_tube_gradient(op, gradient, boxes, channels);
  RoiAlignArguments arguments = tube_arguments(dtype, batch, channels, boxes, indices, {gradient.size(3), gradient.size(4), sampling_ratio, aligned});
  set_level_rule(op, "spatial_scales", &arguments, spatial_scales,
                 {canonical_size, canonical_level, level_epsilon, epsilon_inside_log, legacy_plus_one});
  std::vector<Tensor> result =
      allocate_levels(&arguments, {batch, channels, gradient.size(2)}, heights, widths, spatial_scales, gradient, channels_last);
  if (batch == 0 || channels == 0 || gradient.size(2) == 0) return result;
  set_pooled(&arguments, gradient);
  launch_backward(arguments, gradient);
  return result;
}

}  // namespace pyposeext

PYPOSEEXT_OP(multiscale_tube_roi_align,
             "(Tensor[] features, Tensor tubes, Tensor batch_index, int pooled_height, int pooled_width, float[] spatial_scales, int sampling_ratio, "
             "bool aligned, float canonical_size, float canonical_level, float level_epsilon, bool epsilon_inside_log, bool legacy_plus_one) -> Tensor");
PYPOSEEXT_OP(multiscale_tube_roi_align_backward,
             "(Tensor gradient, Tensor tubes, Tensor batch_index, SymInt batch, SymInt channels, SymInt[] heights, SymInt[] widths, "
             "float[] spatial_scales, int sampling_ratio, bool aligned, float canonical_size, float canonical_level, float level_epsilon, "
             "bool epsilon_inside_log, bool legacy_plus_one, bool channels_last) -> Tensor[]");
