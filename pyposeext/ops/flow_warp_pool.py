"""The temporal pooler of Flowing ConvNets (Pfister et al. 2015, section 3): frames' maps, warped and summed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyposeext.ops._library import empty_with_layout
from pyposeext.ops.flow_warp import reference as warp_reference


def flow_warp_pool(
    heatmaps: Tensor, flow: Tensor, weight: Tensor, bias: Tensor | None = None, padding_mode: str = "zeros"
) -> Tensor:
    """bias[k] + the sum over frames s of weight[s, k] * flow_warp(heatmaps[:, s], flow[:, s])[:, k].

    The warped frames are never stored, neither forward nor backward.

    Args:
        heatmaps: [B, S, K, H, W], float32, float64, float16 or bfloat16, any strides; S = 2n + 1 frames around the one
            that the result belongs to.
        flow: [B, S, 2, H, W], (dx, dy) in pixels of a map, from the reference frame to frame s, any strides and float
            dtype. Positions are computed in float32 (float64 where `heatmaps` is float64); flow of another dtype is
            copied.
        weight: [S, K], any float dtype: one curve over time for each joint.
        bias: [K] or None, any float dtype.
        padding_mode: "zeros": pixels outside the map are 0. "border": positions are clamped to the map.

    Returns:
        [B, K, H, W] in `heatmaps`' dtype, channels_last where each frame is, summed in float32 (float64 for float64)
        and rounded once. Where a frame's flow is NaN or infinite that frame adds weight * 0; a neighbour of weight 0 in
        the bilinear sum is not read. Half precision is within 1e-3, bfloat16 within 8e-3 of float64, relative to the
        largest value.

    Raises:
        RuntimeError: a wrong rank, size, dtype, device or padding mode; a second derivative of the flow's gradient.

    Differentiable with respect to heatmaps, flow, weight and bias; all gradients but the flow's can be differentiated
    again. Deterministic on every device.
    """
    return torch.ops.pyposeext.flow_warp_pool(heatmaps, flow, weight, bias, padding_mode)


def _are_frames_channels_last(heatmaps: Tensor) -> bool:
    channels, width = heatmaps.shape[2], heatmaps.shape[4]
    return bool(channels > 1 and heatmaps.stride()[2:] == (1, channels * width, channels))


@torch.library.register_fake("pyposeext::flow_warp_pool")
def _fake(heatmaps, flow, weight, bias, padding_mode):  # type: ignore[no-untyped-def]
    batch, _, channels, height, width = heatmaps.shape
    return empty_with_layout(heatmaps, (batch, channels, height, width), _are_frames_channels_last(heatmaps))


@torch.library.register_fake("pyposeext::flow_warp_pool_backward_heatmaps")
def _fake_backward_heatmaps(gradient, flow, weight, padding_mode, channels_last):  # type: ignore[no-untyped-def]
    batch, channels, height, width = gradient.shape
    frames = empty_with_layout(gradient, (batch * flow.shape[1], channels, height, width), channels_last)
    return frames.view(batch, flow.shape[1], channels, height, width)


@torch.library.register_fake("pyposeext::flow_warp_pool_backward_flow")
def _fake_backward_flow(gradient, heatmaps, flow, weight, padding_mode):  # type: ignore[no-untyped-def]
    return torch.empty_like(flow, memory_format=torch.contiguous_format)


@torch.library.register_fake("pyposeext::flow_warp_pool_backward_weight")
def _fake_backward_weight(gradient, heatmaps, flow, padding_mode):  # type: ignore[no-untyped-def]
    dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    return gradient.new_empty((flow.shape[1], gradient.shape[1]), dtype=dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    heatmaps, flow, weight, bias, ctx.padding_mode = inputs
    reads_maps = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    ctx.save_for_backward(heatmaps if reads_maps else None, flow, weight)
    ctx.channels_last = _are_frames_channels_last(heatmaps)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    heatmaps, flow, weight = ctx.saved_tensors
    ops = torch.ops.pyposeext
    of_heatmaps = of_flow = of_weight = of_bias = None
    if ctx.needs_input_grad[0]:
        of_heatmaps = ops.flow_warp_pool_backward_heatmaps(gradient, flow, weight, ctx.padding_mode, ctx.channels_last)
    if ctx.needs_input_grad[1]:
        of_flow = ops.flow_warp_pool_backward_flow(gradient, heatmaps, flow, weight, ctx.padding_mode)
    if ctx.needs_input_grad[2]:
        of_weight = ops.flow_warp_pool_backward_weight(gradient, heatmaps, flow, ctx.padding_mode).to(weight.dtype)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[3]:
        # Axis by axis: a sum to a single number would depend on the number of threads.
        exact = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        of_bias = gradient.sum(3, dtype=exact).sum(2).sum(0).to(ctx.bias_dtype)
    return of_heatmaps, of_flow, of_weight, of_bias, None


def _setup_backward_heatmaps(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, flow, weight, ctx.padding_mode, _ = inputs
    ctx.save_for_backward(gradient, flow, weight)


def _differentiate_backward_heatmaps(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    # <direction, backward_heatmaps(gradient, flow, weight)> = <gradient, flow_warp_pool(direction, flow, weight)>: the
    # derivatives of the forward, with `direction` as its heatmaps.
    gradient, flow, weight = ctx.saved_tensors
    ops, mode = torch.ops.pyposeext, ctx.padding_mode
    of_gradient = of_flow = of_weight = None
    if ctx.needs_input_grad[0]:
        of_gradient = ops.flow_warp_pool(direction, flow, weight, None, mode)
    if ctx.needs_input_grad[1]:
        of_flow = ops.flow_warp_pool_backward_flow(gradient, direction, flow, weight, mode)
    if ctx.needs_input_grad[2]:
        of_weight = ops.flow_warp_pool_backward_weight(gradient, direction, flow, mode).to(weight.dtype)
    return of_gradient, of_flow, of_weight, None, None


def _setup_backward_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, heatmaps, flow, ctx.padding_mode = inputs
    ctx.save_for_backward(gradient, heatmaps, flow)
    ctx.channels_last = _are_frames_channels_last(heatmaps)


def _differentiate_backward_weight(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    # The same with `direction` as the weight.
    gradient, heatmaps, flow = ctx.saved_tensors
    ops, mode = torch.ops.pyposeext, ctx.padding_mode
    of_gradient = of_heatmaps = of_flow = None
    if ctx.needs_input_grad[0]:
        of_gradient = ops.flow_warp_pool(heatmaps, flow, direction, None, mode)
    if ctx.needs_input_grad[1]:
        of_heatmaps = ops.flow_warp_pool_backward_heatmaps(gradient, flow, direction, mode, ctx.channels_last)
    if ctx.needs_input_grad[2]:
        of_flow = ops.flow_warp_pool_backward_flow(gradient, heatmaps, flow, direction, mode)
    return of_gradient, of_heatmaps, of_flow, None


def _no_double_backward(ctx: Any, direction: Tensor) -> None:
    raise RuntimeError("flow_warp_pool: the gradient with respect to flow cannot be differentiated again")


torch.library.register_autograd("pyposeext::flow_warp_pool", _backward, setup_context=_setup)
torch.library.register_autograd(
    "pyposeext::flow_warp_pool_backward_heatmaps",
    _differentiate_backward_heatmaps,
    setup_context=_setup_backward_heatmaps,
)
torch.library.register_autograd(
    "pyposeext::flow_warp_pool_backward_weight", _differentiate_backward_weight, setup_context=_setup_backward_weight
)
torch.library.register_autograd("pyposeext::flow_warp_pool_backward_flow", _no_double_backward)


def reference(
    heatmaps: Tensor, flow: Tensor, weight: Tensor, bias: Tensor | None = None, padding_mode: str = "zeros"
) -> Tensor:
    """The specification in plain PyTorch: every frame warped and stored, then the weighted sum."""
    batch, steps = heatmaps.shape[:2]
    warped = warp_reference(heatmaps.flatten(0, 1), flow.flatten(0, 1), padding_mode)
    frames = warped.reshape(batch, steps, *heatmaps.shape[2:])
    total = (frames * weight.to(heatmaps.dtype)[None, :, :, None, None]).sum(1)
    return total if bias is None else total + bias.to(heatmaps.dtype)[:, None, None]
