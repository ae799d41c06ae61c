"""A model measured on labelled images as COCO measures: boxes, masks and keypoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyposeext.datasets.coco import CocoKeypoints
from pyposeext.datasets.sample import Sample
from pyposeext.errors import InputError
from pyposeext.io.atomic import write_bytes
from pyposeext.metrics.coco import CocoEvaluation, Kind, result_rows
from pyposeext.models.top_down import TopDownPose
from pyposeext.pipelines.detectors import Detections, Detector
from pyposeext.pipelines.file_detector import FileDetector
from pyposeext.pipelines.inputs import InputImage
from pyposeext.pipelines.settings import EstimatorSettings
from pyposeext.pipelines.top_down import TopDownEstimator

# COCO looks at the best so many people of an image.
_MOST_PEOPLE = 20
# What COCO's evaluation server calls the files of results.
_FILES: dict[Kind, str] = {"boxes": "boxes.json", "masks": "segm.json", "keypoints": "keypoints.json"}

OnImage = Callable[[int], None]


@dataclass
class Evaluation:
    """What a model found in the images of a data set, and how good that is.

    Attributes:
        dataset: with the truth.
        results: by kind, entries of a COCO results file.
        people_only: whether the people of the truth alone count, or every category.
        boxes: where the boxes are from: "model", "truth", or what is known of the detector.
    """

    dataset: CocoKeypoints
    people_only: bool = True
    boxes: str | dict[str, Any] = "model"
    results: dict[Kind, list[dict[str, Any]]] = field(default_factory=dict)

    def compute(self) -> dict[str, dict[str, float]]:
        """COCO's figures by kind, 0..1; -1 where there is nothing to measure."""
        return {kind: self._evaluation(kind).compute() for kind in self.results}

    def write(self, directory: str | Path) -> None:
        """Writes ``boxes.json``, ``segm.json`` and ``keypoints.json`` in COCO's results layout, as far as there are."""
        for kind, rows in self.results.items():
            write_bytes(Path(directory) / _FILES[kind], json.dumps(rows).encode())

    def _evaluation(self, kind: Kind) -> CocoEvaluation:
        person_alone = self.people_only or kind == "keypoints"
        category = self.dataset.person_category if person_alone else None
        truth = self.dataset.content
        evaluation = CocoEvaluation(truth, kind, category, self.dataset.skeleton.sigmas)
        evaluation.add_results(self.results[kind])
        return evaluation


def evaluate(
    model: Any,
    dataset: CocoKeypoints,
    detector: Detector | None = None,
    settings: EstimatorSettings | None = None,
    on_image: OnImage | None = None,
) -> Evaluation:
    """Runs a model on whole images, or on the people in them, and collects what it finds.

    An R-CNN gets each image alone, at its own size. A top-down model follows the protocol of Xiao et al. (ECCV 2018)
    and HRNet: boxes of the truth's people with labelled joints, or those of a detector, all of them; people rescored by
    their joints, suppressed by OKS, and the best 20 of an image.

    Args:
        model: a `MaskRCNN` or a `TopDownPose`, on its device; it stays in the mode it is in.
        dataset: with its folder of images. What it labels decides what is measured of what the model gives.
        detector: gives a top-down model its boxes; None: the truth does.
        settings: of the flip test, the decoding and the suppression of top-down models.
        on_image: called after every image with its number.

    Raises:
        InputError: a data set that cannot judge a top-down model's joints.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            if isinstance(model, TopDownPose):
                return _evaluate_top_down(model, dataset, detector, settings or EstimatorSettings(), on_image)
            return _evaluate_detector(model, dataset, on_image)
    finally:
        model.train(training)


def _evaluate_detector(model: Any, dataset: CocoKeypoints, on_image: OnImage | None) -> Evaluation:
    people_only = model.num_classes == 2
    kinds = _kinds(model, dataset, people_only)
    evaluation = Evaluation(dataset, people_only, results={kind: [] for kind in kinds})
    device = next(model.parameters()).device
    options = {"masks": "rle"} if model.has_masks else {}
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        image = torch.from_numpy(sample.image).to(device).permute(2, 0, 1).float() / 255
        found = model([image], **options)[0]
        scores, labels = found["scores"].cpu().numpy(), found["labels"].cpu().numpy()
        # With two classes the one that is not the background is the data set's person.
        categories = np.full(len(labels), dataset.person_category) if people_only else labels
        for kind in kinds:
            values = _found(kind, found)
            rows = result_rows(kind, sample.image_id, scores, values, categories.tolist())
            if kind == "keypoints":
                rows = [row for row in rows if row["category_id"] == dataset.person_category]
            evaluation.results[kind] += rows
        if on_image is not None:
            on_image(index)
    return evaluation


def _kinds(model: Any, dataset: CocoKeypoints, people_only: bool) -> list[Kind]:
    """What the model gives and the data set can judge."""
    kinds: list[Kind] = ["boxes"]
    person = dataset.person_category
    judged = [each for each in dataset.content["annotations"] if not people_only or each.get("category_id") == person]
    if model.has_masks and all(each.get("segmentation") for each in judged):
        kinds.append("masks")
    labelled = any("keypoints" in each for each in judged)
    if model.has_keypoints and labelled and not joint_problem(model, dataset):
        kinds.append("keypoints")
    return kinds


def _found(kind: Kind, found: dict[str, Any]) -> Any:
    if kind == "masks":
        return [{**mask, "counts": mask["counts"].decode("ascii")} for mask in found["masks"]]
    return found[kind].cpu().numpy()


def _evaluate_top_down(
    model: TopDownPose,
    dataset: CocoKeypoints,
    detector: Detector | None,
    settings: EstimatorSettings,
    on_image: OnImage | None,
) -> Evaluation:
    problem = joint_problem(model, dataset)
    if problem:
        raise InputError(problem)
    device = next(model.parameters()).device
    estimator = TopDownEstimator(model, settings, device)
    rows: list[dict[str, Any]] = []
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        boxes = _true_boxes(sample) if detector is None else _detected_boxes(detector, sample)
        poses = estimator.people_in(sample.image, boxes.boxes, boxes.scores)[:_MOST_PEOPLE]
        points, joints = poses.keypoints[:, :, :2], poses.keypoints[:, :, 2]
        rows += result_rows("keypoints", sample.image_id, poses.scores, points, dataset.person_category, joints)
        if on_image is not None:
            on_image(index)
    source = "truth" if detector is None else detector.source
    return Evaluation(dataset, boxes=source, results={"keypoints": rows})


def _true_boxes(sample: Sample) -> Detections:
    """Of the people with labelled joints, those that HRNet keeps: of one pixel's width or height too, but not of both.

    A box that counts its pixels from the first to the last has no width where it is one pixel wide.
    """
    boxes = sample.boxes if sample.pose_boxes is None else sample.pose_boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    labelled = (sample.keypoints[:, :, 2] > 0).any(axis=1)
    kept = labelled & (sides >= 0).all(axis=1) & (sides > 0).any(axis=1)
    boxes, sides = boxes[kept], sides[kept]
    # A crop takes the longer side for the other one, so that half of it shows the same, and the box has an area.
    grown = np.where(sides == 0, sides.max(axis=1, initial=0, keepdims=True) / 4, 0)
    boxes = np.concatenate([boxes[:, :2] - grown, boxes[:, 2:] + grown], axis=1)
    return Detections(boxes, np.ones(len(boxes), np.float32))


def _detected_boxes(detector: Detector, sample: Sample) -> Detections:
    if isinstance(detector, FileDetector):
        found = detector.of_image(sample.image_id)
    else:
        found = detector.detect([InputImage(sample.image, None, sample.name)])[0]
    return found.best(-np.inf, len(found.boxes))


def joint_problem(model: Any, dataset: CocoKeypoints) -> str:
    """A sentence on why the data set cannot judge the model's joints, "" where it can."""
    if model.skeleton.names != dataset.skeleton.names:
        return (
            f"data must label the model's {len(model.skeleton)} joints ({model.skeleton.name}), "
            f"got the {len(dataset.skeleton)} of {dataset.name}"
        )
    if not dataset.skeleton.sigmas:
        return f"data must have joints with OKS constants, but those of {dataset.name} have none"
    return ""
