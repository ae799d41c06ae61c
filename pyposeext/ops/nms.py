"""Greedy non-maximum suppression of boxes, with torchvision's results."""

from __future__ import annotations

import torch
from torch import Tensor

from pyposeext.ops import _library  # noqa: F401  (registers the ops)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The boxes that no better one overlaps by more than the threshold.

    Args:
        boxes: [N, 4], x1, y1, x2, y2, any float dtype; half precision is compared in float32.
        scores: [N], any float dtype. Equal scores keep their order.
        iou_threshold: a box is dropped where its intersection over union with a kept one is above this.

    Returns:
        int64 indices of the kept boxes by falling score. A box with a NaN side overlaps nothing.

    Raises:
        RuntimeError: a wrong shape, dtype or device.

    On a GPU the number of rows is read back, which waits for the stream; `nms_padded` does not. Not differentiable.
    """
    return torch.ops.pyposeext.nms(boxes, scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, indices: Tensor, iou_threshold: float) -> Tensor:
    """`nms` within each group: boxes of different `indices` (int64 [N]) never suppress each other.

    Coordinates are compared as they are. torchvision shifts the groups apart instead, which costs precision.
    """
    return torch.ops.pyposeext.batched_nms(boxes, scores, indices, iou_threshold)


def nms_padded(
    boxes: Tensor, scores: Tensor, iou_threshold: float, indices: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`nms`, or `batched_nms` where `indices` are given, without reading anything back from a GPU.

    Returns:
        int64 [N], the kept indices by falling score and then -1; and their number, int64 [].
    """
    return torch.ops.pyposeext.nms_padded(boxes, scores, iou_threshold, indices)


@torch.library.register_fake("pyposeext::nms")
def _fake(boxes, scores, iou_threshold):  # type: ignore[no-untyped-def]
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.register_fake("pyposeext::batched_nms")
def _fake_batched(boxes, scores, indices, iou_threshold):  # type: ignore[no-untyped-def]
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.register_fake("pyposeext::nms_padded")
def _fake_padded(boxes, scores, iou_threshold, indices):  # type: ignore[no-untyped-def]
    return boxes.new_empty(boxes.shape[0], dtype=torch.int64), boxes.new_empty((), dtype=torch.int64)


def reference(boxes: Tensor, scores: Tensor, iou_threshold: float, indices: Tensor | None = None) -> Tensor:
    """The specification in plain PyTorch: `nms`, or `batched_nms` where `indices` are given."""
    if boxes.dtype not in (torch.float32, torch.float64):
        boxes = boxes.float()
    order = torch.sort(scores, stable=True, descending=True).indices
    boxes, group = boxes[order], None if indices is None else indices[order]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        corner = torch.maximum(boxes[i, :2], boxes[i + 1 :, :2])
        side = (torch.minimum(boxes[i, 2:], boxes[i + 1 :, 2:]) - corner).clamp(min=0)
        overlap = side[:, 0] * side[:, 1]
        suppressed = (overlap / (area[i] + area[i + 1 :] - overlap)).double() > iou_threshold
        alive[i + 1 :] &= ~(suppressed if group is None else suppressed & (group[i + 1 :] == group[i]))
    return order[alive]
