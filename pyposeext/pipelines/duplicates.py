"""One person found twice: the weaker finding goes."""

from __future__ import annotations

import numpy as np

from pyposeext.structures import Poses
from pyposeext.trackers.costs import box_areas, box_iou, pose_oks

_FEWEST_JOINTS = 3


def remove_duplicates(poses: Poses, maximum_oks: float, joint_score: float = 0.3) -> Poses:
    """The people left when, by falling score, each one too like a better one is dropped; best first.

    Likeness is OKS with the better one in the place of the ground truth, over the joints that both are sure of: a
    person may also be found in part, and the joints beyond the box of that part are guesses. Without three such joints
    nothing is known and both stay. Where the skeleton has no sigmas, it is the boxes' IoU.

    Args:
        poses: N people.
        maximum_oks: people more alike than this are one.
        joint_score: from which a finding is sure of a joint.
    """
    poses = poses[np.argsort(-poses.scores, kind="stable")]
    if poses.skeleton.sigmas:
        areas = box_areas(poses.boxes)
        alike = pose_oks(poses.keypoints, poses.keypoints, areas, poses.skeleton.sigmas, joint_score)
        sure = (poses.keypoints[:, :, 2] >= joint_score).astype(np.int64)
        alike[sure @ sure.T < _FEWEST_JOINTS] = 0
    else:
        alike = box_iou(poses.boxes, poses.boxes)
    kept = np.ones(len(poses), dtype=bool)
    for person in range(len(poses)):
        if kept[person]:
            kept[person + 1 :] &= alike[person, person + 1 :] <= maximum_oks
    return poses[kept]
