"""What every layer of the package hands on: `Poses`, and the `Skeleton` that names its joints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyposeext.errors import InputError


@dataclass(frozen=True)
class Skeleton:
    """The joints of a data set or a model.

    Attributes:
        name: what it is called, for instance ``"coco17"``.
        names: one name per joint, K in all; left and right are the subject's own.
        edges: pairs of joint indices that are drawn as limbs.
        flip_pairs: pairs of joint indices that change places when an image is mirrored.
        sigmas: one per joint, the OKS falloff constant (COCO's definition), or () where the data set defines none.
    """

    name: str
    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    flip_pairs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        for what, pairs in (("edges", self.edges), ("flip_pairs", self.flip_pairs)):
            for pair in pairs:
                if not all(0 <= joint < count for joint in pair):
                    raise InputError(f"Skeleton {self.name!r}: {what} must be indices in 0..{count - 1}, got {pair}")
        if self.sigmas and len(self.sigmas) != count:
            raise InputError(f"Skeleton {self.name!r}: sigmas must hold {count} values or none, got {len(self.sigmas)}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def flip_order(self) -> tuple[int, ...]:
        """For each joint, the joint it becomes in a mirrored image (K indices)."""
        order = list(range(len(self)))
        for a, b in self.flip_pairs:
            order[a], order[b] = b, a
        return tuple(order)


@dataclass
class Poses:
    """The people of one image.

    Attributes:
        keypoints: float32 [N, K, 3], x and y in source pixels (an integer is a pixel's centre) and a score per joint.
        boxes: float32 [N, 4], x1, y1, x2, y2 in source pixels.
        scores: float32 [N], in 0..1.
        skeleton: what the K joints are.
        ids: int64 [N], the track each person belongs to, or None where nothing was tracked.
        masks: N COCO run-length encodings, or None where the model gives none.
    """

    keypoints: NDArray[np.float32]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    skeleton: Skeleton
    ids: NDArray[np.int64] | None = None
    masks: list[dict[str, Any]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.keypoints = _array("keypoints", self.keypoints, (None, len(self.skeleton), 3))
        count = len(self.keypoints)
        self.boxes = _array("boxes", self.boxes, (count, 4))
        self.scores = _array("scores", self.scores, (count,))
        if self.ids is not None:
            self.ids = np.asarray(self.ids, dtype=np.int64)
            if self.ids.shape != (count,):
                raise InputError(f"Poses: ids must be [{count}] or None, got shape {list(self.ids.shape)}")
        if self.masks is not None and len(self.masks) != count:
            raise InputError(f"Poses: masks must hold {count} encodings or be None, got {len(self.masks)}")

    def __len__(self) -> int:
        return len(self.keypoints)

    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> Poses:
        """The people that `index` (a slice, indices or a boolean mask over N) selects, as new Poses."""
        rows = np.arange(len(self))[index]
        if rows.ndim != 1:
            raise InputError(f"Poses: index must be a slice, a list of indices or a mask, got {index!r}")
        return replace(
            self,
            keypoints=self.keypoints[rows],
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            ids=None if self.ids is None else self.ids[rows],
            masks=None if self.masks is None else [self.masks[row] for row in rows],
        )

    @classmethod
    def empty(cls, skeleton: Skeleton, tracked: bool = False) -> Poses:
        """No people, with arrays of the right shapes."""
        ids = np.zeros(0, np.int64) if tracked else None
        keypoints = np.zeros((0, len(skeleton), 3), np.float32)
        return cls(keypoints, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), skeleton, ids)


def _array(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    array = np.asarray(value, dtype=np.float32)
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        expected = ", ".join("N" if size is None else str(size) for size in shape)
        raise InputError(f"Poses: {name} must be [{expected}], got shape {list(array.shape)}")
    return array
