"""One person found twice: the weaker finding goes."""

from __future__ import annotations

import numpy as np

from pyposeext.structures import Poses
from pyposeext.trackers.costs import box_iou, pose_oks


def remove_duplicates(poses: Poses, maximum_oks: float, joint_score: float = 0.0) -> Poses:
    """The people left when, by falling score, each one too like a better one is dropped; best first.

    Likeness is OKS with the better one in the place of the ground truth, or the boxes' IoU where the skeleton has no
    sigmas; joints below `joint_score` do not count.

    Args:
        poses: N people.
        maximum_oks: people more alike than this are one.
    """
    poses = poses[np.argsort(-poses.scores, kind="stable")]
    if poses.skeleton.sigmas:
        areas = (poses.boxes[:, 2] - poses.boxes[:, 0]) * (poses.boxes[:, 3] - poses.boxes[:, 1])
        alike = pose_oks(poses.keypoints, poses.keypoints, areas, poses.skeleton.sigmas, joint_score)
    else:
        alike = box_iou(poses.boxes, poses.boxes)
    kept = np.ones(len(poses), dtype=bool)
    for person in range(len(poses)):
        if kept[person]:
            kept[person + 1 :] &= alike[person, person + 1 :] <= maximum_oks
    return poses[kept]
