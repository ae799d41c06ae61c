// What the ops flow_warp and flow_warp_pool and their backwards check and prepare.
#pragma once
#include <string>
#include <tuple>

#include "common/sort.h"
#include "common/tensor.h"
#include "ops/flow_warp.h"

namespace pyposeext {

// [B, C, H, W] or [B, S, C, H, W].
inline FlowMaps flow_maps(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.dim() == 5 ? tensor.stride(1) : 0,
          tensor.stride(last - 2), tensor.stride(last - 1), tensor.stride(last)};
}

// What `maps` (the input, or the gradient of the output) says, and the flow, [B, 2, H, W] or [B, S, 2, H, W]. Flow of
// another dtype than coordinates have is converted, which copies it to `converted`.
inline FlowWarpArguments flow_warp_arguments(const char* op, const char* name, const Tensor& maps, const Tensor& flow, int64_t flow_dim,
                                             const std::string& padding_mode, Tensor* converted) {
  const DType dtype = floating_dtype(op, name, maps);
  check_device(op, name, maps);
  floating_dtype(op, "flow", flow);
  check_same_device(op, "flow", flow, name, maps);
  const int64_t last = maps.dim() - 1, batch = maps.size(0), height = maps.size(last - 1), width = maps.size(last);
  const bool is_frame = flow.dim() == flow_dim && flow.size(0) == batch && flow.size(flow_dim - 3) == 2 &&
                        flow.size(flow_dim - 2) == height && flow.size(flow_dim - 1) == width;
  const bool fits = is_frame && (maps.dim() == 4 || flow.size(1) == maps.size(1));
  const std::string steps = flow_dim == 4 ? "" : maps.dim() == 5 ? std::to_string(maps.size(1)) + ", " : "S, ";
  PYPOSEEXT_CHECK(fits, op, ": flow must be [", batch, ", ", steps, "2, ", height, ", ", width, "], got shape ", shape_of(flow));
  PYPOSEEXT_CHECK(padding_mode == "zeros" || padding_mode == "border", op, ": padding_mode must be zeros or border, got ", padding_mode);
  PYPOSEEXT_CHECK(width == 0 || height < (int64_t(1) << 31) / width, op, ": ", name, " must have fewer than 2^31 pixels in a map, got shape ", shape_of(maps));
  *converted = torch::stable::to(flow, accumulate_dtype(dtype));
  FlowWarpArguments arguments{};
  arguments.dtype = dtype;
  arguments.batch = batch;
  arguments.steps = flow_dim == 5 ? flow.size(1) : 1;
  arguments.channels = maps.size(last - 2);
  arguments.height = height;
  arguments.width = width;
  arguments.border = padding_mode == "border";
  arguments.flow = flow_maps(*converted);
  return arguments;
}

// Fills arguments.out with the gradient of the input. On a GPU every input pixel gathers from the output pixels that sample
// it, which are listed first.
inline void launch_flow_warp_backward_input(FlowWarpArguments arguments, [[maybe_unused]] const Tensor& gradient) {
#ifdef PYPOSEEXT_WITH_CUDA
  Tensor begin, order, cell;
  std::tuple<Tensor, Tensor> sorted;
  if (uses_cuda(gradient)) {
    const CudaScope scope(gradient);
    void* stream = scope.stream();
    const int64_t frames = arguments.batch * arguments.steps, pixels = arguments.height * arguments.width;
    begin = empty_with_layout({frames, flow_cell_count(arguments) + 1}, ScalarType::Int, gradient, false);
    order = empty_with_layout({frames, pixels}, ScalarType::Int, gradient, false);
    arguments.begin = begin.mutable_data_ptr<int32_t>();
    arguments.order = order.mutable_data_ptr<int32_t>();
    if (cuda::flow_warp_counts_cells(arguments)) {
      cuda::flow_warp_lists(arguments, stream);
    } else {
      cell = empty_with_layout({frames, pixels}, ScalarType::Long, gradient, false);
      arguments.cell = cell.mutable_data_ptr<int64_t>();
      cuda::flow_warp_cells(arguments, stream);
      sorted = stable_sort(cell, 1, false);
      arguments.sorted_cell = std::get<0>(sorted).const_data_ptr<int64_t>();
      arguments.sorted_pixel = std::get<1>(sorted).const_data_ptr<int64_t>();
      cuda::flow_warp_sorted_lists(arguments, stream);
    }
  }
#endif
  PYPOSEEXT_LAUNCH(flow_warp_backward_input, gradient, arguments);
}

}  // namespace pyposeext
