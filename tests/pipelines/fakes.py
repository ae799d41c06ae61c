"""Models that find what is bright, so that pipelines are tested without weights."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from pyposeext.io.writer import FramePoses
from pyposeext.models.top_down import TopDownPose
from pyposeext.ops.crop_affine import IMAGENET_MEAN, IMAGENET_STD
from pyposeext.pipelines.detectors import Detections
from pyposeext.skeletons import COCO17
from pyposeext.structures import Poses

MAP_SIZE = 56


class BrightSpotModel(nn.Module):
    """Finds one person: the box around all pixels brighter than half, every joint at their mean.

    It has the methods and conventions of `pyposeext.models.mask_rcnn.MaskRCNN`; the heatmaps are sure of the joints.
    """

    def __init__(self, score: float = 0.9, label: int = 1) -> None:
        super().__init__()
        self.skeleton = COCO17
        self.score, self.label = score, label
        self.calls: list[list[tuple[int, ...]]] = []
        self.transform = SimpleNamespace(min_size=(120,), keypoint_offset=0.5, resized=self._resized)

    @staticmethod
    def _resized(size, min_size):
        scale = min_size / min(size)
        return int(size[0] * scale), int(size[1] * scale)

    def forward(self, images, targets=None, resize=True, heatmaps=False):
        assert not resize
        assert not torch.is_grad_enabled()
        self.calls.append([tuple(image.shape) for image in images])
        return [self._detection(image) for image in images]

    def detect_boxes(self, images, resize=True):
        return BrightSpotModel.forward(self, images, None, resize)

    def poses_in_boxes(self, images, boxes, resize=True, heatmaps=False):
        assert not resize
        self.calls.append([tuple(image.shape) for image in images])
        results = []
        for image, image_boxes in zip(images, boxes, strict=True):
            assert image_boxes.shape == (1, 4)
            results.append({key: self._detection(image)[key] for key in ("keypoints", "keypoint_heatmaps")})
        return results

    def _detection(self, image):
        rows, columns = torch.nonzero(image.mean(dim=0) > 0.5, as_tuple=True)
        count = min(1, len(rows))
        boxes, keypoints = torch.zeros(count, 4), torch.ones(count, 17, 3)
        if count:
            boxes[0] = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            keypoints[0, :, 0], keypoints[0, :, 1] = columns.float().mean(), rows.float().mean()
        heatmaps = torch.zeros(count, 17, MAP_SIZE, MAP_SIZE)
        heatmaps[:, :, 20, 30] = 20
        return {
            "boxes": boxes,
            "labels": torch.full((count,), self.label),
            "scores": torch.full((count,), self.score),
            "keypoints": keypoints,
            "keypoint_heatmaps": heatmaps,
        }


class MaskSpotModel(BrightSpotModel):
    """The same with a mask, the left half of the box; perhaps without joints."""

    has_masks, mask_rule = True, "detectron2"

    def __init__(self, skeleton=COCO17, **arguments) -> None:
        super().__init__(**arguments)
        self.skeleton = skeleton

    def forward(self, images, targets=None, resize=True, heatmaps=False, masks="soft"):
        assert (masks, heatmaps) == ("cells", len(self.skeleton) > 0)
        return super().forward(images, targets, resize, heatmaps)

    def _detection(self, image):
        found = super()._detection(image)
        found["masks"] = torch.zeros(len(found["boxes"]), 28, 28)
        found["masks"][:, :, :14] = 1
        if not len(self.skeleton):
            del found["keypoints"], found["keypoint_heatmaps"]
        return found


def one_person(image: np.ndarray) -> Poses:
    """One person as large as the image."""
    height, width = image.shape[:2]
    keypoints = np.full((1, 17, 3), 0.9)
    keypoints[0, :, 0], keypoints[0, :, 1] = np.linspace(0, width, 17), height / 2
    return Poses(keypoints, np.array([[0, 0, width, height]]), np.array([0.9]), COCO17)


def estimate(frames) -> list[Poses]:
    """One person in every frame, a stand-in for an estimator."""
    return [one_person(frame.image) for frame in frames]


def numbers(frames: list[FramePoses]) -> list[int]:
    return [frame.number for frame in frames]


class EveryFourth(nn.Module):
    """The pixels that the pixels of a heatmap of stride 4 stand for."""

    def forward(self, images):
        return images[:, :, ::4, ::4]


def bright_pose_model(skeleton=COCO17, input_size=(64, 48)) -> TopDownPose:
    """A top-down model without training: every heatmap is how bright the crop is, so all joints are where it is so."""
    head = nn.Conv2d(3, len(skeleton), 1)
    with torch.no_grad():
        head.weight.copy_((torch.tensor(IMAGENET_STD) / 3)[None, :, None, None].expand_as(head.weight))
        head.bias.fill_(sum(IMAGENET_MEAN) / 3)
    return TopDownPose(EveryFourth(), head, skeleton, input_size, multiple=4)


class GivenBoxes:
    """A detector that finds the same people in every image, or what `find` gives for each."""

    def __init__(self, boxes=(), scores=(), find=None):
        self.source = {"name": "given"}
        self.find = find or (lambda _: (boxes, scores))
        self.batches: list[list[int | None]] = []

    def detect(self, inputs):
        self.batches.append([each.number for each in inputs])
        found = [self.find(each) for each in inputs]
        return [
            Detections(np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(scores, np.float32))
            for boxes, scores in found
        ]


def blob(centres, size=(240, 320), width=12.0, colour=0.9):
    """An image that is bright around each centre (x, y)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.zeros(size)
    for x, y in centres:
        image = np.maximum(image, np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2)))
    return np.repeat((255 * colour * image).astype(np.uint8)[:, :, None], 3, axis=2)
