"""RoIAlign (He et al. 2017, Mask R-CNN, section 3), with torchvision's signature and results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyposeext.ops._library import empty_with_layout, is_channels_last, pair, rois_from_boxes


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """The mean of bilinear samples in each of P x Q bins of each box.

    Args:
        input: [B, C, H, W], float32, float64, float16 or bfloat16, any strides; channels_last stays channels_last.
        boxes: rois [K, 5] (image index, x1, y1, x2, y2), or one [K_i, 4] per image; in image pixels, any float dtype.
        output_size: P and Q, or one number for both.
        spatial_scale: pixels of `input` per image pixel.
        sampling_ratio: samples per bin and axis; -1 or 0 takes one per pixel, rounded up.
        aligned: True shifts boxes by half a pixel of `input` (detectron2's ROIAlignV2). False raises a box's sides to
            at least one pixel (torchvision's detection models).

    Returns:
        [K, C, P, Q] in `input`'s dtype, summed in float32 (float64 for float64). A box with a NaN or infinite side
        pools to 0, and so does one with more than 2^22 samples a bin along one axis (2^50 in float64). Half precision
        is within 2e-3, bfloat16 within 2e-2 of float64, relative to the largest value.

    Raises:
        RuntimeError: a wrong rank, size, dtype or device; on the CPU also an image index out of range, which on a GPU
            pools to 0 instead, because finding it would stop the stream.

    Boxes get no gradient. Backward is deterministic on every device.
    """
    height, width = pair(output_size)
    rois = rois_from_boxes(boxes)
    return torch.ops.pyposeext.roi_align(input, rois, height, width, spatial_scale, sampling_ratio, aligned)


@torch.library.register_fake("pyposeext::roi_align")
def _fake(input, boxes, height, width, spatial_scale, sampling_ratio, aligned):  # type: ignore[no-untyped-def]
    size = (boxes.shape[0], input.shape[1], height, width)
    return empty_with_layout(input, size, is_channels_last(input))


@torch.library.register_fake("pyposeext::roi_align_backward")
def _fake_backward(  # type: ignore[no-untyped-def]
    gradient, boxes, batch, channels, height, width, spatial_scale, sampling_ratio, aligned, channels_last
):
    return empty_with_layout(gradient, (batch, channels, height, width), channels_last)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, boxes, _, _, *ctx.options = inputs
    ctx.save_for_backward(boxes)
    ctx.size, ctx.channels_last = input.shape, is_channels_last(input)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    (boxes,) = ctx.saved_tensors
    result = torch.ops.pyposeext.roi_align_backward(gradient, boxes, *ctx.size, *ctx.options, ctx.channels_last)
    return result, *[None] * 6


def _setup_double(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, boxes, _, _, _, _, *options, _ = inputs
    ctx.save_for_backward(boxes)
    ctx.size, ctx.options = gradient.shape[2:], options


def _double_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    (boxes,) = ctx.saved_tensors  # the op is linear in its input, so the derivative of its backward is its forward
    return torch.ops.pyposeext.roi_align(gradient, boxes, *ctx.size, *ctx.options), *[None] * 9


torch.library.register_autograd("pyposeext::roi_align", _backward, setup_context=_setup)
torch.library.register_autograd("pyposeext::roi_align_backward", _double_backward, setup_context=_setup_double)


def bilinear(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Samples of planes [C, H, W] at y [P] by x [Q]: [C, P, Q]. 0 outside [-1, size], clamped inside it."""

    def axis(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inside = (position >= -1) & (position <= size)
        position = torch.where(inside, position, 0.0).clamp(min=0)
        low = position.floor().clamp(max=size - 1)
        return low.long(), (low + 1).clamp(max=size - 1).long(), (position - low) * (low < size - 1), inside

    y_low, y_high, y_fraction, y_inside = axis(y, plane.shape[1])
    x_low, x_high, x_fraction, x_inside = axis(x, plane.shape[2])
    y_fraction, x_fraction = y_fraction[:, None], x_fraction[None]
    top = plane[:, y_low][:, :, x_low] * (1 - x_fraction) + plane[:, y_low][:, :, x_high] * x_fraction
    bottom = plane[:, y_high][:, :, x_low] * (1 - x_fraction) + plane[:, y_high][:, :, x_high] * x_fraction
    return (top * (1 - y_fraction) + bottom * y_fraction) * (y_inside[:, None] & x_inside[None])


def pool_box(plane: Tensor, box: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool) -> Tensor:
    """Reference for one box [4] on planes [C, H, W]: [C, P, Q]."""
    offset = 0.5 if aligned else 0.0
    positions, counts = [], []
    for axis, bins in ((1, size[0]), (0, size[1])):
        start = box[axis] * scale - offset
        length = box[axis + 2] * scale - offset - start
        if not torch.isfinite(start + length):
            return plane.new_zeros(plane.shape[0], *size)
        if not aligned:
            length = length.clamp(min=1)
        count = ratio if ratio > 0 else max(int(torch.ceil(length / bins)), 0)
        steps = (torch.arange(count, dtype=plane.dtype) + 0.5) / max(count, 1)
        positions.append((start + (torch.arange(bins, dtype=plane.dtype)[:, None] + steps) * length / bins).flatten())
        counts.append(count)
    if 0 in counts or 0 in plane.shape:
        return plane.new_zeros(plane.shape[0], *size)
    samples = bilinear(plane, positions[0], positions[1])
    return samples.reshape(-1, size[0], counts[0], size[1], counts[1]).mean(dim=(2, 4))


def reference(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """The specification in plain PyTorch: as `roi_align`, box by box, sample by sample, differentiable."""
    size, rois = pair(output_size), rois_from_boxes(boxes).to(input.dtype)
    pooled = [pool_box(input[int(roi[0])], roi[1:], size, spatial_scale, sampling_ratio, aligned) for roi in rois]
    return torch.stack(pooled) if pooled else input.new_zeros(0, input.shape[1], *size)
