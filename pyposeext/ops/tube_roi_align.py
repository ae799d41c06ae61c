"""Tube RoIAlign (Girdhar et al. 2018, Detect-and-Track, section 3.2): RoIAlign of a box that moves through a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyposeext.ops._library import empty_with_layout, is_channels_last, pair
from pyposeext.ops.multiscale_roi_align import level_of
from pyposeext.ops.roi_align import pool_box


def tube_roi_align(
    input: Tensor | Sequence[Tensor],
    tubes: Tensor,
    batch_index: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    canonical_size: float = 224,
    canonical_level: float = 4,
    level_epsilon: float = 1e-6,
    epsilon_inside_log: bool = True,
    legacy_plus_one: bool = True,
) -> Tensor:
    """`roi_align` of box t of each tube on frame t of its clip; time is kept.

    Args:
        input: [B, C, T, H, W], float32, float64, float16 or bfloat16, any strides; channels_last_3d stays so. Or L maps
            [B, C, T, H_l, W_l], finest first, at most 8: a whole tube is then pooled from one of them, chosen as in
            `multiscale_roi_align` by the mean area of its T boxes.
        tubes: [N, T, 4], x1, y1, x2, y2 in image pixels, any float dtype.
        batch_index: int64 [N], the clip each tube belongs to.
        output_size, sampling_ratio, aligned: as in `roi_align`.
        spatial_scale: pixels of `input` per image pixel; for L maps one each, each half the one before.
        canonical_size, canonical_level, level_epsilon, epsilon_inside_log: as in `multiscale_roi_align`. Read only for
            L maps; the defaults, also of the next, are those of Detect-and-Track's released code.
        legacy_plus_one: the sides of a box are x2 - x1 + 1 and y2 - y1 + 1 in the area that chooses the level.

    Returns:
        [N, C, T, P, Q] in the dtype and layout of `input` or its first map. Errors, gradients and accuracy as in
        `roi_align`.
    """
    height, width = pair(output_size)
    if isinstance(input, Tensor):
        if not isinstance(spatial_scale, int | float):
            raise ValueError(f"spatial_scale must be one number for one input, got {spatial_scale}")
        return torch.ops.pyposeext.tube_roi_align(
            input, tubes, batch_index, height, width, spatial_scale, sampling_ratio, aligned
        )
    if isinstance(spatial_scale, int | float):
        raise ValueError(f"spatial_scale must hold one scale for each map of input, got {spatial_scale}")
    return torch.ops.pyposeext.multiscale_tube_roi_align(
        list(input),
        tubes,
        batch_index,
        height,
        width,
        list(spatial_scale),
        sampling_ratio,
        aligned,
        canonical_size,
        canonical_level,
        level_epsilon,
        epsilon_inside_log,
        legacy_plus_one,
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


@torch.library.register_fake("pyposeext::multiscale_tube_roi_align")
def _fake_levels(features, tubes, batch_index, height, width, *options):  # type: ignore[no-untyped-def]
    size = (tubes.shape[0], *features[0].shape[1:3], height, width)
    return empty_with_layout(features[0], size, is_channels_last(features[0]))


@torch.library.register_fake("pyposeext::multiscale_tube_roi_align_backward")
def _fake_levels_backward(gradient, tubes, batch_index, batch, channels, heights, widths, *options):  # type: ignore[no-untyped-def]
    leading = (batch, channels, gradient.shape[2])
    sizes = zip(heights, widths, strict=True)
    return [empty_with_layout(gradient, (*leading, height, width), options[-1]) for height, width in sizes]


def _setup_levels(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, tubes, batch_index, _, _, *ctx.options = inputs
    ctx.save_for_backward(tubes, batch_index)
    ctx.batch, ctx.channels = features[0].shape[:2]
    ctx.heights, ctx.widths = [map.shape[3] for map in features], [map.shape[4] for map in features]
    ctx.channels_last = is_channels_last(features[0])


def _backward_levels(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    gradients = torch.ops.pyposeext.multiscale_tube_roi_align_backward(
        gradient,
        *ctx.saved_tensors,
        ctx.batch,
        ctx.channels,
        ctx.heights,
        ctx.widths,
        *ctx.options,
        ctx.channels_last,
    )
    return gradients, *[None] * 12


def _setup_double_levels(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    gradient, tubes, batch_index, _, _, _, _, *options, _ = inputs
    ctx.save_for_backward(tubes, batch_index)
    ctx.size, ctx.options = gradient.shape[3:], options


def _double_backward_levels(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    result = torch.ops.pyposeext.multiscale_tube_roi_align(list(gradients), *ctx.saved_tensors, *ctx.size, *ctx.options)
    return result, *[None] * 15


torch.library.register_autograd("pyposeext::multiscale_tube_roi_align", _backward_levels, setup_context=_setup_levels)
torch.library.register_autograd(
    "pyposeext::multiscale_tube_roi_align_backward", _double_backward_levels, setup_context=_setup_double_levels
)


def reference(
    input: Tensor | Sequence[Tensor],
    tubes: Tensor,
    batch_index: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    canonical_size: float = 224,
    canonical_level: float = 4,
    level_epsilon: float = 1e-6,
    epsilon_inside_log: bool = True,
    legacy_plus_one: bool = True,
) -> Tensor:
    """The specification in plain PyTorch: as `tube_roi_align`, box by box, differentiable."""
    size = pair(output_size)
    maps = [input] if isinstance(input, Tensor) else list(input)
    scales = [spatial_scale] if isinstance(spatial_scale, int | float) else list(spatial_scale)
    rule = (canonical_size, canonical_level, level_epsilon, epsilon_inside_log)
    pooled = []
    for tube, index in zip(tubes.to(maps[0].dtype), batch_index, strict=True):
        sides = tube[:, 2:] - tube[:, :2] + int(legacy_plus_one)
        level = level_of(sum(sides.prod(dim=1)) / len(tube), scales, *rule) if len(maps) > 1 else 0
        clip = maps[level][int(index)]
        frames = [pool_box(clip[:, t], box, size, scales[level], sampling_ratio, aligned) for t, box in enumerate(tube)]
        pooled.append(torch.stack(frames, dim=1))
    return torch.stack(pooled) if pooled else maps[0].new_zeros(0, *maps[0].shape[1:3], *size)
