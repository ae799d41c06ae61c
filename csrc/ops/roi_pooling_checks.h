// What roi_align, multiscale_roi_align and tube_roi_align check and fill in alike.
#pragma once
#include "common/tensor.h"
#include "ops/roi_pooling.h"

namespace pyposeext {

struct RoiOptions {
  int64_t pooled_height, pooled_width, sampling_ratio;
  bool aligned;
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

}  // namespace pyposeext
