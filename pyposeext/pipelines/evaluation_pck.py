"""A top-down model measured by PCK, on data sets that give one box for each person: LSP's and MPII's protocols."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyposeext.datasets.mpii import MpiiPose, MpiiTruth
from pyposeext.datasets.sample import ImageDataset, Sample
from pyposeext.errors import InputError
from pyposeext.metrics.pck import PCK, PCKh, torso_size
from pyposeext.models.top_down import TopDownPose
from pyposeext.pipelines.evaluation import OnImage
from pyposeext.pipelines.settings import EstimatorSettings
from pyposeext.pipelines.top_down import TopDownEstimator

_TORSO = ("left_shoulder", "right_hip")


def evaluate_pck(
    model: TopDownPose,
    dataset: ImageDataset,
    settings: EstimatorSettings | None = None,
    on_image: OnImage | None = None,
    threshold: float = 0.2,
) -> dict[str, float]:
    """PCK in the labelled boxes: the share of joints within `threshold` of the torso, from left shoulder to right hip.

    Joints are compared by name; those that the model has not do not count.

    Args:
        model: on its device; it stays in the mode it is in.
        dataset: with left shoulders and right hips, LSP for one.
        settings: of the flip test and the decoding.
        on_image: called after every image with its number.

    Returns:
        0..1, nan where nothing was labelled: ``overall``, over all joints, and a figure for each joint, or pair of
        joints, of the data set that the model has.
    """
    names = dataset.skeleton.names
    places = [model.skeleton.names.index(name) if name in model.skeleton.names else -1 for name in names]
    if not all(name in names for name in _TORSO) or max(places) < 0:
        raise InputError(f"data must have the torso and joints of the model for PCK, got those of {dataset.name}")
    metric = PCK(threshold)
    shoulder, hip = (names.index(name) for name in _TORSO)
    for sample, found in _people(model, dataset, settings, on_image):
        truth = sample.keypoints.copy()
        sizes = torso_size(truth, shoulder, hip)
        truth[:, np.array(places) < 0, 2] = 0
        metric.update(found[:, places, :2], truth, sizes)
    figures: dict[str, Any] = metric.compute()
    pairs: defaultdict[str, list[float]] = defaultdict(list)
    for name, place, value in zip(names, places, figures["joints"] or [np.nan] * len(names), strict=True):
        if place >= 0:
            pairs[name.removeprefix("left_").removeprefix("right_")].append(value)
    return {"overall": figures["overall"], **{name: float(np.mean(values)) for name, values in pairs.items()}}


def evaluate_pckh(
    model: TopDownPose,
    dataset: MpiiPose,
    truth: MpiiTruth,
    settings: EstimatorSettings | None = None,
    on_image: OnImage | None = None,
) -> dict[str, float]:
    """PCKh at 0.5 of the head's size by HRNet's protocol, in the regions that MPII's files give.

    Args:
        model: of MPII's 16 joints, on its device; it stays in the mode it is in.
        dataset: the people.
        truth: of the same split.
        settings: of the flip test and the decoding.
        on_image: called after every image with its number.

    Returns:
        0..1: ``head`` to ``ankle``, ``mean`` and ``mean@0.1``; see `PCKh.compute`.

    Raises:
        InputError: a model of other joints, or a truth of another number of people.
    """
    if model.skeleton.names != dataset.skeleton.names:
        raise InputError(
            f"model must have MPII's 16 joints for PCKh, got {len(model.skeleton)} ({model.skeleton.name})"
        )
    count = sum(len(dataset.people(index)) for index in range(len(dataset)))
    if len(truth.keypoints) != count:
        raise InputError(f"truth must hold the {count} people of the data, got {len(truth.keypoints)}")
    metric = PCKh()
    for sample, found in _people(model, dataset, settings, on_image):
        rows = dataset.people(sample.image_id)
        metric.update(found, truth.keypoints[rows], truth.head_boxes[rows])
    figures: dict[str, Any] = metric.compute()
    return {name: value for name, value in figures.items() if name not in ("joints", "count")}


def _people(
    model: TopDownPose, dataset: ImageDataset, settings: EstimatorSettings | None, on_image: OnImage | None
) -> Iterator[tuple[Sample, NDArray[np.float32]]]:
    """Every image with people, and the joints [N, K, 3] that the model finds in their boxes."""
    training = model.training
    device = next(model.parameters()).device
    try:
        estimator = TopDownEstimator(model, settings or EstimatorSettings(), device)
        for index in range(len(dataset)):
            sample = dataset.sample(index)
            if len(sample.boxes):
                with torch.inference_mode():
                    found = estimator.image(sample.image, sample.boxes).keypoints
                yield sample, found
            if on_image is not None:
                on_image(index)
    finally:
        model.train(training)
