// flow_warp_pool: out[k](p) = bias[k] + sum over frames s of weight[s, k] * heatmaps[s, k](p + flow[s](p)): the temporal
// pooler of Pfister et al. 2015 (Flowing ConvNets, section 3.3). The warped frames are never stored, forward or backward.
#include <optional>

#include "common/op.h"
#include "ops/flow_warp_checks.h"

namespace pyposeext {
namespace {

constexpr const char* kHeatmaps = "[B, S, K, H, W]";

// Whether channels lie next to each other in every frame of [B, S, K, H, W] and pixels are packed.
bool are_frames_channels_last(const Tensor& heatmaps) {
  const int64_t channels = heatmaps.size(2);
  return channels > 1 && heatmaps.stride(2) == 1 && heatmaps.stride(4) == channels && heatmaps.stride(3) == channels * heatmaps.size(4);
}

// [S, K] in the dtype that sums are kept in.
Tensor checked_weight(const char* op, const Tensor& weight, const FlowWarpArguments& arguments, const char* name, const Tensor& maps) {
  floating_dtype(op, "weight", weight);
  check_same_device(op, "weight", weight, name, maps);
  PYPOSEEXT_CHECK(weight.dim() == 2 && weight.size(0) == arguments.steps && weight.size(1) == arguments.channels, op, ": weight must be [",
                  arguments.steps, ", ", arguments.channels, "], got shape ", shape_of(weight));
  return coordinates(op, "weight", weight, arguments.dtype);
}

Tensor checked_bias(const char* op, const Tensor& bias, const FlowWarpArguments& arguments, const Tensor& maps) {
  check_same_device(op, "bias", bias, "heatmaps", maps);
  PYPOSEEXT_CHECK(bias.dim() == 1 && bias.size(0) == arguments.channels, op, ": bias must be [", arguments.channels, "], got shape ", shape_of(bias));
  return coordinates(op, "bias", bias, arguments.dtype);
}

void check_heatmaps(const char* op, const Tensor& heatmaps, const Tensor& gradient, const FlowWarpArguments& arguments) {
  check_dim(op, "heatmaps", heatmaps, 5, kHeatmaps);
  const bool fits = heatmaps.size(0) == arguments.batch && heatmaps.size(1) == arguments.steps && heatmaps.size(2) == arguments.channels &&
                    heatmaps.size(3) == arguments.height && heatmaps.size(4) == arguments.width;
  PYPOSEEXT_CHECK(fits && heatmaps.scalar_type() == gradient.scalar_type(), op, ": heatmaps must be [", arguments.batch, ", ", arguments.steps, ", ",
                  arguments.channels, ", ", arguments.height, ", ", arguments.width, "] in the dtype of gradient, got shape ", shape_of(heatmaps));
  check_same_device(op, "heatmaps", heatmaps, "gradient", gradient);
}

}  // namespace

Tensor flow_warp_pool(const Tensor& heatmaps,             // [B, S, K, H, W]
                      const Tensor& flow,                 // [B, S, 2, H, W]: dx, dy in pixels
                      const Tensor& weight,               // [S, K]
                      const std::optional<Tensor>& bias,  // [K]
                      const std::string& padding_mode) {  // -> [B, K, H, W]
  const char* op = "flow_warp_pool";
  check_dim(op, "heatmaps", heatmaps, 5, kHeatmaps);
  Tensor displacement, factors, offsets;
  FlowWarpArguments arguments = flow_warp_arguments(op, "heatmaps", heatmaps, flow, 5, padding_mode, &displacement);
  factors = checked_weight(op, weight, arguments, "heatmaps", heatmaps);
  if (bias.has_value()) offsets = checked_bias(op, *bias, arguments, heatmaps);
  Tensor out = empty_with_layout({arguments.batch, arguments.channels, arguments.height, arguments.width}, heatmaps.scalar_type(), heatmaps,
                                 are_frames_channels_last(heatmaps));
  if (out.numel() == 0) return out;
  arguments.input = flow_maps(heatmaps);
  arguments.out = flow_maps(out);
  arguments.weight = factors.const_data_ptr();
  arguments.bias = bias.has_value() ? offsets.const_data_ptr() : nullptr;
  PYPOSEEXT_LAUNCH(flow_warp_pool_forward, heatmaps, arguments);
  return out;
}

Tensor flow_warp_pool_backward_heatmaps(const Tensor& gradient,  // [B, K, H, W]
                                        const Tensor& flow,      // [B, S, 2, H, W]
                                        const Tensor& weight,    // [S, K]
                                        const std::string& padding_mode, bool channels_last) {  // -> [B, S, K, H, W]
  const char* op = "flow_warp_pool_backward_heatmaps";
  check_dim(op, "gradient", gradient, 4, "[B, K, H, W]");
  Tensor displacement;
  FlowWarpArguments arguments = flow_warp_arguments(op, "gradient", gradient, flow, 5, padding_mode, &displacement);
  const Tensor factors = checked_weight(op, weight, arguments, "gradient", gradient);
  const Tensor frames = empty_with_layout({arguments.batch * arguments.steps, arguments.channels, arguments.height, arguments.width},
                                          gradient.scalar_type(), gradient, channels_last);
  Tensor out = torch::stable::view(frames, {arguments.batch, arguments.steps, arguments.channels, arguments.height, arguments.width});
  if (out.numel() == 0) return out;
  arguments.gradient = flow_maps(gradient);
  arguments.out = flow_maps(out);
  arguments.weight = factors.const_data_ptr();
  launch_flow_warp_backward_input(arguments, gradient);
  return out;
}

Tensor flow_warp_pool_backward_flow(const Tensor& gradient,             // [B, K, H, W]
                                    const Tensor& heatmaps,             // [B, S, K, H, W]
                                    const Tensor& flow,                 // [B, S, 2, H, W]
                                    const Tensor& weight,               // [S, K]
                                    const std::string& padding_mode) {  // -> [B, S, 2, H, W]
  const char* op = "flow_warp_pool_backward_flow";
  check_dim(op, "gradient", gradient, 4, "[B, K, H, W]");
  Tensor displacement;
  FlowWarpArguments arguments = flow_warp_arguments(op, "gradient", gradient, flow, 5, padding_mode, &displacement);
  const Tensor factors = checked_weight(op, weight, arguments, "gradient", gradient);
  check_heatmaps(op, heatmaps, gradient, arguments);
  Tensor out = empty_with_layout({arguments.batch, arguments.steps, 2, arguments.height, arguments.width}, displacement.scalar_type(), gradient, false);
  if (out.numel() > 0) {
    arguments.gradient = flow_maps(gradient);
    arguments.input = flow_maps(heatmaps);
    arguments.out = flow_maps(out);
    arguments.weight = factors.const_data_ptr();
    PYPOSEEXT_LAUNCH(flow_warp_backward_flow, gradient, arguments);
  }
  return torch::stable::to(out, flow.scalar_type());
}

Tensor flow_warp_pool_backward_weight(const Tensor& gradient,             // [B, K, H, W]
                                      const Tensor& heatmaps,             // [B, S, K, H, W]
                                      const Tensor& flow,                 // [B, S, 2, H, W]
                                      const std::string& padding_mode) {  // -> [S, K], in the dtype that sums are kept in
  const char* op = "flow_warp_pool_backward_weight";
  check_dim(op, "gradient", gradient, 4, "[B, K, H, W]");
  Tensor displacement, partial;
  FlowWarpArguments arguments = flow_warp_arguments(op, "gradient", gradient, flow, 5, padding_mode, &displacement);
  check_heatmaps(op, heatmaps, gradient, arguments);
  Tensor out = empty_with_layout({arguments.steps, arguments.channels}, displacement.scalar_type(), gradient, false);
  if (heatmaps.numel() == 0) return torch::stable::zero_(out);
  arguments.gradient = flow_maps(gradient);
  arguments.input = flow_maps(heatmaps);
  arguments.weight_gradient = out.mutable_data_ptr();
#ifdef PYPOSEEXT_WITH_CUDA
  if (uses_cuda(gradient)) {
    partial = empty_with_layout({cuda::flow_warp_weight_parts(arguments), arguments.steps, arguments.channels}, displacement.scalar_type(), gradient, false);
    arguments.partial = partial.mutable_data_ptr();
  }
#endif
  PYPOSEEXT_LAUNCH(flow_warp_pool_backward_weight, gradient, arguments);
  return out;
}

}  // namespace pyposeext

PYPOSEEXT_OP(flow_warp_pool, "(Tensor heatmaps, Tensor flow, Tensor weight, Tensor? bias, str padding_mode) -> Tensor");
PYPOSEEXT_OP(flow_warp_pool_backward_heatmaps, "(Tensor gradient, Tensor flow, Tensor weight, str padding_mode, bool channels_last) -> Tensor");
PYPOSEEXT_OP(flow_warp_pool_backward_flow, "(Tensor gradient, Tensor heatmaps, Tensor flow, Tensor weight, str padding_mode) -> Tensor");
PYPOSEEXT_OP(flow_warp_pool_backward_weight, "(Tensor gradient, Tensor heatmaps, Tensor flow, str padding_mode) -> Tensor");
