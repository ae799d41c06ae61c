"""Deformable convolution (Dai et al. 2017, section 2.1) and its modulated form, v2 (Zhu et al. 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyposeext.ops._library import empty_with_layout, is_channels_last, pair


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = (1, 1),
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """A convolution whose taps sample `input` at learned offsets: `torchvision.ops.deform_conv2d`, value for value.

    Tap k = (i, j) of output pixel p = (y, x) samples, bilinear, at
    `(y * stride - padding + i * dilation + dy, x * stride - padding + j * dilation + dx)`, times the mask of that tap.

    Args:
        input: [N, C, H, W], float32, float64, float16 or bfloat16, any strides; channels_last stays channels_last.
        offset: [N, 2 * G * kernel height * kernel width, OH, OW], (dy, dx) of each tap in pixels of `input`, the taps
            of the first of G offset groups first; a group of C / G channels shares its offsets. Any float dtype and
            strides. Positions are computed in float32 (float64 where `input` is float64); another dtype is copied.
        weight: [O, C / groups, kernel height, kernel width] in `input`'s dtype; it tells the number of weight groups.
        bias: [O] in `input`'s dtype, or None.
        stride: of the output pixels, one number or (vertical, horizontal).
        padding: pixels of 0 around the input, likewise.
        dilation: pixels from tap to tap, likewise.
        mask: [N, G * kernel height * kernel width, OH, OW] in `input`'s dtype, used as it is (no sigmoid); None is 1.

    Returns:
        [N, O, OH, OW] in `input`'s dtype and layout, summed in float32 (float64 for float64). Pixels outside the map
        are 0, and so is a sample that is not within -1 < y < H and -1 < x < W, NaN and infinity included. Half
        precision is within 2e-3, bfloat16 within 2e-2 of float64, relative to the largest value. On a GPU the samples
        of 16-bit input are rounded to it before they are multiplied, as its matrix units ask.

    Raises:
        RuntimeError: a wrong rank, size, dtype or device; a second derivative.

    Differentiable once with respect to every tensor. At whole pixels the slope is that to the right and below.
    Deterministic on every device. Under autocast `input`, `weight`, `bias` and `mask` go to its dtype, as those of a
    convolution do; `offset` keeps its own, because positions of half precision would be off by whole pixels.
    """
    device = input.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        input, weight = _lowered(input, dtype), _lowered(weight, dtype)
        bias = None if bias is None else _lowered(bias, dtype)
        mask = None if mask is None else _lowered(mask, dtype)
    steps = [list(pair(value)) for value in (stride, padding, dilation)]
    return torch.ops.pyposeext.deform_conv2d(input, offset, weight, bias, mask, *steps)


def _lowered(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """What autocast makes of an argument of a convolution: float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


@torch.library.register_fake("pyposeext::deform_conv2d")
def _fake(input, offset, weight, bias, mask, stride, padding, dilation):  # type: ignore[no-untyped-def]
    size = (input.shape[0], weight.shape[0], *offset.shape[2:])
    return empty_with_layout(input, size, is_channels_last(input))


@torch.library.register_fake("pyposeext::deform_conv2d_backward")
def _fake_backward(gradient, input, offset, weight, mask, stride, padding, dilation, wanted):  # type: ignore[no-untyped-def]
    tensors = [input, offset, weight, None, mask]
    results = [
        empty_with_layout(tensor, tensor.shape, is_channels_last(tensor))
        if want and tensor is not None
        else input.new_empty(0)
        for tensor, want in zip(tensors, wanted, strict=True)
    ]
    if wanted[3]:
        results[3] = input.new_empty(weight.shape[0])
    if not wanted[1]:
        results[1] = offset.new_empty(0)
    return tuple(results)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, weight, _, mask, *ctx.steps = inputs
    ctx.save_for_backward(input, offset, weight, mask)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    wanted = [int(want) for want in ctx.needs_input_grad[:5]]
    results = torch.ops.pyposeext.deform_conv2d_backward(gradient, *ctx.saved_tensors, *ctx.steps, wanted)
    return *(result if want else None for result, want in zip(results, wanted, strict=True)), None, None, None


def _no_double_backward(ctx: Any, *directions: Tensor) -> None:
    raise RuntimeError("deform_conv2d: its gradient cannot be differentiated again")


torch.library.register_autograd("pyposeext::deform_conv2d", _backward, setup_context=_setup)
torch.library.register_autograd("pyposeext::deform_conv2d_backward", _no_double_backward)


def reference(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = (1, 1),
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """The specification in plain PyTorch: as `deform_conv2d`, differentiable as often as wished."""
    (batch, channels, height, width), (outputs, group_channels, *kernel) = input.shape, weight.shape
    (stride_y, stride_x), (padding_y, padding_x), (dilation_y, dilation_x) = pair(stride), pair(padding), pair(dilation)
    out_height, out_width = offset.shape[2:]
    taps = kernel[0] * kernel[1]
    shared = offset.shape[1] // (2 * taps)  # offset groups
    tap = torch.arange(taps, device=input.device)
    rows = torch.arange(out_height, dtype=input.dtype, device=input.device)[:, None] * stride_y - padding_y
    across = torch.arange(out_width, dtype=input.dtype, device=input.device) * stride_x - padding_x
    tap_y, tap_x = (tap // kernel[1] * dilation_y).to(input.dtype), (tap % kernel[1] * dilation_x).to(input.dtype)
    offset = offset.to(input.dtype).reshape(batch, shared, taps, 2, out_height, out_width)
    y = rows + tap_y[:, None, None] + offset[:, :, :, 0]
    x = across + tap_x[:, None, None] + offset[:, :, :, 1]
    inside = (y >= -1) & (y < height) & (x >= -1) & (x < width)
    y, x = torch.where(inside, y, 0.0), torch.where(inside, x, 0.0)
    top, left = y.detach().floor(), x.detach().floor()
    pixels = input.reshape(batch, shared, channels // shared, height * width)
    columns = input.new_zeros(batch, shared, channels // shared, taps, out_height, out_width)
    for i in (0, 1):
        for j in (0, 1):
            weight_of_corner = (y - top if i else 1 - (y - top)) * (x - left if j else 1 - (x - left))
            row, column = (top + i).long(), (left + j).long()
            exists = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = torch.where(exists, row * width + column, 0).reshape(batch, shared, 1, -1)
            corner = pixels.gather(3, index.expand(-1, -1, channels // shared, -1)).reshape(columns.shape)
            columns = columns + weight_of_corner[:, :, None] * torch.where(exists[:, :, None], corner, 0.0)
    if mask is not None:
        columns = columns * mask.reshape(batch, shared, 1, taps, out_height, out_width)
    groups = channels // group_channels
    columns = columns.reshape(batch, groups, group_channels * taps, out_height * out_width)
    result = weight.reshape(groups, outputs // groups, group_channels * taps) @ columns
    result = result.reshape(batch, outputs, out_height, out_width)
    return result if bias is None else result + bias[:, None, None]
