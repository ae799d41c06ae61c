"""Where a heatmap is largest, to a fraction of a pixel."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pyposeext.errors import InputError
from pyposeext.ops._library import empty_with_layout, is_channels_last

Refine = Literal["none", "quarter", "dark", "dark_udp", "soft"]


def heatmap_argmax(
    heatmaps: Tensor,
    refine: Refine = "none",
    *,
    blur_kernel: int = 11,
    temperature: float = 1.0,
    quarter_guard: Literal["hrnet", "mmpose", "inside", "separate"] = "hrnet",
    nonpositive: Literal["keep", "zero", "minus_one"] = "keep",
    flipped: Tensor | None = None,
    flip_permutation: Tensor | None = None,
    flip_shift: int = 0,
    affine: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The place and the value of each heatmap's maximum.

    Args:
        heatmaps: [B, K, H, W], float32, float64, float16 or bfloat16, any strides.
        refine: how the first maximum in row-major order is refined.
            "none": not at all.
            "quarter": a quarter of a pixel towards the larger neighbour (Newell et al. 2016, as in HRNet's code).
            "dark": DARK (Zhang et al. 2020, section 3.2): a Newton step on the logarithm of the blurred map, at least
            two pixels from the border. "dark_udp": the same as in UDP (Huang et al. 2020) and mmpose 1.x: finer
            differences, everywhere. Neither refines a map whose maximum is not positive.
            "soft": instead, the mean of x and y under softmax(temperature * heatmap) (Sun et al. 2018, section 2).
        blur_kernel: DARK's Gaussian, an odd size from 1 to 31 with OpenCV's rule for its sigma; 11 goes with targets of
            sigma 2, 17 with sigma 3.
        temperature: of "soft", positive.
        quarter_guard: the border rule of "quarter". "hrnet": both axes where 1 < x < W - 1 and 1 < y < H - 1.
            "mmpose": x where 1 < x < W - 1 and 0 < y < H, y likewise. "separate": x where 1 < x < W - 1, y where
            1 < y < H - 1. "inside": both axes wherever both neighbours exist.
        nonpositive: what a maximum of 0 or less gives. "keep": its place, since logits may all be negative. "zero":
            (0, 0) as HRNet does, "minus_one": (-1, -1) as mmpose does, both unrefined. Not for "soft".
        flipped: the flip test: heatmaps [B, K, H, W] of the mirrored images, of the same dtype. Everything is then done
            on (heatmaps + flipped mirrored back) / 2, which is never stored nor rounded to 16 bits.
        flip_permutation: with `flipped`, int64 [K]: the joint whose map in `flipped` belongs to each joint (left and
            right swapped).
        flip_shift: with `flipped`, 0 or 1: by how many pixels the mirrored-back maps move to the right before they are
            averaged; column 0 keeps its value (1 is HRNet's shift for strides without a half-pixel offset).
        affine: [B, 2, 3], any float dtype: coordinates (x, y) are returned as affine[:, :, :2] (x, y) +
            affine[:, :, 2], those of maps without a maximum too.

    Returns:
        Coordinates [B, K, 2], x and y in pixels of the heatmap (whole numbers are pixel centres), and scores [B, K],
        the maxima; float32, or float64 for float64. NaN never wins, and has no weight under "soft". A map with nothing
        above minus infinity, or without pixels, gives (-1, -1) and minus infinity ((0, 0) under "zero"); under "soft" a
        map whose maximum is infinite gives that maximum's place. A refinement that is not finite is dropped. DARK's
        coordinates are within 1e-4 pixels of float64 where the peak is well formed, "soft" ones within 1e-5 of the
        map's side.

    Raises:
        RuntimeError: a wrong shape, dtype, device or option. InputError: `nonpositive` with "soft".
            A `flip_permutation` that is none is refused on the CPU. On a GPU an index outside 0..K-1 stands for the
            joint itself, and of joints with the same index only the first gives `flipped` a gradient.

    The coordinates of "soft" are differentiable once with respect to `heatmaps` and `flipped`; nothing else is: for a
    score with a gradient take `heatmaps.amax((2, 3))`. Deterministic.
    """
    affine = None if affine is None else affine.detach()
    if refine == "soft":
        if nonpositive != "keep":
            raise InputError(f"heatmap_argmax: nonpositive must be keep with refine='soft', got {nonpositive}")
        coordinates, scores, _ = torch.ops.pyposeext.heatmap_soft_argmax(
            heatmaps, temperature, flipped, flip_permutation, flip_shift, affine
        )
        return coordinates, scores
    return torch.ops.pyposeext.heatmap_argmax(
        heatmaps, refine, blur_kernel, quarter_guard, nonpositive, flipped, flip_permutation, flip_shift, affine
    )


def _outputs(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if heatmaps.dtype == torch.float64 else torch.float32
    return heatmaps.new_empty(*heatmaps.shape[:2], 2, dtype=dtype), heatmaps.new_empty(heatmaps.shape[:2], dtype=dtype)


@torch.library.register_fake("pyposeext::heatmap_argmax")
def _fake(heatmaps, *options):  # type: ignore[no-untyped-def]
    return _outputs(heatmaps)


@torch.library.register_fake("pyposeext::heatmap_soft_argmax")
def _fake_soft(heatmaps, *options):  # type: ignore[no-untyped-def]
    coordinates, scores = _outputs(heatmaps)
    return coordinates, scores, scores.new_empty((*scores.shape, 4))


@torch.library.register_fake("pyposeext::heatmap_soft_argmax_backward")
def _fake_soft_backward(gradient, heatmaps, statistics, temperature, flipped, *options):  # type: ignore[no-untyped-def]
    result = empty_with_layout(heatmaps, heatmaps.shape, is_channels_last(heatmaps))
    if flipped is None:
        return result, heatmaps.new_empty(0)
    return result, empty_with_layout(flipped, flipped.shape, is_channels_last(flipped))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output)


def _backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
    return (None,) * 9


def _setup_soft(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    heatmaps, ctx.temperature, flipped, flip_permutation, ctx.flip_shift, affine = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(heatmaps, output[2], flipped, flip_permutation, affine)


def _backward_soft(ctx: Any, gradient: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    heatmaps, statistics, flipped, flip_permutation, affine = ctx.saved_tensors
    result, mirrored = torch.ops.pyposeext.heatmap_soft_argmax_backward(
        gradient, heatmaps, statistics, ctx.temperature, flipped, flip_permutation, ctx.flip_shift, affine
    )
    return result, None, None if flipped is None else mirrored, None, None, None


def _no_double_backward(ctx: Any, *directions: Tensor) -> None:
    raise RuntimeError("heatmap_argmax: the gradient of refine='soft' cannot be differentiated again")


torch.library.register_autograd("pyposeext::heatmap_argmax", _backward, setup_context=_setup)
torch.library.register_autograd("pyposeext::heatmap_soft_argmax", _backward_soft, setup_context=_setup_soft)
torch.library.register_autograd("pyposeext::heatmap_soft_argmax_backward", _no_double_backward)


def gaussian_kernel(size: int) -> Tensor:
    """OpenCV's Gaussian for an odd size without a sigma, float64 [size]: binomial-like tables up to 9."""
    tables = {
        1: [1.0],
        3: [0.25, 0.5],
        5: [0.0625, 0.25, 0.375],
        7: [0.03125, 0.109375, 0.21875, 0.28125],
        9: [0.015625, 0.05078125, 0.1171875, 0.19921875, 0.234375],
    }
    if size in tables:
        half = tables[size]
        return torch.tensor(half + half[-2::-1], dtype=torch.float64)
    distance = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-(distance**2) / (2 * (0.3 * (size // 2 - 1) + 0.8) ** 2))
    return weights / weights.sum()


def flip_average(heatmaps: Tensor, flipped: Tensor, flip_permutation: Tensor, flip_shift: int = 0) -> Tensor:
    """What `flipped` stands for: (heatmaps + flipped mirrored back) / 2, [B, K, H, W]."""
    mirrored = flipped[:, flip_permutation].flip(3)
    if flip_shift:
        mirrored = torch.cat([mirrored[..., :1], mirrored[..., :-1]], dim=3)
    return (heatmaps + mirrored) / 2


def reference(
    heatmaps: Tensor,
    refine: str = "none",
    *,
    blur_kernel: int = 11,
    temperature: float = 1.0,
    quarter_guard: str = "hrnet",
    nonpositive: str = "keep",
    flipped: Tensor | None = None,
    flip_permutation: Tensor | None = None,
    flip_shift: int = 0,
    affine: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification in plain PyTorch: as `heatmap_argmax`, by whole maps, blurred and rescaled.

    "soft" is differentiable.
    """
    if flipped is not None and flip_permutation is not None:
        heatmaps = flip_average(heatmaps, flipped, flip_permutation, flip_shift)
    batch, joints, _, width = heatmaps.shape
    flat = torch.where(torch.isnan(heatmaps), -torch.inf, heatmaps).flatten(2)
    if flat.shape[2] == 0:
        flat = flat.new_full((batch, joints, 1), -torch.inf)
    scores, index = flat.detach().max(dim=2)  # the first of equal ones
    empty = scores == -torch.inf
    coordinates = torch.stack([index % max(width, 1), index // max(width, 1)], dim=2).to(scores.dtype)
    coordinates = torch.where(empty[:, :, None], -1.0, coordinates)
    if refine == "soft":
        finite = torch.isfinite(scores)[:, :, None]
        weights = torch.softmax(torch.where(finite, flat, 0.0) * temperature, dim=2)
        place = torch.arange(flat.shape[2], device=flat.device)
        grid = torch.stack([place % max(width, 1), place // max(width, 1)], dim=1).to(scores.dtype)
        coordinates = torch.where(finite, weights @ grid, coordinates)
    else:
        replaced = empty if nonpositive == "keep" else scores <= 0
        for b, k in torch.nonzero(~replaced).tolist():
            coordinates[b, k] += _offset(heatmaps[b, k], coordinates[b, k], refine, blur_kernel, quarter_guard)
        coordinates = torch.where(replaced[:, :, None], 0.0 if nonpositive == "zero" else -1.0, coordinates)
    if affine is not None:
        affine = affine.to(scores.dtype)
        coordinates = coordinates @ affine[:, :, :2].mT + affine[:, None, :, 2]
    return coordinates, scores


def _offset(heatmap: Tensor, place: Tensor, refine: str, blur_kernel: int, quarter_guard: str) -> Tensor:
    """(dx, dy) from the maximum [x, y] of one map [H, W]."""
    height, width = heatmap.shape
    x, y = int(place[0]), int(place[1])
    if refine == "quarter":
        below = 0 if quarter_guard == "inside" else 1
        inner_x, inner_y = below < x < width - 1, below < y < height - 1
        along_x, along_y = inner_x and inner_y, inner_x and inner_y
        if quarter_guard == "mmpose":
            along_x, along_y = inner_x and y > 0, inner_y and x > 0
        if quarter_guard == "separate":
            along_x, along_y = inner_x, inner_y
        dx = torch.sign(heatmap[y, x + 1] - heatmap[y, x - 1]) if along_x else place.new_zeros(())
        dy = torch.sign(heatmap[y + 1, x] - heatmap[y - 1, x]) if along_y else place.new_zeros(())
        return torch.nan_to_num(torch.stack([dx, dy])) / 4
    if refine == "none" or not heatmap[y, x] > 0:
        return place.new_zeros(2)
    if refine == "dark" and not (1 < x < width - 2 and 1 < y < height - 2):
        return place.new_zeros(2)
    kernel = gaussian_kernel(blur_kernel).to(heatmap)
    blurred = F.conv2d(heatmap[None, None], (kernel[:, None] * kernel)[None, None], padding=blur_kernel // 2)[0, 0]
    window = F.pad(blurred[None, None], (2, 2, 2, 2), mode="replicate")[0, 0, y : y + 5, x : x + 5]
    reads = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if abs(dy) + abs(dx) <= 2]
    if refine == "dark_udp":
        reads = [(dy, dx) for dy in range(-1, 2) for dx in range(-1, 2) if dy * dx >= 0]
    if not all(bool(torch.isfinite(window[2 + dy, 2 + dx])) for dy, dx in reads):
        return place.new_zeros(2)
    largest = blurred[~torch.isnan(blurred)].max()
    window = window * (heatmap[y, x] / (largest + 1e-12))
    window = (window.clamp(min=1e-10) if refine == "dark" else window.clamp(1e-3, 50.0)).log()
    step = _newton_step(window, refine)
    return step if bool(torch.isfinite(step).all()) else place.new_zeros(2)


def _newton_step(log: Tensor, refine: str) -> Tensor:
    """(dx, dy) to the extremum of the parabola through a window [5, 5] of logarithms."""

    def at(dy: int, dx: int) -> Tensor:
        return log[2 + dy, 2 + dx]

    gradient = torch.stack([at(0, 1) - at(0, -1), at(1, 0) - at(-1, 0)]) / 2
    if refine == "dark":
        xx = (at(0, 2) - 2 * at(0, 0) + at(0, -2)) / 4
        yy = (at(2, 0) - 2 * at(0, 0) + at(-2, 0)) / 4
        xy = (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1)) / 4
    else:
        xx = at(0, 1) - 2 * at(0, 0) + at(0, -1) + torch.finfo(torch.float32).eps
        yy = at(1, 0) - 2 * at(0, 0) + at(-1, 0) + torch.finfo(torch.float32).eps
        xy = (at(1, 1) - at(0, 1) - at(1, 0) + 2 * at(0, 0) - at(0, -1) - at(-1, 0) + at(-1, -1)) / 2
    determinant = xx * yy - xy * xy
    return -torch.stack([yy * gradient[0] - xy * gradient[1], xx * gradient[1] - xy * gradient[0]]) / determinant
