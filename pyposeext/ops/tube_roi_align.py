"""Tube RoIAlign (Girdhar et al. 2018, Detect-and-Track, section 3.2): RoIAlign of a box that moves through a clip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyposeext.ops._library import empty_with_layout, is_channels_last, pair
from pyposeext.ops.roi_align import pool_box


def tube_roi_align(
    input: Tensor,
    tubes: Tensor,
    batch_index: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """`roi_align` of box t of each tube on frame t of its clip; time is kept.

    Args:
        input: [B, C, T, H, W], float32, float64, float16 or bfloat16, any strides; channels_last_3d stays so.
        tubes: [N, T, 4], x1, y1, x2, y2 in image pixels, any float dtype.
        batch_index: int64 [N], the clip each tube belongs to.
        output_size, spatial_scale, sampling_ratio, aligned: as in `roi_align`.

    Returns:
        [N, C, T, P, Q] in `input`'s dtype. Errors, gradients and accuracy as in `roi_align`.
    """
    height, width = pair(output_size)
    return torch.ops.pyposeext.tube_roi_align(
        input, tubes, batch_index, height, width, spatial_scale, sampling_ratio, aligned
    )


@torch.library.register_fake("pyposeext::tube_roi_align")
def _fake(input, tubes, batch_index, height, width, *options):  # type: ignore[no-untyped-def]
    size = (tubes.shape[0], input.shape[1], input.shape[2], height, width)
    return empty_with_layout(input, size, is_channels_last(input))


@torch.library.register_fake("pyposeext::tube_roi_align_backward")
def _fake_backward(gradient, tubes, batch_index, batch, channels, height, width, *options):  # type: ignore[no-untyped-def]
    return empty_with_layout(gradient, (batch, channels, gradient.shape[2], height, width), options[-1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, tubes, batch_index, _, _, *ctx.options = inputs
    ctx.save_for_backward(tubes, batch_index)
    batch, channels, _, height, width = input.shape
    ctx.size, ctx.channels_last = (batch, channels, height, width), is_channels_last(input)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    result = torch.ops.pyposeext.tube_roi_align_backward(
        gradient, *ctx.saved_tensors, *ctx.size, *ctx.options, ctx.channels_last
    )
    return result, *[None] * 7


def _setup_double(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, tubes, batch_index, _, _, _, _, *options, _ = inputs
    ctx.save_for_backward(tubes, batch_index)
    ctx.size, ctx.options = gradient.shape[3:], options


def _double_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    # Linear in the input: the derivative of the backward is the forward.
    result = torch.ops.pyposeext.tube_roi_align(gradient, *ctx.saved_tensors, *ctx.size, *ctx.options)
    return result, *[None] * 10


torch.library.register_autograd("pyposeext::tube_roi_align", _backward, setup_context=_setup)
torch.library.register_autograd("pyposeext::tube_roi_align_backward", _double_backward, setup_context=_setup_double)


def reference(
    input: Tensor,
    tubes: Tensor,
    batch_index: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """The specification in plain PyTorch: as `tube_roi_align`, box by box, differentiable."""
    size = pair(output_size)
    boxes = tubes.to(input.dtype)
    pooled = [
        torch.stack(
            [
                pool_box(input[int(index), :, t], box, size, spatial_scale, sampling_ratio, aligned)
                for t, box in enumerate(tube)
            ],
            dim=1,
        )
        for tube, index in zip(boxes, batch_index, strict=True)
    ]
    return torch.stack(pooled) if pooled else input.new_zeros(0, input.shape[1], input.shape[2], *size)
