// flow_warp: out(p) = input(p + flow(p)), bilinear, in pixels: F.grid_sample(align_corners=True) without the grid.
#include "common/op.h"
#include "ops/flow_warp_checks.h"

namespace pyposeext {

Tensor flow_warp(const Tensor& input,                // [B, C, H, W]
                 const Tensor& flow,                 // [B, 2, H, W]: dx, dy in pixels
                 const std::string& padding_mode) {  // -> [B, C, H, W]
  check_dim("flow_warp", "input", input, 4, "[B, C, H, W]");
  Tensor displacement;
  FlowWarpArguments arguments = flow_warp_arguments("flow_warp", "input", input, flow, 4, padding_mode, &displacement);
  Tensor out = empty_with_layout({arguments.batch, arguments.channels, arguments.height, arguments.width}, input.scalar_type(), input,
                                 is_channels_last(input));
  if (out.numel() == 0) return out;
  arguments.input = flow_maps(input);
  arguments.out = flow_maps(out);
  PYPOSEEXT_LAUNCH(flow_warp_forward, input, arguments);
  return out;
}

Tensor flow_warp_backward_input(const Tensor& gradient,  // [B, C, H, W]
                                const Tensor& flow,      // [B, 2, H, W]
                                const std::string& padding_mode, bool channels_last) {  // -> [B, C, H, W]
  const char* op = "flow_warp_backward_input";
  check_dim(op, "gradient", gradient, 4, "[B, C, H, W]");
  Tensor displacement;
  FlowWarpArguments arguments = flow_warp_arguments(op, "gradient", gradient, flow, 4, padding_mode, &displacement);
  Tensor out = empty_with_layout({arguments.batch, arguments.channels, arguments.height, arguments.width}, gradient.scalar_type(), gradient, channels_last);
  if (out.numel() == 0) return out;
  arguments.gradient = flow_maps(gradient);
  arguments.out = flow_maps(out);
  launch_flow_warp_backward_input(arguments, gradient);
  return out;
}

Tensor flow_warp_backward_flow(const Tensor& gradient,             // [B, C, H, W]
                               const Tensor& input,                // [B, C, H, W]
                               const Tensor& flow,                 // [B, 2, H, W]
                               const std::string& padding_mode) {  // -> [B, 2, H, W]
  const char* op = "flow_warp_backward_flow";
  check_dim(op, "gradient", gradient, 4, "[B, C, H, W]");
  Tensor displacement;
  FlowWarpArguments arguments = flow_warp_arguments(op, "gradient", gradient, flow, 4, padding_mode, &displacement);
  PYPOSEEXT_CHECK(shape_of(input) == shape_of(gradient) && input.scalar_type() == gradient.scalar_type(), op,
                  ": input must have the shape and dtype of gradient, ", shape_of(gradient), ", got shape ", shape_of(input));
  check_same_device(op, "input", input, "gradient", gradient);
  Tensor out = empty_with_layout({arguments.batch, 2, arguments.height, arguments.width}, displacement.scalar_type(), gradient, is_channels_last(flow));
  if (out.numel() > 0) {
    arguments.gradient = flow_maps(gradient);
    arguments.input = flow_maps(input);
    arguments.out = flow_maps(out);
    PYPOSEEXT_LAUNCH(flow_warp_backward_flow, gradient, arguments);
  }
  return torch::stable::to(out, flow.scalar_type());
}

}  // namespace pyposeext

PYPOSEEXT_OP(flow_warp, "(Tensor input, Tensor flow, str padding_mode) -> Tensor");
PYPOSEEXT_OP(flow_warp_backward_input, "(Tensor gradient, Tensor flow, str padding_mode, bool channels_last) -> Tensor");
PYPOSEEXT_OP(flow_warp_backward_flow, "(Tensor gradient, Tensor input, Tensor flow, str padding_mode) -> Tensor");
