// flow_warp: out(p) = input(p + flow(p)), bilinear, in pixels: F.grid_sample(align_corners=True) without the grid.
#include "ops/flow_warp.h"

#include "common/op.h"
#include "common/sort.h"
#include "common/tensor.h"

namespace pyposeext {
namespace {

StridedMaps maps_of(const Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()), {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)}};
}

// `maps` is what the flow moves: the input, or the gradient of the output. Flow of another dtype than coordinates have is
// converted, which copies it.
FlowWarpArguments checked(const char* op, const char* name, const Tensor& maps, const Tensor& flow, const std::string& padding_mode,
                          Tensor* converted) {
  check_dim(op, name, maps, 4, "[B, C, H, W]");
  const DType dtype = floating_dtype(op, name, maps);
  check_device(op, name, maps);
  floating_dtype(op, "flow", flow);
  check_same_device(op, "flow", flow, name, maps);
  const bool fits = flow.dim() == 4 && flow.size(0) == maps.size(0) && flow.size(1) == 2 && flow.size(2) == maps.size(2) && flow.size(3) == maps.size(3);
  PYPOSEEXT_CHECK(fits, op, ": flow must be [", maps.size(0), ", 2, ", maps.size(2), ", ", maps.size(3), "], got shape ", shape_of(flow));
  PYPOSEEXT_CHECK(padding_mode == "zeros" || padding_mode == "border", op, ": padding_mode must be zeros or border, got ", padding_mode);
  *converted = torch::stable::to(flow, accumulate_dtype(dtype));
  FlowWarpArguments arguments{};
  arguments.dtype = dtype;
  arguments.batch = maps.size(0);
  arguments.channels = maps.size(1);
  arguments.height = maps.size(2);
  arguments.width = maps.size(3);
  arguments.border = padding_mode == "border";
  arguments.flow = maps_of(*converted);
  return arguments;
}

}  // namespace

Tensor flow_warp(const Tensor& input,                // [B, C, H, W]
                 const Tensor& flow,                 // [B, 2, H, W]: dx, dy in pixels
                 const std::string& padding_mode) {  // -> [B, C, H, W]
  Tensor displacement;
  FlowWarpArguments arguments = checked("flow_warp", "input", input, flow, padding_mode, &displacement);
  Tensor out = empty_with_layout({arguments.batch, arguments.channels, arguments.height, arguments.width}, input.scalar_type(), input,
                                 is_channels_last(input));
  if (out.numel() == 0) return out;
  arguments.input = maps_of(input);
  arguments.out = maps_of(out);
  PYPOSEEXT_LAUNCH(flow_warp_forward, input, arguments);
  return out;
}

Tensor flow_warp_backward_input(const Tensor& gradient,  // [B, C, H, W]
                                const Tensor& flow,      // [B, 2, H, W]
                                const std::string& padding_mode, bool channels_last) {  // -> [B, C, H, W]
  Tensor displacement;
  FlowWarpArguments arguments = checked("flow_warp_backward_input", "gradient", gradient, flow, padding_mode, &displacement);
  Tensor out = empty_with_layout({arguments.batch, arguments.channels, arguments.height, arguments.width}, gradient.scalar_type(), gradient, channels_last);
  if (out.numel() == 0) return out;
  arguments.gradient = maps_of(gradient);
  arguments.out = maps_of(out);
  Tensor cell;
  std::tuple<Tensor, Tensor> sorted;
#ifdef PYPOSEEXT_WITH_CUDA
  if (uses_cuda(gradient)) {
    const CudaScope scope(gradient);
    cell = empty_with_layout({arguments.batch, arguments.height * arguments.width}, ScalarType::Long, gradient, false);
    arguments.cell = cell.mutable_data_ptr<int64_t>();
    cuda::flow_warp_cells(arguments, scope.stream());
    sorted = stable_sort(cell, 1, false);
    arguments.sorted_cell = std::get<0>(sorted).const_data_ptr<int64_t>();
    arguments.order = std::get<1>(sorted).const_data_ptr<int64_t>();
  }
#endif
  PYPOSEEXT_LAUNCH(flow_warp_backward_input, gradient, arguments);
  return out;
}

Tensor flow_warp_backward_flow(const Tensor& gradient,             // [B, C, H, W]
                               const Tensor& input,                // [B, C, H, W]
                               const Tensor& flow,                 // [B, 2, H, W]
                               const std::string& padding_mode) {  // -> [B, 2, H, W]
  const char* op = "flow_warp_backward_flow";
  Tensor displacement;
  FlowWarpArguments arguments = checked(op, "gradient", gradient, flow, padding_mode, &displacement);
  PYPOSEEXT_CHECK(shape_of(input) == shape_of(gradient) && input.scalar_type() == gradient.scalar_type(), op,
                  ": input must have the shape and dtype of gradient, ", shape_of(gradient), ", got shape ", shape_of(input));
  check_same_device(op, "input", input, "gradient", gradient);
  Tensor out = empty_with_layout({arguments.batch, 2, arguments.height, arguments.width}, displacement.scalar_type(), gradient, is_channels_last(flow));
  if (out.numel() > 0) {
    arguments.gradient = maps_of(gradient);
    arguments.input = maps_of(input);
    arguments.out = maps_of(out);
    PYPOSEEXT_LAUNCH(flow_warp_backward_flow, gradient, arguments);
  }
  return torch::stable::to(out, flow.scalar_type());
}

}  // namespace pyposeext

PYPOSEEXT_OP(flow_warp, "(Tensor input, Tensor flow, str padding_mode) -> Tensor");
PYPOSEEXT_OP(flow_warp_backward_input, "(Tensor gradient, Tensor flow, str padding_mode, bool channels_last) -> Tensor");
PYPOSEEXT_OP(flow_warp_backward_flow, "(Tensor gradient, Tensor input, Tensor flow, str padding_mode) -> Tensor");
