"""Warping of maps along optical flow (Pfister et al. 2015, Flowing ConvNets, section 3), in pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyposeext.ops._library import empty_with_layout, is_channels_last


def flow_warp(input: Tensor, flow: Tensor, padding_mode: str = "zeros") -> Tensor:
    """Bilinear samples of each map at the pixel plus its flow: out(p) = input(p + flow(p)).

    The values of `F.grid_sample(align_corners=True)`, without building a grid.

    Args:
        input: [B, C, H, W], float32, float64, float16 or bfloat16, any strides; channels_last stays channels_last.
        flow: [B, 2, H, W], (dx, dy) in pixels of `input`, any strides and float dtype. Positions are computed in
            float32 (float64 where `input` is float64); flow of another dtype is copied.
        padding_mode: "zeros": pixels outside the map are 0. "border": positions are clamped to the map.

    Returns:
        [B, C, H, W] in `input`'s dtype and layout, summed in float32 (float64 for float64). Where the flow is NaN or
        infinite the output is 0. A neighbour of weight 0 is not read, so zero flow returns the input as it is. Half
        precision is within 1e-3, bfloat16 within 8e-3 of float64, relative to the largest value.

    Raises:
        RuntimeError: a wrong rank, size, dtype, device or padding mode; a second derivative of the flow's gradient.

    Differentiable with respect to both. At whole pixels the flow's gradient is the slope to the right and below; under
    "border" it is 0 at the edge and beyond. The gradient of `input` can be differentiated again. Deterministic on every
    device.
    """
    return torch.ops.pyposeext.flow_warp(input, flow, padding_mode)


@torch.library.register_fake("pyposeext::flow_warp")
def _fake(input, flow, padding_mode):  # type: ignore[no-untyped-def]
    return empty_with_layout(input, input.shape, is_channels_last(input))


@torch.library.register_fake("pyposeext::flow_warp_backward_input")
def _fake_backward_input(gradient, flow, padding_mode, channels_last):  # type: ignore[no-untyped-def]
    return empty_with_layout(gradient, gradient.shape, channels_last)


@torch.library.register_fake("pyposeext::flow_warp_backward_flow")
def _fake_backward_flow(gradient, input, flow, padding_mode):  # type: ignore[no-untyped-def]
    return empty_with_layout(flow, flow.shape, is_channels_last(flow))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, flow, ctx.padding_mode = inputs
    ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, flow)
    ctx.channels_last = is_channels_last(input)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    input, flow = ctx.saved_tensors
    of_input = of_flow = None
    if ctx.needs_input_grad[0]:
        of_input = torch.ops.pyposeext.flow_warp_backward_input(gradient, flow, ctx.padding_mode, ctx.channels_last)
    if ctx.needs_input_grad[1]:
        of_flow = torch.ops.pyposeext.flow_warp_backward_flow(gradient, input, flow, ctx.padding_mode)
    return of_input, of_flow, None


def _setup_double(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, flow, ctx.padding_mode, _ = inputs
    ctx.save_for_backward(gradient if ctx.needs_input_grad[1] else None, flow)


def _double_backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    # <direction, backward_input(gradient, flow)> = <gradient, flow_warp(direction, flow)>: the two derivatives of the
    # forward, with `direction` as its input.
    gradient, flow = ctx.saved_tensors
    of_gradient = of_flow = None
    if ctx.needs_input_grad[0]:
        of_gradient = torch.ops.pyposeext.flow_warp(direction, flow, ctx.padding_mode)
    if ctx.needs_input_grad[1]:
        of_flow = torch.ops.pyposeext.flow_warp_backward_flow(gradient, direction, flow, ctx.padding_mode)
    return of_gradient, of_flow, None, None


def _no_double_backward(ctx: Any, direction: Tensor) -> None:
    raise RuntimeError("flow_warp: the gradient with respect to flow cannot be differentiated again")


torch.library.register_autograd("pyposeext::flow_warp", _backward, setup_context=_setup)
torch.library.register_autograd("pyposeext::flow_warp_backward_input", _double_backward, setup_context=_setup_double)
torch.library.register_autograd("pyposeext::flow_warp_backward_flow", _no_double_backward)


def reference(input: Tensor, flow: Tensor, padding_mode: str = "zeros") -> Tensor:
    """The specification in plain PyTorch: as `flow_warp`, differentiable as often as wished."""
    batch, channels, height, width = input.shape
    rows = torch.arange(height, dtype=input.dtype, device=input.device)[:, None]
    columns = torch.arange(width, dtype=input.dtype, device=input.device)
    x, y = columns + flow[:, 0].to(input.dtype), rows + flow[:, 1].to(input.dtype)
    finite = torch.isfinite(x) & torch.isfinite(y)
    x, y = torch.where(finite, x, -9.0), torch.where(finite, y, -9.0)
    if padding_mode == "border":
        x = torch.where(x <= 0, 0.0, torch.where(x >= width - 1, width - 1.0, x))
        y = torch.where(y <= 0, 0.0, torch.where(y >= height - 1, height - 1.0, y))
    left, top = x.floor().detach(), y.floor().detach()
    total = input.new_zeros(batch, channels, height, width)
    for i in (0, 1):
        for j in (0, 1):
            weight = (y - top if i else 1 - (y - top)) * (x - left if j else 1 - (x - left))
            row, column = (top + i).clamp(-1, height).long(), (left + j).clamp(-1, width).long()
            exists = finite & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = torch.where(exists, row * width + column, 0).reshape(batch, 1, -1).expand(-1, channels, -1)
            corner = input.flatten(2).gather(2, index).reshape(total.shape)
            read = exists[:, None] & ((weight != 0)[:, None] | torch.isfinite(corner))
            total = total + weight[:, None] * torch.where(read, corner, 0.0)
    return total
