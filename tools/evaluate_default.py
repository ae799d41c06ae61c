"""Measures the default weights beside the teachers: detection, keypoints and speed, as a table and as JSON.

    python tools/evaluate_default.py --dataset FOLDER --weights FILE --teachers ROOT/weights --output figures.json

`FOLDER` is what build_default_dataset.py wrote. Measured are, on people no training saw:
* COCO-mini, held-out images: person AP50 (boxes) and OKS AP, with 95 % intervals from a bootstrap over images;
* LSP 1001 to 1500: PCK@0.2 of the torso (left shoulder to right hip), in the labelled boxes and with own detections
  (of these the one that overlaps the labelled box most; without any, the person's joints count as missed);
* images per second on whole COCO-mini images, with 1 and 2 threads.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from teacher import Multipose, PersonDetector, Thunder

from pyposeext.datasets import CocoKeypoints
from pyposeext.metrics import PCK, CocoEvaluation, torso_size
from pyposeext.pipelines.estimator import Estimator
from pyposeext.pipelines.loading import load
from pyposeext.pipelines.rcnn import RCNNEstimator
from pyposeext.pipelines.settings import EstimatorSettings
from pyposeext.skeletons import COCO17
from pyposeext.structures import Poses

Image = NDArray[np.uint8]
WholeImage = Callable[[Image], Poses]
InBoxes = Callable[[Image, NDArray[np.float32]], Poses]

LEFT_SHOULDER, RIGHT_HIP = COCO17.names.index("left_shoulder"), COCO17.names.index("right_hip")
COCO_FIGURES = (
    ("person_AP50", "boxes", "AP50"),
    ("OKS_AP", "keypoints", "AP"),
    ("OKS_AP50", "keypoints", "AP50"),
)
LIMBS = {
    "shoulders": (5, 6),
    "elbows": (7, 8),
    "wrists": (9, 10),
    "hips": (11, 12),
    "knees": (13, 14),
    "ankles": (15, 16),
}


def coco_figures(dataset: CocoKeypoints, predict: WholeImage, draws: int) -> dict[str, Any]:
    """Person AP50 and OKS AP, each with a 95 % interval over `draws` resamplings of the images."""
    evaluations = {
        "boxes": CocoEvaluation(dataset.content, "boxes"),
        "keypoints": CocoEvaluation(dataset.content, "keypoints"),
    }
    ids = []
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        poses = predict(sample.image)
        ids.append(sample.image_id)
        for evaluation in evaluations.values():
            evaluation.update(sample.image_id, poses.scores, boxes=poses.boxes, keypoints=poses.keypoints)
    generator = np.random.default_rng(0)
    samples = [generator.choice(ids, len(ids)).tolist() for _ in range(draws)]
    drawn = {
        kind: [evaluation.resampled(sample).compute() for sample in samples] for kind, evaluation in evaluations.items()
    }
    figures: dict[str, Any] = {}
    for name, kind, key in COCO_FIGURES:
        # A draw without a person measures nothing (-1).
        low, high = np.percentile([result[key] for result in drawn[kind] if result[key] >= 0], [2.5, 97.5])
        figures[name] = {"value": evaluations[kind].compute()[key], "low": float(low), "high": float(high)}
    return figures


def lsp_figures(dataset: CocoKeypoints, count: int, predict: InBoxes) -> dict[str, Any]:
    """PCK@0.2 of one labelled person per image, overall and per pair of joints, in percent."""
    metric = PCK(0.2)
    for index in range(count):
        sample = dataset.sample(index)
        joints = predict(sample.image, sample.boxes).keypoints
        metric.update(joints, sample.keypoints, torso_size(sample.keypoints, LEFT_SHOULDER, RIGHT_HIP))
    result: dict[str, Any] = metric.compute()
    per_joint = np.asarray(result["joints"])
    limbs = {name: 100 * float(np.nanmean(per_joint[list(pair)])) for name, pair in LIMBS.items()}
    return {"PCK@0.2": 100 * result["overall"], **limbs}


def images_per_second(dataset: CocoKeypoints, predict: WholeImage, threads: int, count: int = 20) -> float:
    """Whole images, detection and poses, one after the other; the best of three rounds."""
    torch.set_num_threads(threads)
    images = [dataset.sample(index).image for index in range(min(count, len(dataset)))]
    predict(images[0])
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for image in images:
            predict(image)
        seconds.append(time.perf_counter() - start)
    return len(images) / min(seconds)


def with_own_detections(predict: WholeImage) -> InBoxes:
    """For one box: the pose found in the whole image that overlaps it most; far outside where none does."""

    def chosen(image: Image, boxes: NDArray[np.float32]) -> Poses:
        poses, box = predict(image), boxes[0]
        low, high = np.maximum(poses.boxes[:, :2], box[:2]), np.minimum(poses.boxes[:, 2:], box[2:])
        common = (high - low).clip(0).prod(1)
        union = (poses.boxes[:, 2:] - poses.boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - common
        if not len(poses) or common.max() <= 0:
            return Poses(np.full((1, len(COCO17), 3), -1e6), boxes, np.zeros(1), COCO17)
        return poses[[int((common / union).argmax())]]

    return chosen


def _own_predictors(weights: Path) -> dict[str, tuple[WholeImage, InBoxes | None]]:
    """The model with its joints from the whole image and from crops; precision wants the faint people too."""
    plain: Estimator = load(weights, device="cpu", settings=EstimatorSettings(score_threshold=0.05))
    crops = RCNNEstimator(plain.model, EstimatorSettings(pose_from="crops", score_threshold=0.05))
    return {"default": (plain.image, plain.image), "default, crops": (crops.image, None)}


def _teacher_predictors(weights: Path) -> dict[str, tuple[WholeImage, InBoxes | None]]:
    thunder, detector, multipose = Thunder(weights), PersonDetector(weights), Multipose(weights, 512)

    def in_boxes(image: Image, boxes: NDArray[np.float32]) -> Poses:
        joints = np.stack([thunder(image, box.astype(np.float64)) for box in boxes])
        return Poses(joints, boxes, joints[:, :, 2].mean(1), COCO17)

    def two_stage(image: Image) -> Poses:
        people = detector(image, 0.05)
        if not len(people):
            return Poses.empty(COCO17)
        return Poses(in_boxes(image, people[:, :4]).keypoints, people[:, :4], people[:, 4], COCO17)

    def one_stage(image: Image) -> Poses:
        people, joints = multipose(image)
        return Poses(joints, people[:, :4], people[:, 4], COCO17)

    return {"CenterNet + Thunder": (two_stage, in_boxes), "MoveNet multipose 512": (one_stage, None)}


def measure(
    coco: CocoKeypoints, lsp: CocoKeypoints, count: int, predict: WholeImage, in_boxes: InBoxes | None, draws: int
) -> dict[str, Any]:
    """All figures of one predictor."""
    figures: dict[str, Any] = {"coco": coco_figures(coco, predict, draws)}
    if in_boxes is not None:
        figures["lsp_given_boxes"] = lsp_figures(lsp, count, in_boxes)
    figures["lsp_own_detections"] = lsp_figures(lsp, count, with_own_detections(predict))
    figures["images_per_second"] = {str(n): images_per_second(coco, predict, n) for n in (1, 2)}
    return figures


def show(results: dict[str, dict[str, Any]]) -> None:
    """The figures as a Markdown table."""
    table = Table("", *results, box=box.MARKDOWN)
    for name, _, _ in COCO_FIGURES:
        cells = [figures["coco"][name] for figures in results.values()]
        table.add_row(name, *(f"{100 * c['value']:.1f} ({100 * c['low']:.0f}..{100 * c['high']:.0f})" for c in cells))
    for kind in ("lsp_given_boxes", "lsp_own_detections"):
        for name in ("PCK@0.2", *LIMBS):
            table.add_row(
                f"{kind} {name}",
                *(f"{figures[kind][name]:.1f}" if kind in figures else "" for figures in results.values()),
            )
    for threads in ("1", "2"):
        speeds = [figures["images_per_second"][threads] for figures in results.values()]
        table.add_row(f"images/s, {threads} threads", *(f"{speed:.1f}" for speed in speeds))
    Console(width=160).print(table)


def main(
    dataset: Path,
    output: Path,
    weights: Path | None = None,
    teachers: Path | None = None,
    draws: int = 300,
    limit: int | None = None,
) -> None:
    """Measures and prints.

    Args:
        dataset: the folder build_default_dataset.py wrote.
        output: the JSON file to write.
        weights: the file to measure, if any.
        teachers: folder of the teachers' graphs, if they are to be measured.
        draws: resamplings for the intervals.
        limit: only this many LSP images, for a quick look.
    """
    coco = CocoKeypoints(dataset / "coco_val.json", dataset / "images")
    lsp = CocoKeypoints(dataset / "lsp_val.json", dataset / "images")
    count = len(lsp) if limit is None else min(limit, len(lsp))
    predictors = _own_predictors(weights) if weights is not None else {}
    if teachers is not None:
        predictors.update(_teacher_predictors(teachers))
    results = {name: measure(coco, lsp, count, *pair, draws) for name, pair in predictors.items()}
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    record = {
        "weights": weights.name if weights else None,
        "machine": machine,
        "images": {"coco": len(coco), "lsp": count},
    }
    output.write_text(json.dumps({**record, "results": results}, indent=2) + "\n")
    show(results)


if __name__ == "__main__":
    tyro.cli(main)
