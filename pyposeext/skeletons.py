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

MPII16 = Skeleton(
    name="mpii16",
    names=(
        "right_ankle",
        "right_knee",
        "right_hip",
        "left_hip",
        "left_knee",
        "left_ankle",
        "pelvis",
        "thorax",
        "head_bottom",
        "head_top",
        "right_wrist",
        "right_elbow",
        "right_shoulder",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
    ),
    edges=(
        *((0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9)),
        *((8, 12), (12, 11), (11, 10), (8, 13), (13, 14), (14, 15)),
    ),
    flip_pairs=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
)

# PoseTrack 2017 lists 15 joints, those that its evaluation of 2018 takes too.
POSETRACK17 = Skeleton(
    name="posetrack17",
    names=(*LSP14.names[:13], "nose", "head_top"),
    edges=(
        *((0, 1), (1, 2), (5, 4), (4, 3), (2, 3), (2, 8), (3, 9), (8, 9), (8, 7), (7, 6)),
        *((9, 10), (10, 11), (12, 8), (12, 9), (12, 13), (13, 14)),
    ),
    flip_pairs=LSP14.flip_pairs,
)

# Of detectors that give boxes and masks alone.
NO_JOINTS = Skeleton(name="none", names=(), edges=(), flip_pairs=())

_ALL = {skeleton.name: skeleton for skeleton in (COCO17, POSETRACK17, POSETRACK18, LSP14, MPII16, NO_JOINTS)}


def skeleton_of(num_joints: int) -> Skeleton:
    """The skeleton that published models of so many joints have: 17 COCO's, 16 MPII's, 15 PoseTrack's, 14 LSP's.

    Any other number gives joints without names of their own. A checkpoint's manifest may name another skeleton.
    """
    known = {len(skeleton): skeleton for skeleton in (COCO17, MPII16, POSETRACK17, LSP14)}
    if num_joints in known:
        return known[num_joints]
    if num_joints < 1:
        raise InputError(f"num_joints must be at least 1, got {num_joints}")
    return Skeleton(f"joints{num_joints}", tuple(f"joint_{index}" for index in range(num_joints)), (), ())


def get_skeleton(name: str) -> Skeleton:
    """The skeleton of that name, or an InputError that lists the names there are."""
    if name not in _ALL:
        raise InputError(f"skeleton must be one of {', '.join(sorted(_ALL))}, got {name!r}")
    return _ALL[name]
