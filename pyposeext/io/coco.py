"""COCO keypoint files: one object with images, annotations and categories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pyposeext.errors import InputError
from pyposeext.io.atomic import PendingFile
from pyposeext.io.json_arrays import JsonArrays
from pyposeext.io.rle import mask_area
from pyposeext.io.writer import FramePoses, PoseWriter, check_poses
from pyposeext.skeletons import get_skeleton
from pyposeext.structures import Poses, Skeleton

_VISIBLE, _HIDDEN = 2, 1


class CocoWriter(PoseWriter):
    """COCO layout with what COCO leaves out kept beside it.

    Beyond COCO's own fields an annotation has `score`, `keypoint_scores` (K values in 0..1) and, where people were
    tracked, `track_id`; an image has `time`. The visibility flag is 2 for joints with a score of at least
    `keypoint_threshold`, else 1. Where people have masks, `segmentation` is one in COCO's compressed run lengths and
    `area` that of the mask; else `area` is that of the box.

    Args:
        target: the file, or an open text stream that is written to by `close`.
        skeleton: of the poses to come.
        stem: name of the video, from which the images' file names are made.
        keypoint_threshold: see above.
    """

    def __init__(
        self, target: str | Path | IO[str], skeleton: Skeleton, stem: str = "video", keypoint_threshold: float = 0.3
    ) -> None:
        self._pending = PendingFile(target) if isinstance(target, (str, Path)) else None
        self._stream = None if isinstance(target, (str, Path)) else target
        self._arrays = JsonArrays(("images", "annotations"), self._pending.path.parent if self._pending else None)
        self._skeleton = skeleton
        self._stem = stem
        self._threshold = keypoint_threshold
        self._images = 0
        self._annotations = 0

    def write(self, frame: FramePoses) -> None:
        size = None if frame.image is None else frame.image.shape[1::-1]
        self.write_image(frame.poses, f"{self._stem}/{frame.number:06d}.jpg", size, frame.time)

    def write_image(
        self, poses: Poses, file_name: str, size: tuple[int, ...] | None = None, time: float | None = None
    ) -> None:
        """Add an image of that name with its people; `size` is (width, height) in pixels."""
        check_poses(poses, self._skeleton, file_name)
        image: dict[str, Any] = {"id": self._images, "file_name": file_name}
        if size is not None:
            image |= {"width": size[0], "height": size[1]}
        if time is not None:
            image["time"] = round(time, 6)
        self._arrays.append("images", image)
        for person in range(len(poses)):
            self._annotations += 1  # ids begin at 1: evaluators take 0 for "no match"
            self._arrays.append("annotations", self._annotation(poses, person))
        self._images += 1

    def close(self) -> None:
        category = {
            "id": 1,
            "name": "person",
            "supercategory": "person",
            "keypoints": list(self._skeleton.names),
            "skeleton": [[a + 1, b + 1] for a, b in self._skeleton.edges],
        }
        rest = {"categories": [category], "info": {"skeleton": self._skeleton.name}, "licenses": []}
        if self._stream is not None:
            self._arrays.write(self._stream, rest)
        if self._pending is not None:
            with self._pending.temporary.open("w", encoding="utf-8") as stream:
                self._arrays.write(stream, rest)
            self._pending.commit()
        self._arrays.close()

    def discard(self) -> None:
        self._arrays.close()
        if self._pending is not None:
            self._pending.discard()

    def _annotation(self, poses: Poses, person: int) -> dict[str, Any]:
        scores = poses.keypoints[person, :, 2]
        flags = np.where(scores >= self._threshold, _VISIBLE, _HIDDEN)
        x1, y1, x2, y2 = (float(value) for value in poses.boxes[person])
        annotation = {
            "id": self._annotations,
            "image_id": self._images,
            "category_id": 1,
            "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
            "area": round((x2 - x1) * (y2 - y1), 3),
            "iscrowd": 0,
            "num_keypoints": len(self._skeleton),
            "keypoints": flat_keypoints(poses.keypoints[person, :, :2], flags),
            "keypoint_scores": [round(float(score), 4) for score in scores],
            "score": round(float(poses.scores[person]), 4),
        }
        if poses.masks is not None:
            mask = poses.masks[person]
            annotation |= {"segmentation": mask, "area": mask_area(mask)}
        if poses.ids is not None:
            annotation["track_id"] = int(poses.ids[person])
        return annotation


def read_coco(path: str | Path) -> list[FramePoses]:
    """The images of a file that `CocoWriter` wrote, in order, with their people and times (0 where none is given)."""
    content = load_json(path)
    return frames_of(content, get_skeleton(content["info"]["skeleton"]), "keypoint_scores")


def flat_keypoints(points: NDArray[np.floating[Any]], flags: NDArray[np.integer[Any]]) -> list[float | int]:
    """COCO's list of x, y, flag per joint, from [K, 2] and [K]."""
    flat: list[float | int] = []
    for (x, y), flag in zip(points.tolist(), flags.tolist(), strict=True):
        flat += [round(x, 3), round(y, 3), flag]
    return flat


def load_json(path: str | Path) -> Any:
    """The JSON in a file, or an InputError."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except ValueError as error:
        raise InputError(f"{path} is not a JSON file: {error}") from error


def frames_of(content: Any, skeleton: Skeleton, scores_key: str) -> list[FramePoses]:
    """The images of a COCO-like object as FramePoses; scores of joints stand under `scores_key`."""
    people: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        people[annotation["image_id"]].append(annotation)
    frames = []
    for index, image in enumerate(content["images"]):
        poses = _poses(people[image["id"]], skeleton, scores_key)
        frames.append(FramePoses(image.get("frame", index), image.get("time", 0.0), poses))
    return frames


def _poses(annotations: list[dict[str, Any]], skeleton: Skeleton, scores_key: str) -> Poses:
    if not annotations:
        return Poses.empty(skeleton)
    count, joints = len(annotations), len(skeleton)
    keypoints = np.array([a["keypoints"] for a in annotations], dtype=np.float32).reshape(count, joints, 3)
    keypoints[:, :, 2] = [a[scores_key] for a in annotations]
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float32)
    boxes[:, 2:] += boxes[:, :2]
    tracked = all("track_id" in a for a in annotations)
    ids = np.array([a["track_id"] for a in annotations]) if tracked else None
    masks = [a["segmentation"] for a in annotations] if all("segmentation" in a for a in annotations) else None
    return Poses(keypoints, boxes, np.array([a.get("score", 1.0) for a in annotations]), skeleton, ids, masks)
