"""What finds the boxes of people for an estimator: a registered model, a file of detections, or an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_type_hints

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pyposeext.errors import InputError
from pyposeext.io.weights import file_sha256
from pyposeext.models import create_model, list_models
from pyposeext.models.registry import ALIASES, model_entry
from pyposeext.pipelines.acceleration import accelerated, prepare_model
from pyposeext.pipelines.inputs import InputImage, model_images
from pyposeext.pipelines.settings import EstimatorSettings

PERSON = 1


class Detections(NamedTuple):
    """The boxes of people in an image.

    Attributes:
        boxes: float32 [N, 4], x1, y1, x2, y2 in its pixels.
        scores: float32 [N], in 0..1.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]

    @classmethod
    def none(cls) -> Detections:
        """Nobody."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    def best(self, score_threshold: float, maximum: int) -> Detections:
        """Those of a score from the threshold on, best first, the first `maximum`; no box without numbers or area."""
        numbers = np.isfinite(self.boxes).all(axis=1) & (self.boxes[:, 2:] > self.boxes[:, :2]).all(axis=1)
        # A score that is no number fails the comparison too.
        kept = np.flatnonzero(numbers & (self.scores >= score_threshold))
        kept = kept[np.argsort(-self.scores[kept], kind="stable")][:maximum]
        return Detections(self.boxes[kept], self.scores[kept])


class Detector(Protocol):
    """Anything that finds people.

    While a video is worked on, `detect` is called in another thread than the one that made the detector, though never
    in two at once: what belongs to a thread (CUDA graphs, a database's connection) must not be made in its constructor.

    Attributes:
        source: where it comes from, for a run's record.
    """

    source: dict[str, Any]

    def detect(self, inputs: Sequence[InputImage]) -> list[Detections]:
        """The people in each image, of any score and in any order; see the class for the thread it is called in."""


class ModelDetector:
    """The people that an R-CNN finds, by its box branch.

    Args:
        model: a `pyposeext.models.mask_rcnn.MaskRCNN`, or what has its methods.
        device: where it runs.
        source: where model and weights come from.
    """

    def __init__(self, model: Any, device: torch.device, source: dict[str, Any] | None = None) -> None:
        self.model = prepare_model(model, device)
        self.device = device
        self.source = source or {}

    def detect(self, inputs: Sequence[InputImage]) -> list[Detections]:
        """As `Detector`; images of one size go through the model together."""
        small = [resize_for(self.model, each.image) for each in inputs]
        with torch.inference_mode():
            found = self.model.detect_boxes(model_images(self.device, small), resize=False)
            # One transfer for the whole batch.
            rows = torch.cat([box_columns(each) for each in found]).cpu().numpy()
        parts = np.split(rows, np.cumsum([len(each["boxes"]) for each in found])[:-1])
        return [
            _people(part, source_ratio(each.image, image))
            for part, each, image in zip(parts, inputs, small, strict=True)
        ]


def resolve_detector(
    detector: str | Path | Detector, device: torch.device, settings: EstimatorSettings | None = None
) -> Detector:
    """The detector that a word names.

    Args:
        detector: "default" or the name of a registered model of boxes, with its shipped weights, or NAME:WEIGHTS; a
            weight file (.safetensors), which names its model; a file of detections (.json), see `FileDetector`; an ONNX
            graph (.onnx), see `OnnxDetector`. A detector is returned as it is.
        device: where it runs.
        settings: how ONNX graphs are read, and in which precision models run and whether they are compiled.

    Raises:
        InputError: none of these, or what cannot be read.
    """
    if not isinstance(detector, (str, Path)):
        return detector
    settings = settings or EstimatorSettings()
    suffix = Path(detector).suffix.lower()
    if suffix == ".json":
        from pyposeext.pipelines.file_detector import FileDetector

        return FileDetector(detector)
    if suffix == ".onnx":
        from pyposeext.pipelines.onnx_detector import OnnxDetector

        return OnnxDetector(detector, device, settings.onnx)
    from pyposeext.pipelines.sources import model_and_weights

    word, weights = _name_and_weights(str(detector))
    names = [*ALIASES, *(name for name in list_models() if _may_find_boxes(name))]
    expected = f"one of {', '.join(names)}, their weights (.safetensors), a .json or an .onnx file"
    if word not in names and (word in list_models() or not (suffix == ".safetensors" or Path(word).is_file())):
        raise InputError(f"detector must be {expected}, got {str(detector)!r}")
    name, file = model_and_weights(word, weights, "detector")
    model = create_model(name, weights=file)
    if not hasattr(model, "detect_boxes"):
        raise InputError(f"detector must be {expected}, but {str(detector)!r} is of {name}, which finds no boxes")
    source = {"name": getattr(model, "model_name", name), "weights": str(file), "weights_sha256": file_sha256(file)}
    return ModelDetector(accelerated(model, device, settings.precision, settings.compiled), device, source)


def resize_for(model: Any, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image at the size that an R-CNN works on."""
    transform = model.transform
    size = transform.resized(image.shape[:2], transform.min_size[-1])
    shrinks = size[0] < image.shape[0]
    # The model's own bilinear resize skips pixels when it shrinks much; averaging keeps small people whole.
    small: Any = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return small


def source_ratio(image: NDArray[np.uint8], small: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels of the image per pixel of the resized one, x and y."""
    return np.array([image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]], dtype=np.float32)


def box_columns(found: dict[str, torch.Tensor]) -> torch.Tensor:
    """What an R-CNN found in an image as rows [N, 6]: the box, the score, the label."""
    return torch.cat([found["boxes"], found["scores"][:, None], found["labels"][:, None]], dim=1).float()


def _people(rows: NDArray[np.float32], ratio: NDArray[np.float32]) -> Detections:
    people = rows[rows[:, 5] == PERSON]
    return Detections(people[:, :4] * np.tile(ratio, 2), people[:, 4])


def _may_find_boxes(name: str) -> bool:
    """Whether the model of that name is of a class with `detect_boxes`, or its builder does not say of which it is."""
    made: Any = get_type_hints(model_entry(name).builder).get("return", nn.Module)
    return hasattr(made, "detect_boxes") or made is nn.Module


def _name_and_weights(word: str) -> tuple[str, str | None]:
    """NAME:WEIGHTS apart; a path with a colon in it stays whole."""
    name, colon, weights = word.partition(":")
    if colon and not Path(word).is_file() and "/" not in name:
        return name, weights
    return word, None
