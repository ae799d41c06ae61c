"""The named skeletons. Joint names are shared, so that one skeleton converts to another by name."""

from __future__ import annotations

from pyposeext.errors import InputError
from pyposeext.structures import Skeleton

_BODY = tuple(
    f"{side}_{part}" for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for side in ("left", "right")
)
_COCO_SIGMAS = tuple(value / 1000 for value in (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89))
_PAIRS_FROM_5 = tuple((joint, joint + 1) for joint in range(5, 17, 2))
_LIMBS = ((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10))

COCO17 = Skeleton(
    name="coco17",
    names=("nose", "left_eye", "right_eye", "left_ear", "right_ear", *_BODY),
    edges=(*_LIMBS, (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    flip_pairs=((1, 2), (3, 4), *_PAIRS_FROM_5),
    sigmas=_COCO_SIGMAS,
)

# PoseTrack 2018 lists 17 joints; its ears are never annotated but stand in the vector.
POSETRACK18 = Skeleton(
    name="posetrack18",
    names=("nose", "head_bottom", "head_top", "left_ear", "right_ear", *_BODY),
    edges=(*_LIMBS, (0, 1), (0, 2), (1, 5), (1, 6)),
    flip_pairs=((3, 4), *_PAIRS_FROM_5),
    sigmas=_COCO_SIGMAS,
)

LSP14 = Skeleton(
    name="lsp14",
    names=(
        "right_ankle",
        "right_knee",
        "right_hip",
        "left_hip",
        "left_knee",
        "left_ankle",
        "right_wrist",
        "right_elbow",
        "right_shoulder",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
        "head_bottom",
        "head_top",
    ),
    edges=((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (9, 10), (10, 11), (2, 8), (3, 9), (12, 13)),
    flip_pairs=((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9)),
)

_ALL = {skeleton.name: skeleton for skeleton in (COCO17, POSETRACK18, LSP14)}


def get_skeleton(name: str) -> Skeleton:
    """The skeleton of that name, or an InputError that lists the names there are."""
    if name not in _ALL:
        raise InputError(f"skeleton must be one of {', '.join(sorted(_ALL))}, got {name!r}")
    return _ALL[name]
