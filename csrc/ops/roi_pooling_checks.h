// What roi_align, multiscale_roi_align and tube_roi_align check and fill in alike.
#pragma once
#include <cmath>

#include "common/tensor.h"
#include "ops/roi_pooling.h"

namespace pyposeext {

struct RoiOptions {
  int64_t pooled_height, pooled_width, sampling_ratio;
  bool aligned;
};

// Which level of a pyramid a roi is pooled from: roi_level in common/roi_align_math.h.
struct LevelRule {
  double canonical_size, canonical_level, level_epsilon;
  bool epsilon_inside_log, legacy_plus_one;
};

inline void check_pooled_size(const char* op, int64_t height, int64_t width) {
  PYPOSEEXT_CHECK(height > 0 && width > 0, op, ": output_size must be positive, got ", height, " x ", width);
}

inline void check_scale(const char* op, double scale) {
  PYPOSEEXT_CHECK(scale > 0 && is_finite(scale), op, ": spatial_scale must be a positive number, got ", scale);
}

// A level's data, sizes and strides from a tensor [B, C, H, W] or [B, C, T, H, W].
inline RoiLevel level_of(const Tensor& tensor, double scale) {
  const bool has_frames = tensor.dim() == 5;
  const int64_t rows = has_frames ? 3 : 2;
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.size(rows), tensor.size(rows + 1),
          {tensor.stride(0), tensor.stride(1), has_frames ? tensor.stride(2) : 0, tensor.stride(rows), tensor.stride(rows + 1)}, scale};
}

inline void set_pooled(RoiAlignArguments* arguments, const Tensor& pooled) {
  const RoiLevel as_level = level_of(pooled, 1);
  arguments->pooled = as_level.data;
  arguments->pooled_height = as_level.height;
  arguments->pooled_width = as_level.width;
  for (int d = 0; d < 5; ++d) arguments->pooled_stride[d] = as_level.stride[d];
}

// Rois [K, 5]. On the CPU a wrong image index is an error; on a GPU finding it would need a synchronisation, so such a
// roi pools to 0 and gives no gradient.
inline Tensor check_rois(const char* op, const Tensor& boxes, const char* input_name, const Tensor& input, DType dtype, int64_t batch) {
  PYPOSEEXT_CHECK(boxes.dim() == 2 && boxes.size(1) == 5, op, ": boxes must be [K, 5], got shape ", shape_of(boxes));
  check_same_device(op, "boxes", boxes, input_name, input);
  Tensor rois = coordinates(op, "boxes", boxes, dtype);
  if (!rois.is_cpu()) return rois;
  const auto check = [&](auto* data) {
    for (int64_t k = 0; k < rois.size(0); ++k)
      PYPOSEEXT_CHECK(data[5 * k] >= 0 && data[5 * k] < batch, op, ": boxes[", k, ", 0] must be an image index in 0..", batch - 1, ", got ", data[5 * k]);
  };
  if (dtype == DType::float64)
    check(rois.const_data_ptr<double>());
  else
    check(rois.const_data_ptr<float>());
  return rois;
}

inline RoiAlignArguments roi_arguments(DType dtype, int64_t batch, int64_t channels, const Tensor& rois, const RoiOptions& options) {
  RoiAlignArguments arguments{};
  arguments.dtype = dtype;
  arguments.batch = batch;
  arguments.channels = channels;
  arguments.frames = 1;
  arguments.rois = rois.size(0);
  arguments.sampling_ratio = options.sampling_ratio;
  arguments.aligned = options.aligned;
  arguments.levels = 1;
  arguments.boxes = rois.const_data_ptr();
  arguments.box_stride = 5;
  arguments.box_offset = 1;
  return arguments;
}

inline void check_level_count(const char* op, const char* maps_name, size_t maps, const char* scales_name, size_t scales) {
  PYPOSEEXT_CHECK(maps > 0 && maps <= size_t(kMaximumRoiLevels), op, ": ", maps_name, " must be a list of 1 to ", kMaximumRoiLevels, " maps, got ", maps);
  PYPOSEEXT_CHECK(maps == scales, op, ": ", scales_name, " must hold one scale for each of the ", maps, " maps, got ", scales);
}

// Maps of one pyramid: [B, C, ..., H_l, W_l], alike in everything but height and width.
inline void check_pyramid(const char* op, const char* name, const std::vector<Tensor>& maps, int64_t dim, const char* shape) {
  const Tensor& first = maps[0];
  const std::string each = std::string("each of ") + name;
  for (const Tensor& map : maps) {
    check_dim(op, each.c_str(), map, dim, shape);
    check_same_device(op, each.c_str(), map, "the first", first);
    bool alike = map.scalar_type() == first.scalar_type();
    for (int64_t d = 0; d < dim - 2; ++d) alike = alike && map.size(d) == first.size(d);
    PYPOSEEXT_CHECK(alike, op, ": all of ", name, " must have the first one's batch, channels", dim == 5 ? ", frames" : "", " and dtype ", shape_of(first),
                    ", got shape ", shape_of(map));
  }
}

inline void set_level_rule(const char* op, const char* scales_name, RoiAlignArguments* arguments, const std::vector<double>& scales, const LevelRule& rule) {
  PYPOSEEXT_CHECK(rule.canonical_size > 0, op, ": canonical_size must be positive, got ", rule.canonical_size);
  for (size_t l = 0; l < scales.size(); ++l) {
    check_scale(op, scales[l]);
    PYPOSEEXT_CHECK(l == 0 || std::abs(scales[l - 1] / scales[l] - 2) < 1e-3, op, ": each of ", scales_name, " must be half the one before it, got ",
                    l == 0 ? 0.0 : scales[l - 1], " and then ", scales[l]);
  }
  arguments->levels = int64_t(scales.size());
  arguments->canonical_size = rule.canonical_size;
  arguments->canonical_level = rule.canonical_level;
  arguments->finest_level = std::round(-std::log2(scales[0]));
  arguments->level_epsilon = rule.level_epsilon;
  arguments->epsilon_inside_log = rule.epsilon_inside_log;
  arguments->legacy_plus_one = rule.legacy_plus_one;
}

// The gradient of every map, allocated and entered as the levels of `arguments`.
inline std::vector<Tensor> allocate_levels(RoiAlignArguments* arguments, const std::vector<int64_t>& leading_sizes, const std::vector<int64_t>& heights,
                                           const std::vector<int64_t>& widths, const std::vector<double>& scales, const Tensor& gradient, bool channels_last) {
  std::vector<Tensor> result;
  for (size_t l = 0; l < heights.size(); ++l) {
    std::vector<int64_t> sizes = leading_sizes;
    sizes.insert(sizes.end(), {heights[l], widths[l]});
    result.push_back(empty_with_layout(sizes, gradient.scalar_type(), gradient, channels_last));
    arguments->level[l] = level_of(result[l], scales[l]);
  }
  return result;
}

// Fills every level with its gradient, on the device where the pooled gradient lies.
inline void launch_backward(RoiAlignArguments arguments, const Tensor& gradient) {
  Tensor scratch;  // returned to torch's allocator after the launch: the stream orders its next use
  if (uses_cuda(gradient)) {
    scratch = empty_with_layout({roi_pooling_scratch_words(arguments)}, ScalarType::Long, gradient, false);
    arguments.scratch = scratch.mutable_data_ptr();
  }
  PYPOSEEXT_LAUNCH(roi_pooling_backward, gradient, arguments);
}

}  // namespace pyposeext
