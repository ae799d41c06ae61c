"""Poses made up for a test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pyposeext import ops
from pyposeext.io.writer import FramePoses
from pyposeext.skeletons import COCO17
from pyposeext.structures import Poses, Skeleton


def make_poses(count: int, seed: int = 0, tracked: bool = True, skeleton: Skeleton = COCO17) -> Poses:
    """That many people at random places, with ids 10, 11, ... where tracked."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 200, (count, 2))
    sides = rng.uniform(50, 100, (count, 2))
    points = corners[:, None] + rng.uniform(0, 1, (count, len(skeleton), 2)) * sides[:, None]
    keypoints = np.concatenate([points, rng.uniform(0, 1, (count, len(skeleton), 1))], axis=2)
    boxes = np.concatenate([corners, corners + sides], axis=1)
    ids = 10 + np.arange(count) if tracked else None
    return Poses(keypoints, boxes, rng.uniform(0.5, 1, count), skeleton, ids)


def with_masks(poses: Poses, size: tuple[int, int] = (240, 320)) -> Poses:
    """The same people with masks that fill their boxes."""
    cells, boxes = torch.ones(len(poses), 28, 28), torch.from_numpy(poses.boxes)
    encoded = ops.paste_masks_rle(cells, boxes, size, rule="detectron2")
    return replace(poses, masks=[{**mask, "counts": mask["counts"].decode()} for mask in encoded])


def make_frames(tracked: bool = True, skeleton: Skeleton = COCO17) -> list[FramePoses]:
    """Five frames at uneven times with 2, 0, 3, 1 and 2 people."""
    image = np.zeros((240, 320, 3), np.uint8)
    return [
        FramePoses(number, number * number / 7, make_poses(count, number, tracked, skeleton), image)
        for number, count in enumerate((2, 0, 3, 1, 2))
    ]
