// What tube_roi_align and multiscale_tube_roi_align check and fill in alike.
#pragma once
#include "ops/roi_pooling_checks.h"

namespace pyposeext {

inline Tensor check_tubes(const char* op, const Tensor& tubes, const char* input_name, const Tensor& input, DType dtype, int64_t frames) {
  PYPOSEEXT_CHECK(tubes.dim() == 3 && tubes.size(1) == frames && tubes.size(2) == 4, op, ": tubes must be [N, ", frames, ", 4], got shape ", shape_of(tubes));
  check_same_device(op, "tubes", tubes, input_name, input);
  return coordinates(op, "tubes", tubes, dtype);
}

// As with rois: a wrong index is an error on the CPU, and a tube of zeros on a GPU.
inline Tensor check_batch_index(const char* op, const Tensor& batch_index, const Tensor& tubes, int64_t batch) {
  PYPOSEEXT_CHECK(batch_index.scalar_type() == ScalarType::Long && batch_index.dim() == 1 && batch_index.size(0) == tubes.size(0), op,
                  ": batch_index must be int64 [", tubes.size(0), "], got shape ", shape_of(batch_index));
  check_same_device(op, "batch_index", batch_index, "tubes", tubes);
  Tensor indices = torch::stable::contiguous(batch_index);
  if (indices.is_cpu()) {
    const int64_t* data = indices.const_data_ptr<int64_t>();
    for (int64_t k = 0; k < indices.size(0); ++k)
      PYPOSEEXT_CHECK(data[k] >= 0 && data[k] < batch, op, ": batch_index[", k, "] must be in 0..", batch - 1, ", got ", data[k]);
  }
  return indices;
}

inline void check_tube_gradient(const char* op, const Tensor& gradient, const Tensor& tubes, int64_t channels) {
  PYPOSEEXT_CHECK(gradient.size(0) == tubes.size(0) && gradient.size(1) == channels, op, ": gradient must be [", tubes.size(0), ", ", channels,
                  ", T, P, Q], got shape ", shape_of(gradient));
}

inline RoiAlignArguments tube_arguments(DType dtype, int64_t batch, int64_t channels, const Tensor& tubes, const Tensor& indices, const RoiOptions& options) {
  RoiAlignArguments arguments = roi_arguments(dtype, batch, channels, tubes, options);
  arguments.frames = tubes.size(1);
  arguments.box_stride = 4 * tubes.size(1);
  arguments.box_offset = 0;
  arguments.batch_index = indices.const_data_ptr<int64_t>();
  return arguments;
}

}  // namespace pyposeext
