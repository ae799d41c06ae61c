"""Mask R-CNN's keypoint decoding (He et al. 2017, section 5): the maximum of each map, resized to its box."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pyposeext.ops import _library  # noqa: F401  (registers the op)


def roi_heatmaps_to_keypoints(
    heatmaps: Tensor, boxes: Tensor, *, score: Literal["logit", "softmax"] = "logit"
) -> tuple[Tensor, Tensor]:
    """Each map is resized to (ceil(height), ceil(width)) of its box, bicubic with a = -0.75; its first maximum counts.

    Args:
        heatmaps: logits [N, K, h, w], float32, float64, float16 or bfloat16, any strides.
        boxes: [N, 4], x1, y1, x2, y2 in pixels, any float dtype. Sides below one pixel count as one.
        score: "logit": torchvision's, the resized logit at the maximum, not a probability. "softmax": Detectron2's,
            exp(that logit) over the sum of exp of the [h, w] logits before resizing, which can exceed 1.

    Returns:
        keypoints [N, K, 2], x and y in pixels by torchvision's rule (x1 + (column + 0.5) * width / ceil(width)); and
        scores [N, K]. Both float32, or float64 for float64. A box that is not finite, or has a side above 2^14 pixels,
        gives zeros. A NaN never is the maximum; a map of nothing else scores minus infinity, or 0 under "softmax".

    Raises:
        RuntimeError: a wrong shape, dtype or device.

    The resized maps are never stored. Not differentiable.
    """
    return torch.ops.pyposeext.roi_heatmaps_to_keypoints(heatmaps.detach(), boxes.detach(), score)


@torch.library.register_fake("pyposeext::roi_heatmaps_to_keypoints")
def _fake(heatmaps, boxes, score):  # type: ignore[no-untyped-def]
    dtype = torch.float64 if heatmaps.dtype == torch.float64 else torch.float32
    rois, joints = heatmaps.shape[:2]
    return heatmaps.new_empty((rois, joints, 2), dtype=dtype), heatmaps.new_empty((rois, joints), dtype=dtype)


def reference(heatmaps: Tensor, boxes: Tensor, score: str = "logit") -> tuple[Tensor, Tensor]:
    """The specification in plain PyTorch: as `roi_heatmaps_to_keypoints`, for boxes that are finite."""
    if heatmaps.dtype != torch.float64:
        heatmaps = heatmaps.float()
    boxes = boxes.to(heatmaps.dtype)
    keypoints, scores = heatmaps.new_zeros(*heatmaps.shape[:2], 2), heatmaps.new_zeros(heatmaps.shape[:2])
    for index, (maps, box) in enumerate(zip(heatmaps, boxes, strict=True)):
        width, height = (max(float(side), 1.0) for side in box[2:] - box[:2])
        rows, columns = math.ceil(height), math.ceil(width)
        resized = F.interpolate(maps[None], size=(rows, columns), mode="bicubic", align_corners=False)[0].flatten(1)
        scores[index], best = resized.max(dim=1)
        keypoints[index, :, 0] = ((best % columns).to(heatmaps.dtype) + 0.5) * (width / columns) + box[0]
        keypoints[index, :, 1] = ((best // columns).to(heatmaps.dtype) + 0.5) * (height / rows) + box[1]
    if score == "softmax":
        scores = (scores - heatmaps.flatten(2).logsumexp(dim=2)).exp()
    return keypoints, scores
