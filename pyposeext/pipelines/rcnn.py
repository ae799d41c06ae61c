"""People and joints from an R-CNN: boxes from the whole image, and a second look at each in a crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyposeext import ops
from pyposeext.errors import InputError
from pyposeext.pipelines.acceleration import padded_count
from pyposeext.pipelines.crops import cut_out
from pyposeext.pipelines.detectors import (
    PERSON,
    Detections,
    ModelDetector,
    box_columns,
    resize_for,
    source_ratio,
)
from pyposeext.pipelines.duplicates import remove_duplicates
from pyposeext.pipelines.estimator import Estimator, finite_people, repaired_joints
from pyposeext.pipelines.inputs import InputImage, model_images
from pyposeext.pipelines.joint_scores import joint_scores
from pyposeext.structures import Poses

_BOX_COLUMNS = 6


@dataclass
class RCNNEstimator(Estimator):
    """An R-CNN (`pyposeext.models.mask_rcnn.MaskRCNN`, or what has its methods) as an estimator.

    The scores of joints are probabilities in 0..1, see `pyposeext.pipelines.joint_scores`; those of people are their
    boxes'. Where boxes are given without scores, a person's is the mean of the joints'. A model with a mask branch also
    gives masks for the boxes it found itself; one without joints gives boxes and masks alone.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._has_joints = len(self.skeleton) > 0
        self._has_masks = bool(getattr(self.model, "has_masks", False))
        self._from_crops = self._has_joints and (self.settings.pose_from == "crops" or self.detector is not None)
        self._boxes_from = self.detector or ModelDetector(self.model, self.device)
        if self.detector is not None and not self._has_joints:
            raise InputError("detector must be None with a model that finds no joints: it has nothing to add to boxes")

    def _people(self, inputs: Sequence[InputImage], score_threshold: float, tracked: bool) -> list[Poses]:
        masks: list[list[dict[str, Any]] | None] = [None] * len(inputs)
        if self._from_crops and not (self._has_masks and self.detector is None):
            maximum = self.settings.maximum_people
            boxes = [found.best(score_threshold, maximum) for found in self._boxes_from.detect(inputs)]
        else:
            whole = self._whole_images([each.image for each in inputs], score_threshold)
            if not self._from_crops:
                return [self._unique(poses) for poses in whole]
            boxes = [Detections(poses.boxes, poses.scores) for poses in whole]
            masks = [poses.masks for poses in whole]
        people = []
        for each, found, encoded in zip(inputs, boxes, masks, strict=True):
            poses = replace(self._crop_poses(each.image, found.boxes, found.scores), masks=encoded)
            people.append(self._unique(poses[finite_people(poses)]))
        return people

    def _poses_in(
        self, image: NDArray[np.uint8], boxes: NDArray[np.float32], scores: NDArray[np.float32] | None
    ) -> Poses:
        if not self._has_joints:
            raise InputError("boxes must be None with a model that finds no joints: it has nothing to add to them")
        poses = repaired_joints(self._crop_poses(image, boxes, scores))
        return poses if scores is not None else replace(poses, scores=poses.keypoints[..., 2].mean(axis=1))

    def _unique(self, poses: Poses) -> Poses:
        return remove_duplicates(poses, self.settings.duplicate_oks, self.settings.duplicate_joint_score)

    def _whole_images(self, images: Sequence[NDArray[np.uint8]], score_threshold: float) -> list[Poses]:
        """The people in the whole images at the model's own size, best first."""
        small = [resize_for(self.model, image) for image in images]
        options: dict[str, Any] = {"heatmaps": True} if self._has_joints else {}
        if self._has_masks:
            options["masks"] = "cells"
        found = self.model(model_images(self.device, small), resize=False, **options)
        rows = torch.cat([self._columns(each) for each in found]).cpu().numpy()
        parts = np.split(rows, np.cumsum([len(each["boxes"]) for each in found])[:-1])
        people = []
        for part, each, image, resized in zip(parts, found, images, small, strict=True):
            ratio = source_ratio(image, resized)
            poses = self._poses_of(part, ratio)
            kept = (part[:, 5] == PERSON) & (poses.scores >= score_threshold) & finite_people(poses)
            chosen = np.flatnonzero(kept)[: self.settings.maximum_people]
            poses = poses[chosen]
            if self._has_masks:
                poses = replace(poses, masks=self._masks(each["masks"], chosen, poses.boxes, image.shape[:2]))
            people.append(poses)
        return people

    def _columns(self, found: dict[str, Any]) -> torch.Tensor:
        """What was found in an image as rows [N, 6 + 3 K]: box, score, label, then x, y and score of each joint."""
        boxes = box_columns(found)
        if not self._has_joints:
            return boxes
        scores = joint_scores(found["keypoint_heatmaps"])
        joints = torch.cat([found["keypoints"][..., :2], scores[..., None]], dim=-1)
        return torch.cat([boxes, joints.float().flatten(1)], dim=1)

    def _poses_of(self, rows: NDArray[np.float32], ratio: NDArray[np.float32]) -> Poses:
        """Rows of `_columns` as people in source pixels."""
        keypoints = rows[:, _BOX_COLUMNS:].reshape(len(rows), len(self.skeleton), 3).copy()
        offset = np.float32(self.model.transform.keypoint_offset)
        keypoints[..., :2] = (keypoints[..., :2] + offset) * ratio - offset
        return Poses(keypoints, rows[:, :4] * np.tile(ratio, 2), rows[:, 4], self.skeleton)

    def _masks(
        self, cells: torch.Tensor, chosen: NDArray[np.int64], boxes: NDArray[np.float32], size: tuple[int, ...]
    ) -> list[dict[str, Any]]:
        """The chosen people's masks at the resolution of the source, run-length encoded as JSON takes it."""
        cells = cells[torch.from_numpy(chosen).to(cells.device)]
        places = torch.from_numpy(boxes).to(cells.device)
        encoded = ops.paste_masks_rle(cells, places, size, rule=self.model.mask_rule)
        return [{**mask, "counts": mask["counts"].decode("ascii")} for mask in encoded]

    def _crop_poses(
        self, image: NDArray[np.uint8], boxes: NDArray[np.float32], scores: NDArray[np.float32] | None
    ) -> Poses:
        """A pose for each box, looked at in crops, in batches of at most `people_per_batch`."""
        if len(boxes) == 0:
            return Poses.empty(self.skeleton)
        batch = self.settings.people_per_batch
        parts = [self._batch_joints(image, boxes[start : start + batch]) for start in range(0, len(boxes), batch)]
        keypoints = np.concatenate(parts)
        people = keypoints[..., 2].mean(axis=1) if scores is None else scores
        return Poses(keypoints, boxes, people, self.skeleton)

    def _batch_joints(self, image: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, K, 3] of one batch of people."""
        settings = self.settings
        crops = cut_out(image, boxes, (settings.crop_height, settings.crop_width), settings.crop_margin)
        images, places = list(crops.images), crops.boxes
        if settings.compiled:
            # Few batch sizes, or everything is compiled anew: the last person is looked at once more.
            repeats = padded_count(len(boxes), settings.people_per_batch) - len(boxes)
            images += images[-1:] * repeats
            places = np.concatenate([places, np.repeat(places[-1:], repeats, axis=0)])
        placed = torch.from_numpy(places).to(self.device)
        found = self.model.poses_in_boxes(
            model_images(self.device, images), list(placed[:, None]), resize=False, heatmaps=True
        )[: len(boxes)]
        points = torch.cat([each["keypoints"][..., :2] for each in found]).float()
        scores = joint_scores(torch.cat([each["keypoint_heatmaps"] for each in found])).float()
        packed = torch.cat([points, scores[..., None]], dim=-1).cpu().numpy()
        points_there = crops.to_source(packed[..., :2], self.model.transform.keypoint_offset)
        return np.concatenate([points_there, packed[..., 2:]], axis=-1)
