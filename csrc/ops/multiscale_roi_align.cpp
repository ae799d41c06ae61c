// multiscale_roi_align: roi_align on the level of a feature pyramid that fits each box (Lin et al. 2017, equation 1), all
// levels in one launch.
#include "common/op.h"
#include "ops/roi_pooling_checks.h"

namespace pyposeext {

Tensor multiscale_roi_align(std::vector<Tensor> features,  // L maps [B, C, H_l, W_l], finest first
                            const Tensor& boxes,           // [K, 5]: image index, x1, y1, x2, y2 in image pixels
                            int64_t pooled_height, int64_t pooled_width, std::vector<double> spatial_scales, int64_t sampling_ratio, bool aligned,
                            double canonical_size, double canonical_level, double level_epsilon, bool epsilon_inside_log) {  // -> [K, C, P, Q]
  const char* op = "multiscale_roi_align";
  check_level_count(op, "features", features.size(), "spatial_scales", spatial_scales.size());
  const Tensor& first = features[0];
  const DType dtype = floating_dtype(op, "features", first);
  check_device(op, "features", first);
  check_pyramid(op, "features", features, 4, "[B, C, H, W]");
  check_pooled_size(op, pooled_height, pooled_width);
  const Tensor rois = check_rois(op, boxes, "features", first, dtype, first.size(0));
  RoiAlignArguments arguments = roi_arguments(dtype, first.size(0), first.size(1), rois, {pooled_height, pooled_width, sampling_ratio, aligned});
  set_level_rule(op, "spatial_scales", &arguments, spatial_scales, {canonical_size, canonical_level, level_epsilon, epsilon_inside_log, false});
  Tensor pooled = empty_with_layout({rois.size(0), first.size(1), pooled_height, pooled_width}, first.scalar_type(), first, is_channels_last(first));
  if (pooled.numel() == 0) return pooled;
  for (size_t l = 0; l < features.size(); ++l) arguments.level[l] = level_of(features[l], spatial_scales[l]);
  set_pooled(&arguments, pooled);
  PYPOSEEXT_LAUNCH(roi_pooling_forward, first, arguments);
  return pooled;
}

std::vector<Tensor> multiscale_roi_align_backward(const Tensor& gradient,  // [K, C, P, Q]
                                                  const Tensor& boxes,     // [K, 5]
                                                  int64_t batch, int64_t channels, std::vector<int64_t> heights, std::vector<int64_t> widths,
                                                  std::vector<double> spatial_scales, int64_t sampling_ratio, bool aligned, double canonical_size,
                                                  double canonical_level, double level_epsilon, bool epsilon_inside_log,
                                                  bool channels_last) {  // -> L maps [B, C, H_l, W_l]
  const char* op = "multiscale_roi_align_backward";
  check_level_count(op, "heights", heights.size(), "spatial_scales", spatial_scales.size());
  PYPOSEEXT_CHECK(heights.size() == widths.size(), op, ": heights and widths must be of one length, got ", heights.size(), " and ", widths.size());
  check_dim(op, "gradient", gradient, 4, "[K, C, P, Q]");
  check_pooled_size(op, gradient.size(2), gradient.size(3));
  const DType dtype = floating_dtype(op, "gradient", gradient);
  check_device(op, "gradient", gradient);
  const Tensor rois = check_rois(op, boxes, "gradient", gradient, dtype, batch);
  PYPOSEEXT_CHECK(gradient.size(0) == rois.size(0) && gradient.size(1) == channels, op, ": gradient must be [", rois.size(0), ", ", channels,
                  ", P, Q], got shape ", shape_of(gradient));
  RoiAlignArguments arguments = roi_arguments(dtype, batch, channels, rois, {gradient.size(2), gradient.size(3), sampling_ratio, aligned});
  set_level_rule(op, "spatial_scales", &arguments, spatial_scales, {canonical_size, canonical_level, level_epsilon, epsilon_inside_log, false});
  std::vector<Tensor> result = allocate_levels(&arguments, {batch, channels}, heights, widths, spatial_scales, gradient, channels_last);
  if (batch == 0 || channels == 0) return result;
  set_pooled(&arguments, gradient);
  launch_backward(arguments, gradient);
  return result;
}

}  // namespace pyposeext

PYPOSEEXT_OP(multiscale_roi_align,
             "(Tensor[] features, Tensor boxes, int pooled_height, int pooled_width, float[] spatial_scales, int sampling_ratio, bool aligned, "
             "float canonical_size, float canonical_level, float level_epsilon, bool epsilon_inside_log) -> Tensor");
PYPOSEEXT_OP(multiscale_roi_align_backward,
             "(Tensor gradient, Tensor boxes, SymInt batch, SymInt channels, SymInt[] heights, SymInt[] widths, float[] spatial_scales, int sampling_ratio, "
             "bool aligned, float canonical_size, float canonical_level, float level_epsilon, bool epsilon_inside_log, bool channels_last) -> Tensor[]");
