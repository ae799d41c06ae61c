"""Masks of detected boxes, blown up to the image as torchvision and detectron2 do (He et al. 2017, Mask R-CNN)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyposeext.ops import _library  # noqa: F401  (registers the ops)

RULES = ("torchvision", "detectron2")


def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    size: Sequence[int],
    threshold: float | None = 0.5,
    rule: str = "torchvision",
) -> Tensor:
    """Each mask resized to its box (bilinear), laid into an empty image and compared with a threshold.

    Args:
        masks: [N, M, M] or [N, 1, M, M], probabilities, float32, float64, float16 or bfloat16, any strides.
        boxes: [N, 4], x1, y1, x2, y2 in pixels of the image, any float dtype.
        size: (height, width) of the image.
        threshold: pixels of at least this value are set. None: the values themselves, not compared.
        rule: "torchvision": the mask gets a border of one zero, the box is enlarged by (M + 2) / M about its centre,
            its corners are truncated to whole numbers (both belong to the box) and the mask is resized to that.
            "detectron2": pixel centres are sampled in the box as it is, elements outside the mask being 0, over the
            whole image.

    Returns:
        [N, height, width], bool, or in `masks`'s dtype for threshold None. Blended in float32 (float64 for float64);
        positions in float64 where masks or boxes are, otherwise in float32: soft values are within 2e-5 of float64 for
        images up to 4,000 pixels (2e-3 float16, 1e-2 bfloat16). Pixels outside the box are 0, as compared with the
        threshold. A box that is not finite pastes nothing, nor does one of no area under "detectron2"; under
        "torchvision" it covers one pixel or what truncation makes of it. NaN in a mask is below every threshold and
        spoils the pixels between it and its neighbours.

    Raises:
        RuntimeError: a wrong rank, shape, dtype, device, size or rule; a threshold of NaN.

    Not differentiable. Deterministic on every device.
    """
    height, width = size
    value = 0.0 if threshold is None else threshold
    return torch.ops.pyposeext.paste_masks(
        masks.detach(), boxes.detach(), height, width, value, threshold is None, rule
    )


def paste_masks_runs(
    masks: Tensor,
    boxes: Tensor,
    size: Sequence[int],
    threshold: float = 0.5,
    rule: str = "torchvision",
    capacity: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The result of `paste_masks` as run lengths, without the images: a fixed size and no synchronisation.

    Args:
        masks, boxes, size, threshold, rule: as for `paste_masks`. `size` must be fewer than 2^31 pixels.
        capacity: how many runs of a mask there is room for. By default two to a column, and two: enough for masks
            without holes and branches, and for most others.

    Returns:
        (counts [N, capacity] int32, lengths [N] int64): the lengths of the runs down the columns, one column after the
        other, of zeros first (there may be none), then of ones, and so on; 0 beyond the last. `lengths` counts the runs
        also where there are more than the capacity; the first ones are then in `counts`.

    Raises:
        RuntimeError: as `paste_masks`; an image of 2^31 pixels or more; a negative capacity.

    Not differentiable. Equal to the runs of `paste_masks` to the last pixel. Deterministic on every device.
    """
    height, width = size
    room = 2 * width + 2 if capacity is None else capacity
    return torch.ops.pyposeext.paste_masks_runs(masks.detach(), boxes.detach(), height, width, threshold, rule, room)


def paste_masks_rle(
    masks: Tensor,
    boxes: Tensor,
    size: Sequence[int],
    threshold: float = 0.5,
    rule: str = "torchvision",
    compressed: bool = True,
) -> list[dict[str, Any]]:
    """The result of `paste_masks` in COCO's run-length encoding, without the images.

    Args:
        masks, boxes, size, threshold, rule: as for `paste_masks_runs`.
        compressed: `counts` as COCO's string, otherwise as a list of numbers.

    Returns:
        N of {"size": [height, width], "counts": bytes or list of int}, as pycocotools takes them. To write them to a
        JSON file, decode the bytes as ASCII.

    Raises:
        RuntimeError: as `paste_masks_runs`.

    On a GPU it waits for the result, and computes it a second time where a mask has more runs than foreseen.
    """
    from pyposeext import _C

    counts, lengths = (part.cpu() for part in paste_masks_runs(masks, boxes, size, threshold, rule))
    most = int(lengths.max()) if len(lengths) else 0
    if most > counts.shape[1]:
        counts, lengths = (part.cpu() for part in paste_masks_runs(masks, boxes, size, threshold, rule, most))
    if compressed:
        encoded = _C.rle_strings(counts, lengths)
    else:
        encoded = [row[:length].tolist() for row, length in zip(counts, lengths.tolist(), strict=True)]
    height, width = size
    return [{"size": [int(height), int(width)], "counts": runs} for runs in encoded]


@torch.library.register_fake("pyposeext::paste_masks")
def _fake(masks, boxes, height, width, threshold, soft, rule):  # type: ignore[no-untyped-def]
    return masks.new_empty((masks.shape[0], height, width), dtype=masks.dtype if soft else torch.bool)


@torch.library.register_fake("pyposeext::paste_masks_runs")
def _fake_runs(masks, boxes, height, width, threshold, rule, capacity):  # type: ignore[no-untyped-def]
    count = masks.shape[0]
    return masks.new_empty((count, capacity), dtype=torch.int32), masks.new_empty((count,), dtype=torch.int64)


def _axis(low: Tensor, high: Tensor, side: int, size: int, rule: str) -> tuple[Tensor, Tensor]:
    """Positions in the mask [N, size] of the image's pixels along one axis, and which of them the box reaches."""
    low, high = low[:, None], high[:, None]
    pixel = torch.arange(size, device=low.device)
    if rule == "detectron2":
        position = (pixel + 0.5 - low) / (high - low) * side - 0.5
        reached = torch.isfinite(low) & torch.isfinite(high) & (high > low) & (position > -1) & (position < side)
        return position, reached
    centre, half = (high + low) * 0.5, (high - low) * 0.5 * ((side + 2) / side)
    low, high = centre - half, centre + half
    finite = (low.abs() < 2.0**60) & (high.abs() < 2.0**60)
    first, last = torch.where(finite, low, 0).long(), torch.where(finite, high, -1).long()
    step = (side + 2) / (last - first + 1).clamp(min=1).to(low.dtype)
    position = (step * ((pixel - first) + 0.5) - 0.5).clamp(min=0) - 1
    return position, finite & (pixel >= first) & (pixel <= last)


def reference(
    masks: Tensor,
    boxes: Tensor,
    size: Sequence[int],
    threshold: float | None = 0.5,
    rule: str = "torchvision",
) -> Tensor:
    """The specification in plain PyTorch: as `paste_masks`."""
    height, width = size
    masks = masks[:, 0] if masks.dim() == 4 else masks
    count, side = masks.shape[:2]
    boxes = boxes.to(torch.promote_types(masks.dtype, boxes.dtype))
    bordered = F.pad(masks, (1, 2, 1, 2))
    tables = []
    for axis, length in ((0, width), (1, height)):
        position, reached = _axis(boxes[:, axis], boxes[:, axis + 2], side, length, rule)
        position = torch.where(reached, position, -1).clamp(-1, side)
        low = position.floor()
        tables.append((low.long() + 1, (position - low).to(masks.dtype), reached))
    (column, x, in_x), (row, y, in_y) = tables
    wide = (count, side + 3, width)
    left, right = (bordered.gather(2, index[:, None].expand(wide)) for index in (column, column + 1))
    blended = left + x[:, None] * (right - left)
    full = (count, height, width)
    above, below = (blended.gather(1, index[:, :, None].expand(full)) for index in (row, row + 1))
    soft = torch.where(in_y[:, :, None] & in_x[:, None], above + y[:, :, None] * (below - above), 0)
    return soft if threshold is None else soft >= threshold


def runs_reference(
    masks: Tensor,
    boxes: Tensor,
    size: Sequence[int],
    threshold: float = 0.5,
    rule: str = "torchvision",
    capacity: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification of `paste_masks_runs`: the runs of the pasted images, column by column."""
    room = 2 * size[1] + 2 if capacity is None else capacity
    pasted = reference(masks, boxes, size, threshold, rule).transpose(1, 2).flatten(1).cpu()
    counts, lengths = torch.zeros(len(pasted), room, dtype=torch.int32), torch.zeros(len(pasted), dtype=torch.int64)
    for index, pixels in enumerate(pasted):
        before = torch.cat([pixels.new_zeros(1), pixels[:-1]]) if len(pixels) else pixels
        turns = torch.nonzero(pixels != before).flatten()
        ends = torch.cat([turns, torch.tensor([len(pixels)])])
        runs = torch.diff(ends, prepend=torch.zeros(1, dtype=torch.int64))
        lengths[index] = len(runs)
        kept = runs[:room]
        counts[index, : len(kept)] = kept.int()
    return counts.to(masks.device), lengths.to(masks.device)
