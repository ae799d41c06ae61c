"""PCK, the share of joints within a distance of the truth that scales with the person, and its relatives.

Box variant: JHMDB, Penn Action. Torso variant: LSP, FLIC. Head variant (PCKh): MPII (Andriluka et al., CVPR 2014).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyposeext.errors import InputError
from pyposeext.skeletons import MPII16

Pooling = Literal["all", "joints", "sequences"]

_MPII_GROUPS = {
    group: tuple(index for index, name in enumerate(MPII16.names) if name.endswith(joint))
    for group, joint in (
        ("head", "head_top"),
        *((name, f"_{name}") for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")),
    )
}
_IN_MEAN = [index for index, name in enumerate(MPII16.names) if name not in ("pelvis", "thorax")]


class PCK:
    """Counts joints that lie within `threshold` times a person's size of the truth.

    Args:
        threshold: share of the size.
        strict: True compares with <, as mmpose does; False with <=, as LSTM Pose Machines and DeciWatch do.
        pooling: how the overall figure is made. "all": correct joints over labelled joints. "joints": the mean over
            joints that were labelled at least once (mmpose). "sequences": the mean over joints of each sequence, then
            over sequences (DeciWatch).
    """

    def __init__(self, threshold: float = 0.2, strict: bool = False, pooling: Pooling = "all") -> None:
        if threshold <= 0:
            raise InputError(f"threshold must be positive, got {threshold}")
        if pooling not in ("all", "joints", "sequences"):
            raise InputError(f"pooling must be 'all', 'joints' or 'sequences', got {pooling!r}")
        self.threshold, self.strict, self.pooling = threshold, strict, pooling
        # Per sequence: hits and labelled joints, [2, K].
        self._counts: dict[Hashable, NDArray[np.int64]] = defaultdict(lambda: np.zeros((2, 0), np.int64))

    def update(self, predicted: ArrayLike, truth: ArrayLike, sizes: ArrayLike, sequence: Hashable = None) -> None:
        """Adds N people.

        Args:
            predicted: [N, K, 2 or more], x and y.
            truth: [N, K, 3], x, y and visibility; joints with visibility 0 do not count.
            sizes: [N], what the threshold is a share of, in pixels; people without a positive size do not count.
            sequence: which sequence they belong to, for pooling by sequences.
        """
        distance, labelled, size = _measured(predicted, truth, sizes)
        reach = self.threshold * size[:, None]
        counted = labelled & (size[:, None] > 0)
        hit = counted & (distance < reach if self.strict else distance <= reach)
        self._add(sequence, np.stack([hit.sum(0), counted.sum(0)]))

    def merge(self, other: PCK) -> None:
        """Adds what another object of the same settings has counted."""
        if (other.threshold, other.strict, other.pooling) != (self.threshold, self.strict, self.pooling):
            raise InputError("other must have the same threshold, strict and pooling")
        for sequence, counts in other._counts.items():
            self._add(sequence, counts)

    def compute(self) -> dict[str, float | list[float] | int]:
        """``overall`` in 0..1, ``joints`` [K] (nan where never labelled), ``count`` of labelled joints."""
        parts = list(self._counts.values())
        if not parts or not any(part[1].sum() for part in parts):
            return {"overall": float("nan"), "joints": [], "count": 0}
        total = np.sum(parts, axis=0)
        joints = _ratio(total)
        if self.pooling == "all":
            overall = total[0].sum() / total[1].sum()
        elif self.pooling == "joints":
            overall = np.nanmean(joints)
        else:
            overall = np.mean([np.nanmean(_ratio(part)) for part in parts if part[1].any()])
        return {"overall": float(overall), "joints": joints.tolist(), "count": int(total[1].sum())}

    def _add(self, sequence: Hashable, counts: NDArray[np.int64]) -> None:
        known = self._counts[sequence]
        if known.shape[1] not in (0, counts.shape[1]):
            raise InputError(f"truth must have {known.shape[1]} joints as before, got {counts.shape[1]}")
        self._counts[sequence] = counts + known if known.size else counts.copy()


class PCKh:
    """PCKh of MPII's 16 joints by HRNet's protocol (lib/dataset/mpii.py).

    A joint is right where its distance over the head's size is at most the threshold. Pelvis and thorax take no part in
    the means.

    Args:
        threshold: share of the head's size.
        strict: True compares with <, as mmpose does.
        tenth: the threshold of the second mean. "exact": 0.1. "published": 0.11, what HRNet's table of results calls
            Mean@0.1, since it takes the entry after the one for 0.1.
    """

    def __init__(
        self, threshold: float = 0.5, strict: bool = False, tenth: Literal["exact", "published"] = "exact"
    ) -> None:
        if threshold <= 0:
            raise InputError(f"threshold must be positive, got {threshold}")
        if tenth not in ("exact", "published"):
            raise InputError(f"tenth must be 'exact' or 'published', got {tenth!r}")
        self.threshold, self.strict, self.tenth = threshold, strict, tenth
        # Multiples of 0.01 as HRNet computes its thresholds, which matters where a distance is just there.
        second = float(np.arange(0, 0.51, 0.01)[10 if tenth == "exact" else 11])
        self._thresholds = threshold, second
        # Right joints at either threshold, and labelled joints, [3, K].
        self._counts = np.zeros((3, len(MPII16)), np.int64)

    def update(self, predicted: ArrayLike, truth: ArrayLike, head_boxes: ArrayLike, origin: int = 0) -> None:
        """Adds N people.

        Args:
            predicted: [N, 16, 2 or more], x and y, pixels counted from 0.
            truth: [N, 16, 3], x, y and visibility; joints with visibility 0 are missing and do not count.
            head_boxes: [N, 4], x1, y1, x2, y2; people whose box has no extent do not count.
            origin: 1 where `truth` counts pixels from 1, as MPII's own files do; `read_mpii_truth` counts from 0.
        """
        if np.shape(truth)[1:] != (len(MPII16), 3):
            raise InputError(f"truth must be [N, 16, 3], got {list(np.shape(truth))}")
        if np.shape(head_boxes)[1:] != (4,):
            raise InputError(f"head_boxes must be [N, 4], got {list(np.shape(head_boxes))}")
        if origin not in (0, 1):
            raise InputError(f"origin must be 0 or 1, got {origin}")
        points = np.asarray(predicted, dtype=np.float64) + origin
        distance, labelled, size = _measured(points, truth, head_size(head_boxes))
        counted = labelled & (size[:, None] > 0)
        # Divided, not multiplied, as published: the two differ in the last bit, and so may a joint at the threshold.
        shares = distance / np.where(size > 0, size, 1)[:, None]
        hits = [shares < limit if self.strict else shares <= limit for limit in self._thresholds]
        self._counts += np.stack([*((hit & counted).sum(0) for hit in hits), counted.sum(0)])

    def merge(self, other: PCKh) -> None:
        """Adds what another object of the same settings has counted."""
        if (self.threshold, self.strict, self.tenth) != (other.threshold, other.strict, other.tenth):
            raise InputError("other must have the same threshold, strict and tenth")
        self._counts += other._counts

    def compute(self) -> dict[str, float | list[float] | int]:
        """Shares in 0..1, nan where nothing was labelled.

        ``head``, ``shoulder``, ``elbow``, ``wrist``, ``hip``, ``knee``, ``ankle``: the mean of left and right.
        ``mean`` and ``mean@0.1``: over all labelled joints but pelvis and thorax. ``joints`` [16]. ``count`` of the
        labelled joints in the means.
        """
        joints = _ratio(self._counts[[0, 2]])
        right, right_at_tenth, labelled = self._counts[:, _IN_MEAN].sum(axis=1)
        groups = {name: float(np.mean(joints[list(indices)])) for name, indices in _MPII_GROUPS.items()}
        return {
            **groups,
            "mean": float(right / labelled) if labelled else float("nan"),
            "mean@0.1": float(right_at_tenth / labelled) if labelled else float("nan"),
            "joints": joints.tolist(),
            "count": int(labelled),
        }


def box_size(boxes: ArrayLike) -> NDArray[np.float64]:
    """The longer side [N] of boxes [N, 4] (x1, y1, x2, y2): PCK of JHMDB and Penn Action."""
    box = np.asarray(boxes, dtype=np.float64)
    return np.maximum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])


def torso_size(
    truth: ArrayLike, left_shoulder: int, right_hip: int, predicted: ArrayLike | None = None
) -> NDArray[np.float64]:
    """The distance [N] from left shoulder to right hip in truth [N, K, 3]: PCK of LSP and FLIC.

    Where one of the two is not labelled the size is 0. Where the distance is below one pixel, that in `predicted`
    [N, K, 2 or more] is taken if it is given (JHMDB).
    """
    labels = np.asarray(truth, dtype=np.float64)
    size = np.linalg.norm(labels[:, left_shoulder, :2] - labels[:, right_hip, :2], axis=1)
    if predicted is not None:
        points = np.asarray(predicted, dtype=np.float64)
        other = np.linalg.norm(points[:, left_shoulder, :2] - points[:, right_hip, :2], axis=1)
        size = np.where(size < 1, other, size)
    labelled = (labels[:, left_shoulder, 2] > 0) & (labels[:, right_hip, 2] > 0)
    return np.where(labelled, size, 0.0)


def head_size(head_boxes: ArrayLike) -> NDArray[np.float64]:
    """0.6 times the diagonal [N] of head boxes [N, 4] (x1, y1, x2, y2): PCKh of MPII, usually with threshold 0.5."""
    box = np.asarray(head_boxes, dtype=np.float64)
    return 0.6 * np.hypot(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])


def _measured(
    predicted: ArrayLike, truth: ArrayLike, sizes: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Distances [N, K], which joints are labelled [N, K], and sizes [N] of what `PCK.update` takes."""
    points, labels, size = (np.asarray(value, dtype=np.float64) for value in (predicted, truth, sizes))
    if labels.ndim != 3 or labels.shape[2] != 3:
        raise InputError(f"truth must be [N, K, 3], got {list(labels.shape)}")
    if points.shape[:2] != labels.shape[:2] or points.ndim != 3 or points.shape[2] < 2:
        raise InputError(
            f"predicted must be [N, K, 2 or more] like truth {list(labels.shape)}, got {list(points.shape)}"
        )
    if size.shape != (len(labels),):
        raise InputError(f"sizes must be [{len(labels)}], got {list(size.shape)}")
    distance = np.linalg.norm(points[:, :, :2] - labels[:, :, :2], axis=2)
    return distance, labels[:, :, 2] > 0, size


def _ratio(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.where(counts[1] > 0, counts[0] / np.maximum(counts[1], 1), np.nan)
