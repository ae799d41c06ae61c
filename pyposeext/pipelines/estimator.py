"""The estimator: a model with its weights, from images and videos to `Poses`."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

import pyposeext
from pyposeext.errors import InputError
from pyposeext.io.weights import file_sha256, read_manifest
from pyposeext.models import create_model, list_models
from pyposeext.models.registry import ALIASES
from pyposeext.models.weights import weights_file, weights_of_model
from pyposeext.pipelines.crops import cut_out
from pyposeext.pipelines.duplicates import remove_duplicates
from pyposeext.pipelines.joint_scores import joint_scores
from pyposeext.pipelines.settings import EstimatorSettings
from pyposeext.pipelines.video import VideoPoses
from pyposeext.structures import Poses, Skeleton
from pyposeext.trackers.linker import GraphLinker, LinkerSettings, LinkState

_PERSON = 1


@dataclass
class Estimator:
    """A model that finds people and their joints; `load` makes one.

    The scores of joints are probabilities in 0..1, see `pyposeext.pipelines.joint_scores`; those of people are the
    detector's.

    Attributes:
        model: a `pyposeext.models.mask_rcnn.MaskRCNN`, or what has its methods.
        settings: see `EstimatorSettings`.
        device: where it runs.
        source: where model and weights come from, for a run's record.
    """

    model: Any
    settings: EstimatorSettings = field(default_factory=EstimatorSettings)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = self.model.to(device=self.device, memory_format=torch.channels_last).eval()
        self.skeleton: Skeleton = self.model.skeleton

    def image(self, image: NDArray[np.uint8], boxes: ArrayLike | None = None) -> Poses:
        """The people in an image, best first; or, with boxes, the pose in each box.

        Args:
            image: RGB uint8 [H, W, 3].
            boxes: [N, 4], x1, y1, x2, y2 in pixels. Each is looked at in a crop at full resolution, and the result has
                these boxes in this order, with the mean of the joints' scores as a person's score. A joint that the
                model gives no number for is the middle of the box, with a score of 0.

        Raises:
            InputError: an image or boxes that are not so.
        """
        if boxes is None:
            return self._people(image, self.settings.score_threshold)
        with torch.inference_mode():
            return _repaired(self._poses_in(_checked_image(image), _checked_boxes(boxes), None))

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
        poses = self._people(frame, self._tracking_threshold(linker))
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
        return VideoPoses(
            path,
            lambda image: self._people(image, threshold),
            self.skeleton,
            maximum_people=self.settings.maximum_people,
            linker=linker,
            start=start,
            max_frames=max_frames,
            on_problem=on_problem,
            settings=settings,
        )

    def describe(self) -> dict[str, Any]:
        """Versions, model, weights, device and settings, for a run's record."""
        versions = {
            "pyposeext": pyposeext.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "ffmpeg": av.ffmpeg_version_info,
        }
        device = {"device": str(self.device), "threads": torch.get_num_threads()}
        return {"versions": versions, "model": self.source, "machine": device, "estimator": asdict(self.settings)}

    def _tracking_threshold(self, linker: GraphLinker) -> float:
        """A tracker may go on with people who are too faint to be believed alone."""
        return min(self.settings.score_threshold, linker.settings.minimum_score)

    def _people(self, image: NDArray[np.uint8], score_threshold: float) -> Poses:
        image = _checked_image(image)
        with torch.inference_mode():
            found = self._detect(image, score_threshold)
            if self.settings.pose_from == "crops":
                found = self._poses_in(image, found.boxes, found.scores)
        found = found[_finite(found)]
        return remove_duplicates(found, self.settings.duplicate_oks, self.settings.duplicate_joint_score)

    def _detect(self, image: NDArray[np.uint8], score_threshold: float) -> Poses:
        """The people in the whole image at the model's own size, best first."""
        transform = self.model.transform
        size = transform.resized(image.shape[:2], transform.min_size[-1])
        shrinks = size[0] < image.shape[0]
        # The model's own bilinear resize skips pixels when it shrinks much; averaging keeps small people whole.
        small: Any = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        found = self.model([_tensor(small, self.device)], resize=False, heatmaps=True)[0]
        ratio = torch.tensor([image.shape[1] / size[1], image.shape[0] / size[0]], device=self.device)
        offset = transform.keypoint_offset
        points = (found["keypoints"][..., :2] + offset) * ratio - offset
        scores = joint_scores(found["keypoint_heatmaps"])
        poses = Poses(
            torch.cat([points, scores[..., None]], dim=-1).float().cpu().numpy(),
            (found["boxes"] * ratio.repeat(2)).float().cpu().numpy(),
            found["scores"].float().cpu().numpy(),
            self.skeleton,
        )
        people = (found["labels"] == _PERSON).cpu().numpy() & (poses.scores >= score_threshold)
        people &= _finite(poses)
        return poses[people][: self.settings.maximum_people]

    def _poses_in(
        self, image: NDArray[np.uint8], boxes: NDArray[np.float32], scores: NDArray[np.float32] | None
    ) -> Poses:
        if len(boxes) == 0:
            return Poses.empty(self.skeleton)
        settings = self.settings
        crops = cut_out(image, boxes, (settings.crop_height, settings.crop_width), settings.crop_margin)
        placed = torch.from_numpy(crops.boxes).to(self.device)
        found = self.model.poses_in_boxes(
            [_tensor(crop, self.device) for crop in crops.images], list(placed[:, None]), resize=False, heatmaps=True
        )
        points = torch.cat([each["keypoints"][..., :2] for each in found]).float().cpu().numpy()
        joints = joint_scores(torch.cat([each["keypoint_heatmaps"] for each in found])).float().cpu().numpy()
        points = crops.to_source(points, self.model.transform.keypoint_offset)
        people = joints.mean(axis=1) if scores is None else scores
        return Poses(np.concatenate([points, joints[..., None]], axis=-1), boxes, people, self.skeleton)


def load(
    name_or_path: str | Path = "default",
    device: str = "auto",
    *,
    weights: str | Path | None = None,
    threads: int | None = None,
    settings: EstimatorSettings | None = None,
) -> Estimator:
    """An estimator, ready to run.

    Args:
        name_or_path: "default", a model's name, or a weight file, which names its model.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ...
        weights: a weight file, or the name of weights that are shipped or in the cache. None takes those of the model
            in the cache, if there is one set of them.
        threads: for PyTorch and OpenCV in this process; None leaves them.
        settings: see `EstimatorSettings`.

    Raises:
        InputError: an unknown model, weights that are missing, damaged or of another model, a device that is not there.
    """
    place = _device(device)
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads must be 1 or more, got {threads}")
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
    name, file = _model_and_weights(str(name_or_path), weights)
    model = create_model(name, weights=file)
    if not hasattr(model, "poses_in_boxes"):
        raise InputError(f"model {name} does not find people in images, so the estimator cannot run it")
    source = {"name": getattr(model, "model_name", name), "weights": str(file), "weights_sha256": file_sha256(file)}
    return Estimator(model, settings or EstimatorSettings(), place, source)


def _model_and_weights(name_or_path: str, weights: str | Path | None) -> tuple[str, Path]:
    known = (*ALIASES, *list_models())
    is_file = name_or_path not in known and (
        Path(name_or_path).suffix == ".safetensors" or Path(name_or_path).is_file()
    )
    if not is_file and name_or_path not in known:
        raise InputError(f"model must be one of {', '.join(known)}, or a weight file, got {name_or_path!r}")
    if is_file and weights is not None:
        raise InputError(f"weights were given twice: {name_or_path} and {weights}")
    if is_file:
        model = read_manifest(name_or_path).get("model")
        if model is None:
            raise InputError(f"weights {name_or_path} do not say what model they are of: give the model's name too")
        return model, Path(name_or_path)
    return name_or_path, weights_of_model(name_or_path) if weights is None else weights_file(weights)


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device must be 'auto' or one that PyTorch has here, got {device!r}") from error
    return place


def _checked_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"image must be RGB uint8 [H, W, 3] and not empty, got {image.dtype} {list(image.shape)}")
    return image


def _checked_boxes(boxes: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(boxes, dtype=np.float32)
    if array.size == 0:
        array = array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"boxes must be [N, 4], got shape {list(array.shape)}")
    if not np.isfinite(array).all() or (array[:, 2:] <= array[:, :2]).any():
        raise InputError("boxes must be finite with x2 > x1 and y2 > y1")
    return array


def _finite(poses: Poses) -> NDArray[np.bool_]:
    """[N], whether every number of a person is one."""
    joints = np.isfinite(poses.keypoints).all(axis=(1, 2))
    return joints & np.isfinite(poses.boxes).all(axis=1) & np.isfinite(poses.scores)


def _repaired(poses: Poses) -> Poses:
    """The same people, each joint that is no number in the middle of the box with a score of 0."""
    broken = ~np.isfinite(poses.keypoints).all(axis=2, keepdims=True)
    if not broken.any():
        return poses
    middles = poses.boxes[:, :2] / 2 + poses.boxes[:, 2:] / 2
    instead = np.concatenate([middles, np.zeros_like(middles[:, :1])], axis=1)
    keypoints = np.where(broken, instead[:, None], poses.keypoints)
    return replace(poses, keypoints=keypoints, scores=keypoints[..., 2].mean(axis=1))


def _tensor(image: NDArray[np.uint8], device: torch.device) -> Tensor:
    """float [3, H, W] in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1).float() / 255
