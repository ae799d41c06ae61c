"""How alike the people of two frames are: every function returns a matrix [P, C] in 0..1, P before and C now.

Everything is computed in float64, where the squares of the largest float32 are still numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyposeext.errors import InputError
from pyposeext.structures import Skeleton

Array = NDArray[np.floating]


def box_iou(before: Array, now: Array, plus_one: bool = False) -> Array:
    """Intersection over union of boxes.

    Args:
        before: [P, 4], x1, y1, x2, y2.
        now: [C, 4].
        plus_one: count widths as x2 - x1 + 1, as Detectron and its descendants do.
    """
    extra = float(plus_one)
    before, now = before.astype(np.float64), now.astype(np.float64)
    corner = np.maximum(before[:, None, :2], now[None, :, :2])
    sides = np.clip(np.minimum(before[:, None, 2:], now[None, :, 2:]) - corner + extra, 0, None)
    overlap = sides[..., 0] * sides[..., 1]
    union = box_areas(before, extra)[:, None] + box_areas(now, extra)[None] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def box_areas(boxes: Array, extra: float = 0.0) -> Array:
    """Areas, float64 [P] in square pixels, of boxes [P, 4] (x1, y1, x2, y2) with `extra` added to their sides."""
    boxes = boxes.astype(np.float64)
    areas: Array = (boxes[:, 2] - boxes[:, 0] + extra) * (boxes[:, 3] - boxes[:, 1] + extra)
    return areas


def pose_oks(before: Array, now: Array, areas: Array, sigmas: Sequence[float], minimum_score: float = 0.0) -> Array:
    """Object keypoint similarity (COCO's definition) with the earlier pose in the place of the ground truth.

    Args:
        before: [P, K, 3], x, y, score.
        now: [C, K, 3].
        areas: [P], of the earlier people in square pixels.
        sigmas: K falloff constants.
        minimum_score: joints below it in either pose do not count; without a common joint the similarity is 0.
    """
    if len(sigmas) != before.shape[1]:
        raise InputError(f"OKS needs one sigma per joint, {before.shape[1]}, got {len(sigmas)}")
    exponents = _squared_distances(before, now)
    spread = 2 * (2 * np.asarray(sigmas, dtype=exponents.dtype)) ** 2
    exponents /= -(spread * (areas[:, None] + np.spacing(1.0)))[:, None]
    return _mean_over_joints(np.exp(exponents, out=exponents), before, now, minimum_score)


def pose_pck(before: Array, now: Array, head_sizes: Array, minimum_score: float = 0.0) -> Array:
    """Fraction of joints within 0.5 * (head size + 1) pixels of each other (Detect-and-Track's pose cost).

    Args:
        before: [P, K, 3], x, y, score.
        now: [C, K, 3].
        head_sizes: [P], of the earlier people in pixels, see `head_sizes`.
        minimum_score: as for `pose_oks`.
    """
    near = _squared_distances(before, now) <= (0.5 * (head_sizes[:, None, None] + 1)) ** 2
    return _mean_over_joints(near.astype(np.float64), before, now, minimum_score)


def head_sizes(keypoints: Array, skeleton: Skeleton) -> Array:
    """Distance from head top to head bottom, [P] in pixels, of [P, K, 3] keypoints.

    Without these joints, head bottom is the middle of the shoulders and head top the nose mirrored away from it.
    """
    names = skeleton.names
    keypoints = keypoints.astype(np.float64)
    if {"head_top", "head_bottom"} <= set(names):
        line = keypoints[:, names.index("head_top"), :2] - keypoints[:, names.index("head_bottom"), :2]
    elif {"nose", "left_shoulder", "right_shoulder"} <= set(names):
        shoulders = [names.index("left_shoulder"), names.index("right_shoulder")]
        line = 2 * (keypoints[:, names.index("nose"), :2] - keypoints[:, shoulders, :2].mean(axis=1))
    else:
        raise InputError(f"PCK needs a head size, which the joints of {skeleton.name!r} do not give")
    return np.linalg.norm(line, axis=1)


def _squared_distances(before: Array, now: Array) -> Array:
    """float64 [P, C, K] in square pixels."""
    before, now = before.astype(np.float64), now.astype(np.float64)
    # In place: fresh arrays of this size cost more than the arithmetic.
    squared = before[:, None, :, 0] - now[None, :, :, 0]
    squared *= squared
    other = before[:, None, :, 1] - now[None, :, :, 1]
    other *= other
    squared += other
    return squared


def _mean_over_joints(values: Array, before: Array, now: Array, minimum_score: float) -> Array:
    before_counts = (before[:, :, 2] >= minimum_score).astype(values.dtype)
    now_counts = (now[:, :, 2] >= minimum_score).astype(values.dtype)
    total = np.einsum("pck,pk,ck->pc", values, before_counts, now_counts)
    return total / np.maximum(before_counts @ now_counts.T, 1)
