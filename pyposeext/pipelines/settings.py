"""The settings of the pipelines, apart from those of the linker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from pyposeext.errors import InputError

Precision = Literal["float32", "bfloat16", "float16"]
OnnxLayout = Literal[
    "auto", "yolo", "yolo_objectness", "yolox", "rows", "dets", "parts", "detr", "rtdetr", "rtdetr_rows"
]
OnnxValues = Literal["auto", "unit", "byte", "imagenet"]
OnnxColours = Literal["auto", "rgb", "bgr"]


@dataclass(frozen=True)
class OnnxSettings:
    """How the graph of an ONNX detector is fed and read; nothing else uses them.

    Attributes:
        layout: of its outputs, see `pyposeext.pipelines.onnx_detector`; "auto" finds it by shapes and names, and where
            these leave a doubt it is an error.
        person: the class of people, from 0; None for that of the layout: 1 with "parts", where 0 is the background,
            and with "detr", else 0.
        iou_threshold: of the suppression of overlapping boxes, for the layouts that come without it.
        values: of the pixels of a graph that takes floating point: "unit" 0..1, "byte" 0..255, "imagenet" 0..1 less
            ImageNet's mean colour and divided by its deviation; "auto" is "byte" with "yolox", "imagenet" with
            "dets" and "detr", else "unit".
        colours: in which order the graph takes the channels; "auto" is "bgr" with "yolox" and "dets", else
            "rgb".
        size: side in pixels of the square that images are fitted into where the graph leaves its size open.
    """

    layout: OnnxLayout = "auto"
    person: int | None = None
    iou_threshold: float = 0.6
    values: OnnxValues = "auto"
    colours: OnnxColours = "auto"
    size: int = 640

    def __post_init__(self) -> None:
        for name, words in (("layout", OnnxLayout), ("values", OnnxValues), ("colours", OnnxColours)):
            if getattr(self, name) not in get_args(words):
                expected = ", ".join(repr(word) for word in get_args(words))
                raise InputError(f"{name} must be one of {expected}, got {getattr(self, name)!r}")
        if self.person is not None and (not isinstance(self.person, int) or self.person < 0):
            raise InputError(f"person must be the number of a class, 0 or more, got {self.person!r}")
        if not 0 <= self.iou_threshold <= 1:
            raise InputError(f"iou_threshold must be in 0..1, got {self.iou_threshold}")
        if self.size < 32:
            raise InputError(f"size must be 32 or more, got {self.size}")


@dataclass(frozen=True)
class EstimatorSettings:
    """How people are found in an image.

    There are two kinds of models: R-CNNs, which find people and their joints, and top-down models, which find the
    joints in the boxes of a detector. Settings of the one kind do nothing with the other.

    Attributes:
        pose_from: R-CNN without another detector: "features" takes the joints with the boxes from the whole, resized
            image; "crops" looks at every box again at full resolution.
        score_threshold: people whose box has a lower score are left out. Where they are tracked, the tracker's
            minimum_score counts instead if it is lower. A detector leaves out the faintest itself, R-CNNs by default
            those below 0.05.
        maximum_people: so many boxes with the best scores are kept.
        people_per_batch: so many crops go through the model at once; bounds the memory for crowds.
        frames_per_batch: so many frames of a video are worked on at once; None for 1 on a CPU and 8 on a GPU.
        duplicate_oks: of two people more alike than this (OKS with the areas of their boxes) the weaker goes.
        duplicate_joint_score: only joints with this score in both count in that.
        crop_height: R-CNN: of a crop, in pixels. Top-down models have a size of their own.
        crop_width: R-CNN: likewise.
        crop_margin: R-CNN: by which a box is enlarged before it is cut out.
        flip_test: top-down: take the mean of the heatmaps of a crop and its mirror image, at twice the work.
        decoding: top-down: how the maximum of a heatmap is refined: by a "quarter" of a pixel as published, "dark",
            "none", or as the "model" says.
        oks_threshold: top-down: of two people more alike than this (OKS with the areas of the crops, as HRNet
            evaluates, which is laxer) the weaker goes. Where the skeleton has no sigmas, it is their boxes' IoU.
        precision: of the models' weights and activations; on a CPU "bfloat16" pays where the CPU multiplies it
            natively, "float16" is for GPUs.
        compiled: the models go through `torch.compile`, on a GPU with CUDA graphs: every new size of images and batches
            takes a minute or more at first, so it pays for videos of one size.
        onnx: for a detector that is an .onnx file.
    """

    pose_from: Literal["features", "crops"] = "crops"
    score_threshold: float = 0.3
    maximum_people: int = 100
    people_per_batch: int = 64
    frames_per_batch: int | None = None
    duplicate_oks: float = 0.6
    duplicate_joint_score: float = 0.3
    crop_height: int = 256
    crop_width: int = 192
    crop_margin: float = 1.25
    flip_test: bool = True
    decoding: Literal["model", "none", "quarter", "dark"] = "model"
    oks_threshold: float = 0.9
    precision: Precision = "float32"
    compiled: bool = False
    onnx: OnnxSettings = field(default_factory=OnnxSettings)

    def __post_init__(self) -> None:
        if self.pose_from not in ("features", "crops"):
            raise InputError(f"pose_from must be 'features' or 'crops', got {self.pose_from!r}")
        if self.decoding not in ("model", "none", "quarter", "dark"):
            raise InputError(f"decoding must be 'model', 'none', 'quarter' or 'dark', got {self.decoding!r}")
        if self.precision not in ("float32", "bfloat16", "float16"):
            raise InputError(f"precision must be 'float32', 'bfloat16' or 'float16', got {self.precision!r}")
        for name in ("maximum_people", "people_per_batch", "frames_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be 1 or more, got {value}")
        if min(self.crop_height, self.crop_width) < 32:
            raise InputError(
                f"crops must be at least 32 pixels wide and high, got {self.crop_width}x{self.crop_height}"
            )
        if not 0 <= self.oks_threshold <= 1:
            raise InputError(f"oks_threshold must be in 0..1, got {self.oks_threshold}")


@dataclass(frozen=True)
class DrawingSettings:
    """What the overlay shows.

    Attributes:
        keypoint_threshold: joints with a lower score are not drawn (files keep them).
        boxes: whether boxes are drawn; those of people without joints are in any case.
        labels: whether ids are written.
        masks: whether masks are drawn, where the model gives them.
    """

    keypoint_threshold: float = 0.3
    boxes: bool = False
    labels: bool = True
    masks: bool = True
