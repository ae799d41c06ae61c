"""From names and files to an estimator."""

from __future__ import annotations

from pathlib import Path

import cv2
import torch

from pyposeext.errors import InputError
from pyposeext.io.weights import file_sha256
from pyposeext.models import create_model
from pyposeext.models.top_down import TopDownPose
from pyposeext.pipelines.acceleration import accelerated
from pyposeext.pipelines.detectors import Detector, resolve_detector
from pyposeext.pipelines.estimator import Estimator
from pyposeext.pipelines.rcnn import RCNNEstimator
from pyposeext.pipelines.settings import EstimatorSettings
from pyposeext.pipelines.sources import model_and_weights
from pyposeext.pipelines.top_down import TopDownEstimator


def load(
    name_or_path: str | Path = "default",
    device: str = "auto",
    *,
    weights: str | Path | None = None,
    threads: int | None = None,
    settings: EstimatorSettings | None = None,
    detector: str | Path | Detector | None = None,
) -> Estimator:
    """An estimator, ready to run.

    Args:
        name_or_path: "default", a model's name, or a weight file, which names its model.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ...
        weights: a weight file, or the name of weights that are shipped or in the cache. None takes those of the model
            in the cache, if there is one set of them.
        threads: for PyTorch and OpenCV in this process; None leaves them.
        settings: see `EstimatorSettings`.
        detector: what finds the boxes of people, see `pyposeext.pipelines.detectors.resolve_detector`. None: an R-CNN
            finds them itself, a top-down model takes the shipped "default". With an R-CNN another detector means its
            joints in those boxes.

    Raises:
        InputError: an unknown model or detector, weights that are missing, damaged or of another model, a device that
            is not there.
    """
    place = find_device(device)
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads must be 1 or more, got {threads}")
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
    settings = settings or EstimatorSettings()
    name, file = model_and_weights(str(name_or_path), weights)
    model = create_model(name, weights=file)
    top_down = isinstance(model, TopDownPose)
    if not top_down and not hasattr(model, "detect_boxes"):
        raise InputError(f"model {name} does not find people in images, so the estimator cannot run it")
    source = {"name": getattr(model, "model_name", name), "weights": str(file), "weights_sha256": file_sha256(file)}
    if detector is None and top_down:
        detector = "default"
    finder = None if detector is None else resolve_detector(detector, place, settings)
    kind = TopDownEstimator if top_down else RCNNEstimator
    return kind(accelerated(model, place, settings.precision, settings.compiled), settings, place, source, finder)


def find_device(device: str) -> torch.device:
    """The device of that name, for "auto" a GPU where there is one, or an InputError where PyTorch has none such."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device must be 'auto' or one that PyTorch has here, got {device!r}") from error
    # The current GPU is a matter of each thread, and videos are worked on in several.
    return torch.device("cuda", torch.cuda.current_device()) if place == torch.device("cuda") else place
