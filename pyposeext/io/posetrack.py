"""PoseTrack 2018 files: COCO-like, with head top and bottom and track ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyposeext.errors import InputError
from pyposeext.io.atomic import PendingFile
from pyposeext.io.coco import flat_keypoints, frames_of, load_json
from pyposeext.io.json_arrays import JsonArrays, Record
from pyposeext.io.writer import FramePoses, PoseWriter, check_poses, check_skeleton
from pyposeext.skeletons import COCO17, POSETRACK18
from pyposeext.structures import Poses, Skeleton

PEOPLE_PER_IMAGE = 100
# The joints that the format takes.
CONVERTIBLE = (COCO17.names, POSETRACK18.names)

# T SSSSSS FFFF: source 1, sequence 1, then the frame. Past 9999 frames the digits run over but stay unique in the file.
_FIRST_IMAGE_ID = 1_000_001_0000
_SEQUENCE = "000001"
_NOSE, _HEAD_BOTTOM, _HEAD_TOP, _EARS = 0, 1, 2, slice(3, 5)
_SHOULDERS = slice(5, 7)


class PoseTrackWriter(PoseWriter):
    """PoseTrack 2018 layout with the field `scores` filled, as prediction files have it.

    Poses must be tracked. Those with COCO's joints are converted by `to_posetrack18`. `bbox_head` is a square around
    the line from head bottom to head top. Each image also has its `time` in seconds.

    Args:
        path: the file.
        skeleton: of the poses to come, COCO's or PoseTrack's 17 joints.
        stem: name of the video, from which the images' file names are made.
    """

    def __init__(self, path: str | Path, skeleton: Skeleton, stem: str = "video") -> None:
        if skeleton.names not in CONVERTIBLE:
            raise InputError(f"the PoseTrack format takes coco17 or posetrack18 joints, got {skeleton.name!r}")
        self._pending = PendingFile(path)
        self._arrays = JsonArrays(("images", "annotations"), self._pending.path.parent)
        self._skeleton = skeleton
        self._stem = stem
        self._frames = 0

    def write(self, frame: FramePoses) -> None:
        check_poses(frame.poses, self._skeleton, f"frame {frame.number}")
        if frame.poses.ids is None:
            raise InputError("the PoseTrack format holds tracks, but these poses have no ids")
        if len(frame.poses) > PEOPLE_PER_IMAGE:
            raise InputError(
                f"the PoseTrack format numbers 100 people an image, frame {frame.number} has {len(frame.poses)}"
            )
        image_id = _FIRST_IMAGE_ID + frame.number
        image = {
            "id": image_id,
            "frame_id": image_id,
            "vid_id": _SEQUENCE,
            "file_name": f"images/{self._stem}/{frame.number:06d}.jpg",
            "is_labeled": True,
            "has_no_densepose": True,
            "ignore_regions_x": [],
            "ignore_regions_y": [],
            "frame": frame.number,
            "time": round(frame.time, 6),
        }
        if frame.image is not None:
            image |= {"width": frame.image.shape[1], "height": frame.image.shape[0]}
        self._arrays.append("images", image)
        poses = to_posetrack18(frame.poses)
        for person in range(len(poses)):
            self._arrays.append("annotations", _annotation(poses, person, image_id))
        self._frames += 1

    def close(self) -> None:
        category = {
            "id": 1,
            "name": "person",
            "supercategory": "person",
            "keypoints": list(POSETRACK18.names),
            "skeleton": [[a + 1, b + 1] for a, b in POSETRACK18.edges],
        }
        with self._pending.temporary.open("w", encoding="utf-8") as stream:
            self._arrays.write(stream, {"categories": [category]}, {"images": self._with_length})
        self._arrays.close()
        self._pending.commit()

    def discard(self) -> None:
        self._arrays.close()
        self._pending.discard()

    def _with_length(self, image: Record) -> Record:
        return {**image, "nframes": self._frames}


def read_posetrack(path: str | Path) -> list[FramePoses]:
    """The images of a file that `PoseTrackWriter` wrote, in order, with their people (posetrack18 joints) and times."""
    return frames_of(load_json(path), POSETRACK18, "scores")


def to_posetrack18(poses: Poses) -> Poses:
    """Poses with PoseTrack's 17 joints, from those or from COCO's.

    Head bottom is the middle of the shoulders, head top the nose mirrored away from it (2 * nose - head bottom), as
    Detect-and-Track evaluates COCO models; their scores are those of the joints they come from (the mean of the
    shoulders; the lower of nose and head bottom). Ears are zero: PoseTrack never annotates them.
    """
    if poses.skeleton.names == POSETRACK18.names:
        return poses
    check_skeleton(poses, COCO17)
    keypoints = poses.keypoints.copy()
    keypoints[:, _HEAD_BOTTOM] = poses.keypoints[:, _SHOULDERS].mean(axis=1)
    nose, neck = keypoints[:, _NOSE], keypoints[:, _HEAD_BOTTOM]
    keypoints[:, _HEAD_TOP, :2] = 2 * nose[:, :2] - neck[:, :2]
    keypoints[:, _HEAD_TOP, 2] = np.minimum(nose[:, 2], neck[:, 2])
    keypoints[:, _EARS] = 0
    return Poses(keypoints, poses.boxes, poses.scores, POSETRACK18, poses.ids, poses.masks)


def _annotation(poses: Poses, person: int, image_id: int) -> dict[str, Any]:
    keypoints = poses.keypoints[person].astype(np.float64)
    flags = np.ones(len(keypoints), dtype=np.int64)
    flags[_EARS] = keypoints[_EARS, 2] > 0
    x1, y1, x2, y2 = poses.boxes[person].tolist()
    assert poses.ids is not None
    return {
        "id": image_id * PEOPLE_PER_IMAGE + person,
        "image_id": image_id,
        "category_id": 1,
        "track_id": int(poses.ids[person]),
        "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
        "bbox_head": _head_box(keypoints),
        "keypoints": flat_keypoints(keypoints[:, :2], flags),
        "scores": [round(float(score), 4) for score in keypoints[:, 2]],
        "score": round(float(poses.scores[person]), 4),
        "iscrowd": 0,
        "num_keypoints": int(flags.sum()),
    }


def _head_box(keypoints: NDArray[np.float64]) -> list[float]:
    """x, y, width, height of the square whose middle and side are those of the line head bottom to head top."""
    top, bottom = keypoints[_HEAD_TOP, :2], keypoints[_HEAD_BOTTOM, :2]
    side = float(np.linalg.norm(top - bottom))
    corner = (top + bottom) / 2 - side / 2
    return [round(value, 3) for value in (*corner.tolist(), side, side)]
