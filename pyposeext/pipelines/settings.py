"""The settings of the pipelines, apart from those of the linker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyposeext.errors import InputError


@dataclass(frozen=True)
class EstimatorSettings:
    """How people are found in an image.

    Attributes:
        pose_from: "features" takes the joints with the boxes from the whole, resized image; "crops" looks at every box
            again at full resolution, in one batch.
        score_threshold: people below it are left out; where they are tracked, below the tracker's minimum_score.
        maximum_people: the best this many are kept.
        duplicate_oks: of two people more alike than this (OKS) the weaker goes.
        duplicate_joint_score: only joints with this score in both count in that.
        crop_height: of a crop, in pixels.
        crop_width: likewise.
        crop_margin: by which a box is enlarged before it is cut out.
    """

    pose_from: Literal["features", "crops"] = "crops"
    score_threshold: float = 0.3
    maximum_people: int = 100
    duplicate_oks: float = 0.6
    duplicate_joint_score: float = 0.3
    crop_height: int = 256
    crop_width: int = 192
    crop_margin: float = 1.25

    def __post_init__(self) -> None:
        if self.pose_from not in ("features", "crops"):
            raise InputError(f"pose_from must be 'features' or 'crops', got {self.pose_from!r}")
        if self.maximum_people < 1:
            raise InputError(f"maximum_people must be 1 or more, got {self.maximum_people}")
        if min(self.crop_height, self.crop_width) < 32:
            raise InputError(
                f"crops must be at least 32 pixels wide and high, got {self.crop_width}x{self.crop_height}"
            )


@dataclass(frozen=True)
class DrawingSettings:
    """What the overlay shows.

    Attributes:
        keypoint_threshold: joints with a lower score are not drawn (files keep them).
        boxes: whether boxes are drawn.
        labels: whether ids are written.
    """

    keypoint_threshold: float = 0.3
    boxes: bool = False
    labels: bool = True
