"""The estimator: a model with its weights, from images and videos to `Poses`. What all kinds of models share."""

from __future__ import annotations

import platform
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

import pyposeext
from pyposeext.pipelines.detectors import Detector
from pyposeext.pipelines.inputs import InputImage, checked_boxes, checked_image, checked_scores
from pyposeext.pipelines.preparation import prepare_model
from pyposeext.pipelines.settings import EstimatorSettings
from pyposeext.pipelines.video import VideoPoses
from pyposeext.structures import Poses, Skeleton
from pyposeext.trackers.linker import GraphLinker, LinkerSettings, LinkState

_FRAMES_PER_BATCH = {"cpu": 1}
_FRAMES_PER_BATCH_ELSEWHERE = 8


@dataclass
class Estimator(ABC):
    """A model that finds people and their joints; `pyposeext.load` makes one of the kind that fits the model.

    Attributes:
        model: the model, on its device.
        settings: see `EstimatorSettings`.
        device: where it runs.
        source: where model and weights come from, for a run's record.
        detector: what finds the boxes of people; None for the model itself.
        skeleton: the model's joints.
    """

    model: Any
    settings: EstimatorSettings = field(default_factory=EstimatorSettings)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    source: dict[str, Any] = field(default_factory=dict)
    detector: Detector | None = None

    def __post_init__(self) -> None:
        self.model = prepare_model(self.model, self.device)
        self.skeleton: Skeleton = self.model.skeleton

    def image(
        self,
        image: NDArray[np.uint8],
        boxes: ArrayLike | None = None,
        scores: ArrayLike | None = None,
        *,
        name: str = "",
    ) -> Poses:
        """The people in an image, best first; or, with boxes, the pose in each box.

        Args:
            image: RGB uint8 [H, W, 3].
            boxes: [N, 4], x1, y1, x2, y2 in pixels. Each is looked at in a crop at full resolution, and the result has
                these boxes in this order. A joint that the model gives no number for is the middle of the box, with a
                score of 0.
            scores: [N], the boxes' own, of which the kind of estimator makes the people's.
            name: of the image's file, for a detector that looks its boxes up in a file.

        Raises:
            InputError: an image, boxes or scores that are not so.
        """
        image = checked_image(image)
        with torch.inference_mode():
            if boxes is None:
                return self._people([InputImage(image, None, name)], self.settings.score_threshold, tracked=False)[0]
            checked = checked_boxes(boxes)
            given = None if scores is None else checked_scores(scores, len(checked))
            return self._poses_in(image, checked, given)

    def step(
        self, frame: NDArray[np.uint8], state: LinkState | None = None, tracker: LinkerSettings | str = "default"
    ) -> tuple[Poses, LinkState]:
        """The people in the next frame of a live stream with their ids, and the state to give with the frame after.

        Args:
            frame: RGB uint8 [H, W, 3].
            state: what the call before gave; None for the first frame.
            tracker: how people are linked, or the name of a preset.
        """
        linker = GraphLinker(tracker)
        with torch.inference_mode():
            inputs = [InputImage(checked_image(frame))]
            poses = self._people(inputs, self._tracking_threshold(linker), tracked=True)[0]
        return linker.link(poses, state, (frame.shape[1], frame.shape[0]))

    def video(
        self,
        path: str | Path,
        track: bool = False,
        *,
        tracker: LinkerSettings | str = "default",
        start: float = 0.0,
        max_frames: int | None = None,
        on_problem: Callable[[str], None] = warnings.warn,
    ) -> VideoPoses:
        """The people in a video: iterate over it for `FramePoses`, or call its `save`.

        Args:
            path: any file that FFmpeg reads.
            track: whether people are linked over time and get ids.
            tracker: how, or the name of a preset.
            start, max_frames, on_problem: as in `VideoPoses`.
        """
        linker = GraphLinker(tracker) if track else None
        settings = {**self.describe(), "tracker": asdict(linker.settings) if linker else None}
        threshold = self._tracking_threshold(linker) if linker else self.settings.score_threshold

        def estimate(frames: Sequence[InputImage]) -> list[Poses]:
            with torch.inference_mode():
                return self._people(frames, threshold, tracked=track)

        return VideoPoses(
            path,
            estimate,
            self.skeleton,
            frames_per_batch=self._frames_per_batch(),
            ahead=not self.settings.compiled,
            maximum_people=self.settings.maximum_people,
            linker=linker,
            start=start,
            max_frames=max_frames,
            on_problem=on_problem,
            settings=settings,
        )

    def describe(self) -> dict[str, Any]:
        """Versions, model, detector, weights, device and settings, for a run's record."""
        versions = {
            "pyposeext": pyposeext.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "ffmpeg": av.ffmpeg_version_info,
        }
        return {
            "versions": versions,
            "model": self.source,
            "detector": None if self.detector is None else self.detector.source,
            "machine": {"device": str(self.device), "threads": torch.get_num_threads()},
            "estimator": asdict(self.settings),
        }

    @abstractmethod
    def _people(self, inputs: Sequence[InputImage], score_threshold: float, tracked: bool) -> list[Poses]:
        """The people in each image, best first; those with a number that is none are left out.

        Where they are to be `tracked` their scores are the boxes', which a tracker's thresholds are made for.
        """

    @abstractmethod
    def _poses_in(
        self, image: NDArray[np.uint8], boxes: NDArray[np.float32], scores: NDArray[np.float32] | None
    ) -> Poses:
        """A pose for each box, in their order; joints without numbers are replaced."""

    def _tracking_threshold(self, linker: GraphLinker) -> float:
        """A tracker may go on with people who are too faint to be believed alone."""
        return min(self.settings.score_threshold, linker.settings.minimum_score)

    def _frames_per_batch(self) -> int:
        usual = _FRAMES_PER_BATCH.get(self.device.type, _FRAMES_PER_BATCH_ELSEWHERE)
        return self.settings.frames_per_batch or usual


def finite_people(poses: Poses) -> NDArray[np.bool_]:
    """[N], whether every number of a person is one."""
    joints = np.isfinite(poses.keypoints).all(axis=(1, 2))
    return joints & np.isfinite(poses.boxes).all(axis=1) & np.isfinite(poses.scores)


def repaired_joints(poses: Poses) -> Poses:
    """The same people, each joint that is no number in the middle of the box with a score of 0."""
    broken = ~np.isfinite(poses.keypoints).all(axis=2, keepdims=True)
    if not broken.any():
        return poses
    middles = poses.boxes[:, :2] / 2 + poses.boxes[:, 2:] / 2
    instead = np.concatenate([middles, np.zeros_like(middles[:, :1])], axis=1)
    return replace(poses, keypoints=np.where(broken, instead[:, None], poses.keypoints))
