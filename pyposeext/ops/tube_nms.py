"""Greedy non-maximum suppression of tubes: one box a frame (Girdhar et al. 2018, Detect-and-Track)."""

from __future__ import annotations

import torch
from torch import Tensor

from pyposeext.ops import _library  # noqa: F401  (registers the ops)


def tube_nms(
    tubes: Tensor,
    scores: Tensor,
    overlap_threshold: float,
    indices: Tensor | None = None,
    legacy_plus_one: bool = True,
) -> Tensor:
    """The tubes that no better one overlaps by more than the threshold; overlap is the mean of the frames' IoU.

    Args:
        tubes: [N, T, 4], x1, y1, x2, y2 in each of T frames, any float dtype and strides; half precision is compared in
            float32.
        scores: [N], any float dtype. Equal scores keep their order.
        overlap_threshold: a tube is dropped where its overlap with a kept one is above this.
        indices: int64 [N]; tubes of different clips or classes never suppress each other.
        legacy_plus_one: widths and heights are x2 - x1 + 1 and y2 - y1 + 1, as in Detect-and-Track's released code.
            False: x2 - x1 and y2 - y1, and T = 1 gives `nms`.

    Returns:
        int64 indices of the kept tubes by falling score. A frame in which the union of two boxes is not above 0, both
        being empty, or is NaN, counts as an overlap of 0.

    Raises:
        RuntimeError: a wrong shape, dtype or device; a threshold that is NaN.

    On a GPU the number of rows is read back, which waits for the stream; `tube_nms_padded` does not. Not
    differentiable.
    """
    return torch.ops.pyposeext.tube_nms(tubes, scores, overlap_threshold, indices, legacy_plus_one)


def tube_nms_padded(
    tubes: Tensor,
    scores: Tensor,
    overlap_threshold: float,
    indices: Tensor | None = None,
    legacy_plus_one: bool = True,
) -> tuple[Tensor, Tensor]:
    """`tube_nms` without reading anything back from a GPU.

    Returns:
        int64 [N], the kept indices by falling score and then -1; and their number, int64 [].
    """
    return torch.ops.pyposeext.tube_nms_padded(tubes, scores, overlap_threshold, indices, legacy_plus_one)


@torch.library.register_fake("pyposeext::tube_nms")
def _fake(tubes, scores, overlap_threshold, indices, legacy_plus_one):  # type: ignore[no-untyped-def]
    return tubes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.register_fake("pyposeext::tube_nms_padded")
def _fake_padded(tubes, scores, overlap_threshold, indices, legacy_plus_one):  # type: ignore[no-untyped-def]
    return tubes.new_empty(tubes.shape[0], dtype=torch.int64), tubes.new_empty((), dtype=torch.int64)


def reference(
    tubes: Tensor,
    scores: Tensor,
    overlap_threshold: float,
    indices: Tensor | None = None,
    legacy_plus_one: bool = True,
) -> Tensor:
    """The specification in plain PyTorch: `tube_nms`."""
    if tubes.dtype not in (torch.float32, torch.float64):
        tubes = tubes.float()
    order = torch.sort(scores, stable=True, descending=True).indices
    tubes, group = tubes[order], None if indices is None else indices[order]
    plus = 1 if legacy_plus_one else 0
    area = (tubes[..., 2] - tubes[..., 0] + plus) * (tubes[..., 3] - tubes[..., 1] + plus)
    alive = torch.ones(len(tubes), dtype=torch.bool, device=tubes.device)
    for i in range(len(tubes)):
        if not alive[i]:
            continue
        corner = torch.maximum(tubes[i, :, :2], tubes[i + 1 :, :, :2])
        side = (torch.minimum(tubes[i, :, 2:], tubes[i + 1 :, :, 2:]) - corner + plus).clamp(min=0)
        shared = side[..., 0] * side[..., 1]
        union = area[i] + area[i + 1 :] - shared
        ratio = torch.where(union > 0, shared / union, torch.zeros_like(union))
        total = torch.zeros_like(ratio[:, 0])
        for frame in ratio.unbind(1):  # in this order, which decides the rounding
            total = total + frame
        suppressed = (total / tubes.shape[1]).double() > overlap_threshold
        alive[i + 1 :] &= ~(suppressed if group is None else suppressed & (group[i + 1 :] == group[i]))
    return order[alive]
