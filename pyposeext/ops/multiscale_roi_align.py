"""RoIAlign over a feature pyramid (Lin et al. 2017, Feature Pyramid Networks, equation 1), all levels in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyposeext.ops._library import empty_with_layout, is_channels_last, pair, rois_from_boxes
from pyposeext.ops.roi_align import pool_box


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_size: float = 224,
    canonical_level: float = 4,
    level_epsilon: float = 1e-6,
    epsilon_inside_log: bool = False,
) -> Tensor:
    """`roi_align` of each box on the level floor(canonical_level + log2(sqrt(area) / canonical_size)), clamped.

    Args:
        features: L maps [B, C, H_l, W_l], finest first, at most 8, of one dtype and device.
        boxes: rois [K, 5] (image index, x1, y1, x2, y2), or one [K_i, 4] per image; in image pixels.
        output_size: P and Q, or one number for both.
        spatial_scales: pixels of each map per image pixel, each half the one before; the first map's level is
            -log2(spatial_scales[0]).
        sampling_ratio, aligned: as in `roi_align`.
        canonical_size, canonical_level: a box of this size in image pixels belongs to this level.
        level_epsilon: a guard against rounding, added after the logarithm (torchvision, 1e-6), or inside it where
            `epsilon_inside_log` (detectron2, 1e-8).

    Returns:
        [K, C, P, Q] in the dtype and layout of the first map. Errors, gradients and accuracy as in `roi_align`.
    """
    height, width = pair(output_size)
    return torch.ops.pyposeext.multiscale_roi_align(
        list(features),
        rois_from_boxes(boxes),
        height,
        width,
        list(spatial_scales),
        sampling_ratio,
        aligned,
        canonical_size,
        canonical_level,
        level_epsilon,
        epsilon_inside_log,
    )


@torch.library.register_fake("pyposeext::multiscale_roi_align")
def _fake(features, boxes, height, width, *options):  # type: ignore[no-untyped-def]
    size = (boxes.shape[0], features[0].shape[1], height, width)
    return empty_with_layout(features[0], size, is_channels_last(features[0]))


@torch.library.register_fake("pyposeext::multiscale_roi_align_backward")
def _fake_backward(gradient, boxes, batch, channels, heights, widths, *options):  # type: ignore[no-untyped-def]
    sizes = zip(heights, widths, strict=True)
    return [empty_with_layout(gradient, (batch, channels, height, width), options[-1]) for height, width in sizes]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, _, _, *ctx.options = inputs
    ctx.save_for_backward(boxes)
    ctx.batch, ctx.channels = features[0].shape[:2]
    ctx.heights, ctx.widths = [map.shape[2] for map in features], [map.shape[3] for map in features]
    ctx.channels_last = is_channels_last(features[0])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    (boxes,) = ctx.saved_tensors
    gradients = torch.ops.pyposeext.multiscale_roi_align_backward(
        gradient, boxes, ctx.batch, ctx.channels, ctx.heights, ctx.widths, *ctx.options, ctx.channels_last
    )
    return gradients, *[None] * 10


def _setup_double(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    gradient, boxes, _, _, _, _, *options, _ = inputs
    ctx.save_for_backward(boxes)
    ctx.size, ctx.options = gradient.shape[2:], options


def _double_backward(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    (boxes,) = ctx.saved_tensors  # linear in the features: the derivative of the backward is the forward
    return torch.ops.pyposeext.multiscale_roi_align(list(gradients), boxes, *ctx.size, *ctx.options), *[None] * 13


torch.library.register_autograd("pyposeext::multiscale_roi_align", _backward, setup_context=_setup)
torch.library.register_autograd(
    "pyposeext::multiscale_roi_align_backward", _double_backward, setup_context=_setup_double
)


def level_of(
    area: Tensor,
    spatial_scales: Sequence[float],
    canonical_size: float,
    canonical_level: float,
    level_epsilon: float,
    epsilon_inside_log: bool,
) -> int:
    """Reference for the index of the level that an area [] belongs to; 0 where the area is negative or NaN."""
    ratio = torch.sqrt(area) / canonical_size
    if epsilon_inside_log:
        level = torch.floor(canonical_level + torch.log2(ratio + level_epsilon))
    else:
        level = torch.floor(canonical_level + torch.log2(ratio) + level_epsilon)
    finest = round(-math.log2(spatial_scales[0]))
    return int(torch.nan_to_num(level - finest, nan=0.0).clamp(0, len(spatial_scales) - 1))


def reference(
    features: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_size: float = 224,
    canonical_level: float = 4,
    level_epsilon: float = 1e-6,
    epsilon_inside_log: bool = False,
) -> Tensor:
    """The specification in plain PyTorch: as `multiscale_roi_align`, box by box, differentiable."""
    size, rois = pair(output_size), rois_from_boxes(boxes).to(features[0].dtype)
    rule = (canonical_size, canonical_level, level_epsilon, epsilon_inside_log)
    pooled = []
    for roi in rois:
        index = level_of((roi[3] - roi[1]) * (roi[4] - roi[2]), spatial_scales, *rule)
        plane = features[index][int(roi[0])]
        pooled.append(pool_box(plane, roi[1:], size, spatial_scales[index], sampling_ratio, aligned))
    return torch.stack(pooled) if pooled else features[0].new_zeros(0, features[0].shape[1], *size)
