"""Gaussian training targets at keypoints."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from pyposeext.ops._library import pair

Mode = Literal["msra", "udp", "unbiased"]
Background = Literal["none", "first", "last"]
Outside = Literal["ignore", "keep"]


def gaussian_heatmaps(
    keypoints: Tensor,
    weights: Tensor | None,
    size: int | tuple[int, int],
    sigma: float = 2.0,
    mode: Mode = "msra",
    *,
    amplitude: float = 1.0,
    cutoff: float = 0.0,
    background: Background = "none",
    outside: Outside = "ignore",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> tuple[Tensor, Tensor]:
    """A heatmap for each joint: amplitude * exp(-((x - u)^2 + (y - v)^2) / (2 sigma^2)) around its keypoint (u, v).

    Args:
        keypoints: [B, K, 2], or [B, N, K, 2] of N people, whose Gaussians are combined by their maximum. x and y in
            pixels of the heatmap (whole numbers are pixel centres), any float dtype and strides. Positions are computed
            in float32 (float64 for float64 maps); keypoints of another dtype or layout are copied.
        weights: [B, K] or [B, N, K], any float dtype, or None for 1. Only a joint whose weight is above 0 is drawn.
        size: (height, width) of the maps.
        sigma: in pixels of the heatmap.
        mode: "msra": the centre rounded to floor(u + 0.5) and the Gaussian cut to the pixels within floor(3 sigma) of
            it along each axis (simple baselines, HRNet and what builds on them: 2 for 64 x 48, 3 for 96 x 72; HRNet's
            code rounds what is negative towards 0, so there a joint outside the map may lie a pixel nearer to it).
            "udp": the same square around the real centre (Huang et al. 2020). "unbiased": the whole map around the
            real centre (Zhang et al. 2020, DARK; UniPose, Flowing ConvNets, LSTM Pose Machines).
        amplitude: the value at the centre. Flowing ConvNets: 4 / (1.5 * sqrt(2 pi)) with sigma 1.5.
        cutoff: smaller values become 0. UniPose: 0.0099. LSTM Pose Machines: 0.01.
        background: "first" or "last" adds a channel of max(0, 1 - the maximum over the joints): UniPose, LSTM Pose
            Machines.
        outside: what becomes of a joint whose square of 3 sigma misses the map. "ignore": weight 0, nothing drawn.
            "keep": the weight stays, and under "unbiased" the tail is drawn. Then also a keypoint that is NaN or
            infinite keeps its weight and asks for an empty map, as for people who are absent from a frame.
        dtype: of the maps: float32, float64, float16 or bfloat16.
        channels_last: the memory layout of the maps.

    Returns:
        Heatmaps [B, K, H, W] (K + 1 with a background), and the joints' weights [B, K] in float32 (float64 for float64
        maps): the largest among a joint's people. As in the published code a square that ends one pixel before the
        upper or left edge still keeps the weight. A keypoint that is NaN or infinite, and a weight that is 0, negative,
        NaN or infinite, draw nothing and have weight 0. "unbiased" values below 2e-38 may be 0. float32 is within 1e-6
        of float64 for keypoints on and near the map.

    Raises:
        RuntimeError: a wrong rank, shape, dtype, device or option.

    Not differentiable: targets are constants. Deterministic.
    """
    height, width = pair(size)
    name = str(dtype).removeprefix("torch.")
    return torch.ops.pyposeext.gaussian_heatmaps(
        keypoints,
        weights,
        height,
        width,
        sigma,
        mode,
        amplitude,
        cutoff,
        background,
        keeps_outside("gaussian_heatmaps", outside),
        name,
        channels_last,
    )


def keeps_outside(op: str, outside: str) -> bool:
    """What `outside` says, checked."""
    if outside not in ("ignore", "keep"):
        raise RuntimeError(f"{op}: outside must be ignore or keep, got {outside}")
    return outside == "keep"


@torch.library.register_fake("pyposeext::gaussian_heatmaps")
def _fake(  # type: ignore[no-untyped-def]
    keypoints, weights, height, width, sigma, mode, amplitude, cutoff, background, keep_outside, dtype, channels_last
):
    batch, joints = keypoints.shape[0], keypoints.shape[-2]
    heatmaps = keypoints.new_empty(
        (batch, joints + (background != "none"), height, width), dtype=getattr(torch, dtype)
    ).contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    of_weights = torch.float64 if dtype == "float64" else torch.float32
    return heatmaps, keypoints.new_empty((batch, joints), dtype=of_weights)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output)


def _backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
    return (None,) * 12


torch.library.register_autograd("pyposeext::gaussian_heatmaps", _backward, setup_context=_setup)


def reference(
    keypoints: Tensor,
    weights: Tensor | None,
    size: int | tuple[int, int],
    sigma: float = 2.0,
    mode: Mode = "msra",
    *,
    amplitude: float = 1.0,
    cutoff: float = 0.0,
    background: Background = "none",
    outside: Outside = "ignore",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> tuple[Tensor, Tensor]:
    """The specification in plain PyTorch: as `gaussian_heatmaps`."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    people = (keypoints if keypoints.dim() == 4 else keypoints[:, None]).to(exact)
    weight = torch.ones_like(people[..., 0]) if weights is None else weights.to(exact).reshape(people.shape[:3])
    weight = torch.where((weight > 0) & torch.isfinite(weight), weight, 0.0)
    height, width = pair(size)
    finite = torch.isfinite(people).all(dim=3)
    real = torch.where(finite[..., None], people, 0.0)
    whole = real if mode == "unbiased" else (real + 0.5).floor()
    reach = 3 * sigma if mode == "unbiased" else math.floor(3 * sigma)
    sides = torch.tensor([width, height], dtype=exact, device=people.device)
    touches = ((whole - reach < sides) & (whole + reach + 1 >= 0)).all(dim=3) & finite
    if outside == "ignore":
        weight = torch.where(touches, weight, 0.0)
    centre = whole if mode == "msra" else real
    along = []
    for axis, length in enumerate((width, height)):
        pixels = torch.arange(length, dtype=exact, device=people.device)
        value = torch.exp((pixels - centre[..., axis, None]) ** 2 * (-1 / (2 * sigma * sigma)))
        if mode != "unbiased":
            value = torch.where((pixels - whole[..., axis, None]).abs() <= reach, value, 0.0)
        along.append(value)
    maps = amplitude * along[1][..., :, None] * along[0][..., None, :]
    drawn = (weight > 0) & finite
    maps = torch.where(drawn[..., None, None] & (maps >= cutoff), maps, 0.0)
    none = maps.new_zeros(maps.shape[0], 1, *maps.shape[2:])
    joints = torch.cat([maps, none], dim=1).amax(dim=1)
    if background != "none":
        nothing = joints.new_zeros(joints.shape[0], 1, height, width)
        rest = (1 - torch.cat([joints, nothing], dim=1).amax(dim=1, keepdim=True)).clamp(min=0)
        joints = torch.cat([rest, joints] if background == "first" else [joints, rest], dim=1)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    weight = torch.cat([weight, torch.zeros_like(weight[:, :1])], dim=1) if weight.shape[1] == 0 else weight
    return joints.to(dtype).contiguous(memory_format=memory_format), weight.amax(dim=1)
