"""Object keypoint similarity (COCO's keypoint evaluation, cocoapi's cocoeval.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyposeext.errors import InputError

_TINY = float(np.spacing(1))


def oks_matrix(
    predicted: ArrayLike, truth: ArrayLike, areas: ArrayLike, boxes: ArrayLike, sigmas: Sequence[float]
) -> NDArray[np.float64]:
    """OKS of every prediction with every ground truth.

    Args:
        predicted: [D, K, 2 or more], x and y.
        truth: [G, K, 3], x, y and visibility.
        areas: [G], of the person's segment in square pixels.
        boxes: [G, 4], x1, y1, x2, y2; used where a person has no labelled joint: distances then count from the box
            enlarged by its own size on each side, for all joints.
        sigmas: [K], falloff constants.

    Returns:
        [D, G] in 0..1.
    """
    points, labels = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    area, box = np.asarray(areas, dtype=np.float64), np.asarray(boxes, dtype=np.float64)
    count = len(sigmas)
    if points.ndim != 3 or points.shape[1] != count or points.shape[2] < 2:
        raise InputError(f"predicted must be [D, {count}, 2 or more], got {list(points.shape)}")
    if labels.ndim != 3 or labels.shape[1:] != (count, 3):
        raise InputError(f"truth must be [G, {count}, 3], got {list(labels.shape)}")
    if area.shape != (len(labels),) or box.shape != (len(labels), 4):
        raise InputError(f"areas and boxes must be [{len(labels)}] and [{len(labels)}, 4]")
    variance = (2 * np.asarray(sigmas, dtype=np.float64)) ** 2
    distance = ((points[:, None, :, :2] - labels[None, :, :, :2]) ** 2).sum(3)
    visible = np.asarray(labels[:, :, 2] > 0)
    bare = np.asarray(~visible.any(1))
    if bare.any():
        distance[:, bare] = _outside(points[:, :, :2], box[bare])
        visible = visible | bare[:, None]
    similarity = np.exp(-distance / variance / (area[None, :, None] + _TINY) / 2)
    return (similarity * visible).sum(2) / visible.sum(1)


def oks(
    predicted: ArrayLike, truth: ArrayLike, areas: ArrayLike, boxes: ArrayLike, sigmas: Sequence[float]
) -> NDArray[np.float64]:
    """OKS [N] of N predictions, each with its own ground truth; arguments as of `oks_matrix` with D = G = N."""
    matrix = oks_matrix(predicted, truth, areas, boxes, sigmas)
    if matrix.shape[0] != matrix.shape[1]:
        raise InputError(
            f"predicted and truth must have one row per person, got {matrix.shape[0]} and {matrix.shape[1]}"
        )
    return np.diagonal(matrix).copy()


class MeanOKS:
    """The mean OKS of people whose partner is known, and the share at or above each threshold."""

    def __init__(self, sigmas: Sequence[float], thresholds: Sequence[float] = (0.5, 0.75)) -> None:
        self._sigmas, self._thresholds = tuple(sigmas), tuple(thresholds)
        self._values: list[float] = []

    def update(self, predicted: ArrayLike, truth: ArrayLike, areas: ArrayLike, boxes: ArrayLike) -> None:
        """Adds N people; see `oks`. Those without a labelled joint do not count."""
        labelled = (np.asarray(truth)[:, :, 2] > 0).any(1)
        self._values += oks(predicted, truth, areas, boxes, self._sigmas)[labelled].tolist()

    def merge(self, other: MeanOKS) -> None:
        """Adds the people of another object."""
        self._values += other._values

    def compute(self) -> dict[str, float]:
        """``mean``, ``at_0.5`` and so on (nan without people), and ``count``."""
        values = np.asarray(self._values)
        shares = {f"at_{t:g}": float((values >= t).mean()) if len(values) else float("nan") for t in self._thresholds}
        return {"mean": float(values.mean()) if len(values) else float("nan"), **shares, "count": float(len(values))}


def _outside(points: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances [D, G, K] of points [D, K, 2] from boxes [G, 4] enlarged by their own size on each side."""
    size = boxes[:, 2:] - boxes[:, :2]
    low, high = boxes[:, :2] - size, boxes[:, 2:] + size
    spread = points[:, None]
    beyond = np.maximum(low[None, :, None] - spread, 0) + np.maximum(spread - high[None, :, None], 0)
    return (beyond**2).sum(3)
