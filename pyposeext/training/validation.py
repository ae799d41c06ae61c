"""A model's box and keypoint precision on a labelled set."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pyposeext.datasets.coco import CocoKeypoints
from pyposeext.metrics.coco import CocoEvaluation


@torch.inference_mode()
def validate(model: nn.Module, dataset: CocoKeypoints) -> dict[str, float]:
    """Runs a detector on whole images and measures it as COCO does.

    Args:
        model: called in evaluation mode as ``model([image])``; gives boxes, scores and keypoints of people.
        dataset: with its folder of images.

    Returns:
        ``box_AP``, ``box_AP50``, ``keypoint_AP``, ``keypoint_AP50``, 0..1.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    sigmas = dataset.skeleton.sigmas
    boxes = CocoEvaluation(dataset.content, "boxes")
    keypoints = CocoEvaluation(dataset.content, "keypoints", sigmas=sigmas)
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        image = torch.from_numpy(sample.image).to(device).permute(2, 0, 1).float() / 255
        found = {name: np.asarray(value.cpu()) for name, value in model([image])[0].items()}
        scores, person = found["scores"], dataset.person_category
        boxes.update(sample.image_id, scores, boxes=found["boxes"], category_id=person)
        keypoints.update(sample.image_id, scores, keypoints=found["keypoints"], category_id=person)
    model.train(training)
    box, keypoint = boxes.compute(), keypoints.compute()
    return {
        "box_AP": box["AP"],
        "box_AP50": box["AP50"],
        "keypoint_AP": keypoint["AP"],
        "keypoint_AP50": keypoint["AP50"],
    }
