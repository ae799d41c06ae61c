"""Every registered model at a size that a test can afford, and data for it."""

from __future__ import annotations

import torch

from pyposeext.models import create_model

_SMALL = {
    "min_size": 96,
    "max_size": 128,
    "frozen_norm": False,
    "proposals": (30, 15),
    "detections_per_image": 4,
    "keypoint_rois_per_person": 1,
}
# Builder arguments, and a learning rate with the number of steps in which it overfits. With batch norms over two small
# images, losses bounce, the deepest trunk's most.
REDUCED = {
    "keypoint_rcnn_efficientnet_lite0_fpn": (_SMALL, 1e-3, 5),
    "keypoint_rcnn_resnet18_fpn": (_SMALL, 1e-4, 8),
    "keypoint_rcnn_resnet50_fpn": (_SMALL, 1e-4, 5),
    "keypoint_rcnn_resnet101_fpn": (_SMALL, 2e-5, 8),
}


def reduced_model(name, **arguments):
    torch.manual_seed(0)
    return create_model(name, **{**REDUCED[name][0], **arguments})


def sample_images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 96, 80, generator=generator), torch.rand(3, 70, 110, generator=generator)]


def sample_targets(num_joints=17):
    """One person in the first image and nobody in the second."""
    generator = torch.Generator().manual_seed(2)
    box = torch.tensor([[12.0, 10, 60, 86]])
    points = (
        box[:, None, :2] + torch.rand(1, num_joints, 2, generator=generator) * 0.9 * (box[:, 2:] - box[:, :2])[:, None]
    )
    keypoints = torch.cat([points, torch.full((1, num_joints, 1), 2.0)], dim=-1)
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "keypoints": torch.zeros(0, num_joints, 3),
    }
    return [{"boxes": box, "labels": torch.ones(1, dtype=torch.int64), "keypoints": keypoints}, empty]
