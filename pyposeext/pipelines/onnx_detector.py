"""Detections from an ONNX graph of any of the common families, through onnxruntime (the extra `onnx`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pyposeext import ops
from pyposeext.errors import InputError
from pyposeext.io.weights import file_sha256
from pyposeext.ops.crop_affine import IMAGENET_MEAN, IMAGENET_STD
from pyposeext.pipelines.detectors import Detections
from pyposeext.pipelines.inputs import InputImage
from pyposeext.pipelines.onnx_layouts import LAYOUTS
from pyposeext.pipelines.settings import OnnxSettings

_GROUND = 114
# Raw outputs hold thousands of boxes that are nobody.
_LEAST_SCORE = 0.01
_DTYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class _Input(NamedTuple):
    """How the graph takes an image.

    Attributes:
        name: of the input.
        dtype: of its numbers.
        batched: whether there is an axis for images.
        channels_first: the order of the other axes.
        size: (height, width).
    """

    name: str
    dtype: Any
    batched: bool
    channels_first: bool
    size: tuple[int, int]


class OnnxDetector:
    """The people that an ONNX graph finds.

    Images are fitted into the graph's size with grey (114) around them, as the YOLO family does, and boxes are moved
    back. The input is [1, 3, H, W], [1, H, W, 3] or either without the first axis, of float32, float16 or uint8, which
    the graph says itself; where it leaves H and W open, they are `settings.size`. Images go through one by one.

    The layouts of outputs, in pixels of the graph's input where nothing else is said; N is the number of boxes, C that
    of classes:

    * "yolo": [1, 4 + C, N], centre x and y, width, height and C scores (Ultralytics YOLOv8 and later, also with the
      columns of joints or masks behind).
    * "yolo_objectness": [1, N, 5 + C], the same with an objectness that the scores are multiplied by (YOLOv5, YOLOv7;
      YOLOX exported with its decoding, which besides needs `values` "byte" and `colours` "bgr").
    * "yolox": the same with offsets from the cells of the strides 8, 16 and 32 in place of centres, and logarithms of
      widths and heights in cells (YOLOX as its script exports it).
    * "rows": [1, N, 6] or [N, 6], N up to 1000, x1, y1, x2, y2, score and class after suppression (YOLOv10, Ultralytics
      exported with nms); also 57 or 38 columns, with 17 joints or 32 coefficients of a mask behind.
    * "dets": "dets" [1, N, 5], x1, y1, x2, y2 and score, and "labels" [1, N], 0 the person (MMDeploy's exports of
      RTMDet; most other models of MMDetection besides need `colours` "rgb").
    * "parts": boxes, labels and scores apart, known by their names, else by their shapes: x1, y1, x2, y2 in pixels
      (torchvision), or where none is above 1.5, as shares of the image; `detection_boxes` are y1, x1, y2, x2 (the
      TensorFlow Object Detection API; its further outputs are passed over).
    * "detr": "logits" [1, N, C + 1], the last of which is "no object", and "pred_boxes" [1, N, 4], centres, widths and
      heights as shares of the image (DETR; classes are COCO's numbers, 1 the person).
    * "rtdetr": the same with C independent logits, 0 the person, or [1, N, 4 + C], such boxes and C scores (Ultralytics
      RT-DETR). Images are stretched to the graph's size, as RT-DETR is trained.
    * "rtdetr_rows": [1, N, 6], such a box, score and class (later exports of Ultralytics RT-DETR). "auto" never takes
      it, for it looks like "rows" in shares.

    Overlapping boxes of the first three are suppressed here.

    With the layout "auto" only what is beyond doubt is taken: N of the first three must be the number of cells of the
    strides 8, 16 and 32 (or with 64, or 4) of the input, or of YOLOv5 and YOLOv7 thrice that; "detr" must have 92
    columns of logits and "rtdetr" 80, or shares and probabilities alone; and no other output may be a table as well. A
    layout that is named is taken wherever the outputs can be read so, rows of 6 and more columns for example.

    Args:
        path: the .onnx file.
        device: a GPU is used where this onnxruntime can.
        settings: see `OnnxSettings`.

    Raises:
        InputError: onnxruntime is not installed, the file is no graph, or its input or output is none of the above.
    """

    def __init__(self, path: str | Path, device: torch.device, settings: OnnxSettings) -> None:
        self._path = Path(path)
        self._settings = settings
        self._session = _session(self._path, device)
        self._input = self._read_input()
        # One image says what the shapes are where the graph leaves them open.
        blank = np.full((*self._input.size, 3), _GROUND, dtype=np.uint8)
        layout = self._find_layout(self._run(blank, "unit", "rgb"))
        self._layout = LAYOUTS[layout]
        self._person_class = self._person(layout)
        self._values = self._layout.values if settings.values == "auto" else settings.values
        self._colours = self._layout.colours if settings.colours == "auto" else settings.colours
        self.source: dict[str, Any] = {
            "file": str(path),
            "sha256": file_sha256(path),
            "layout": layout,
            "values": self._values,
            "colours": self._colours,
            "runtime": self._session.get_providers(),
        }

    def detect(self, inputs: Sequence[InputImage]) -> list[Detections]:
        """As `pyposeext.pipelines.detectors.Detector`."""
        return [self._detect(each.image) for each in inputs]

    def _detect(self, image: NDArray[np.uint8]) -> Detections:
        fitted, ratio, corner = _fit(image, self._input.size, self._layout.stretched)
        outputs = self._run(fitted, self._values, self._colours)
        boxes, scores = self._layout.read(outputs, self._person_class, self._input.size)
        kept = (scores >= _LEAST_SCORE) & np.isfinite(boxes).all(axis=1)
        boxes, scores = boxes[kept].astype(np.float32), scores[kept].astype(np.float32)
        if not self._layout.suppressed:
            best = ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), self._settings.iou_threshold).numpy()
            boxes, scores = boxes[best], scores[best]
        moved = (boxes - np.tile(corner, 2)) / np.tile(ratio, 2)
        limit = np.array([image.shape[1], image.shape[0]] * 2, dtype=np.float32)
        return Detections(moved.clip(0, limit), scores.clip(0, 1))

    def _person(self, layout: str) -> int:
        return LAYOUTS[layout].person if self._settings.person is None else self._settings.person

    def _run(self, fitted: NDArray[np.uint8], values: str, colours: str) -> dict[str, NDArray[Any]]:
        """The outputs by name for an image of the graph's size, given its pixels as `OnnxSettings` says."""
        form = self._input
        pixels = _pixels(fitted, "byte" if form.dtype == np.uint8 else values, colours)
        if form.channels_first:
            pixels = pixels.transpose(2, 0, 1)
        value = np.ascontiguousarray(pixels[None] if form.batched else pixels, dtype=form.dtype)
        names = [output.name for output in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, {form.name: value}), strict=True))
        except Exception as error:  # onnxruntime's own errors have no base of their own
            raise InputError(f"detector {self._path} fails on an image of {list(value.shape)}: {error}") from error

    def _read_input(self) -> _Input:
        inputs = self._session.get_inputs()
        shape = list(inputs[0].shape) if inputs else []
        axes = shape[-3:]
        known = len(inputs) == 1 and inputs[0].type in _DTYPES and len(shape) in (3, 4)
        one = len(shape) == 3 or not isinstance(shape[0], int) or shape[0] == 1
        if not known or not one or 3 not in (axes[0], axes[2]):
            takes = ", ".join(f"{each.type} {each.shape}" for each in inputs) or "nothing"
            raise InputError(
                f"detector {self._path} must take one image as float or uint8 [1, 3, H, W] or [1, H, W, 3], "
                f"but takes {takes}"
            )
        channels_first = axes[0] == 3
        sides = axes[1:] if channels_first else axes[:2]
        # An open side is a name or None.
        height, width = (side if isinstance(side, int) and side > 0 else self._settings.size for side in sides)
        return _Input(inputs[0].name, _DTYPES[inputs[0].type], len(shape) == 4, channels_first, (height, width))

    def _find_layout(self, outputs: dict[str, NDArray[Any]]) -> str:
        wanted = self._settings.layout
        for name in LAYOUTS if wanted == "auto" else (wanted,):
            if outputs and LAYOUTS[name].fits(outputs, self._person(name), self._input.size, wanted != "auto"):
                return name
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
        if wanted != "auto":
            raise InputError(f"detector {self._path} must have outputs of the layout {wanted}, but has {shapes}")
        raise InputError(
            f"detector {self._path} must have outputs that are without doubt of one of the layouts "
            f"{', '.join(LAYOUTS)}, but has {shapes}: OnnxSettings.layout (--estimator.onnx.layout) says which"
        )


def _pixels(fitted: NDArray[np.uint8], values: str, colours: str) -> NDArray[Any]:
    """An image [H, W, 3] with the numbers and the order of colours that a graph takes."""
    pixels: NDArray[Any] = fitted
    if values != "byte":
        pixels = pixels.astype(np.float32) / 255
    if values == "imagenet":
        pixels = (pixels - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return pixels[..., ::-1] if colours == "bgr" else pixels


def _session(path: Path, device: torch.device) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"detector {path} needs onnxruntime: install it with `pip install pyposeext[onnx]`") from error
    if not path.is_file():
        raise InputError(f"detector {path} does not exist")
    there = onnxruntime.get_available_providers()
    gpu = [("CUDAExecutionProvider", {"device_id": device.index or 0})] if device.type == "cuda" else []
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its warnings about graphs are for those who make them
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[*(each for each in gpu if each[0] in there), "CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own errors have no base of their own
        raise InputError(f"detector {path} is not an ONNX graph that onnxruntime can run: {error}") from error


def _fit(
    image: NDArray[np.uint8], size: tuple[int, int], stretched: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """The image in the middle of a grey one of `size` (height, width), as large as fits, or stretched to all of it.

    Returns:
        The fitted image; pixels of it per pixel of the image, (x, y); and the x and y of the image's corner in it.
    """
    height, width = size
    scale = min(height / image.shape[0], width / image.shape[1])
    inner = np.array([max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))])
    if stretched:
        inner = np.array([width, height])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    left, top = (np.array([width, height]) - inner) // 2
    fitted = np.full((height, width, 3), _GROUND, dtype=np.uint8)
    fitted[top : top + inner[1], left : left + inner[0]] = cv2.resize(
        image, (int(inner[0]), int(inner[1])), interpolation=interpolation
    )
    ratio = (inner / np.array(image.shape[1::-1])).astype(np.float32)
    return fitted, ratio, np.array([left, top], dtype=np.float32)
