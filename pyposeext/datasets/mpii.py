"""MPII Human Pose (Andriluka et al., CVPR 2014): people in YouTube frames, 16 joints, in the files everybody trains on.

``mpii_train.json``, ``mpii_val.json`` and so on list one person after another: ``image``, ``center``, ``scale`` (the
person's height over 200 pixels), ``joints`` [16, 2] and ``joints_vis`` [16]. ``mpii_gt_val.mat`` holds what PCKh
compares with, in the same order. ``mpii_human_pose_v1_u12_1.mat`` is the original release, all images in one file. All
count pixels from 1; this reader counts from 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.io
from numpy.typing import NDArray

from pyposeext.datasets.lsp import BOX_MARGIN
from pyposeext.datasets.sample import (
    NOT_LABELLED,
    OCCLUDED,
    VISIBLE,
    Sample,
    box_of_keypoints,
    check_index,
    read_image,
    stack_boxes,
)
from pyposeext.errors import InputError
from pyposeext.skeletons import MPII16

LICENCE = "MPII Human Pose: the terms at human-pose.mpi-inf.mpg.de; the frames are YouTube users'"
# HRNet's lib/dataset/mpii.py: centres are moved down by 15 and regions enlarged, so that no limb is cut off.
_DOWN = 15.0
_MARGIN = 1.25
_SHAPES: dict[str, tuple[int, ...]] = {"center": (2,), "scale": (), "joints": (16, 2), "joints_vis": (16,)}
Split = Literal["train", "test"]


@dataclass(frozen=True)
class _Person:
    """One person as the files state it, pixels counted from 1; keypoints [16, 3] are x, y and visibility."""

    image: str
    centre: tuple[float, float]
    scale: float
    keypoints: NDArray[np.float64]


class MpiiPose:
    """A file of people, grouped by image: a `Sample` holds all people of the file that one image shows.

    The boxes are the squares whose crops are HRNet's: centred 15 * scale below the given centre, sides of 200 * scale.
    The published crop has sides of 1.25 * 200 * scale, and top-down models enlarge boxes by just that `margin` of
    theirs, so a model with square crops cuts out the published region. The boxes are not clipped to the image, since
    that would move the crops.

    The JSON files do not say which joints are occluded: theirs are visible or not labelled. The original release does.
    Test images have no joints.
    """

    licence = LICENCE
    skeleton = MPII16

    def __init__(self, annotations: str | Path, images: str | Path | None = None, split: Split | None = None) -> None:
        """Indexes a file.

        Args:
            annotations: a JSON file, or the original release (.mat).
            images: the folder of the images; None where only the records are wanted (then `sample` raises).
            split: which part of the original release; the JSON files are one each. Its people without a place, a scale
                or, in the training part, joints are left out.

        Raises:
            InputError: the file is missing or is not as described above, or the folder is missing.
        """
        self.path = Path(annotations)
        self.name = self.path.stem
        self._folder = None if images is None else Path(images)
        if self._folder is not None and not self._folder.is_dir():
            raise InputError(f"images must be a folder, got {str(images)!r}")
        released = self.path.suffix.lower() == ".mat"
        if released != (split is not None) or split not in (None, "train", "test"):
            needed = "'train' or 'test' with the original release" if released else "None with a JSON file"
            raise InputError(f"split must be {needed}, got {split!r}")
        people = _read_json(self.path) if split is None else _read_release(self.path, split)
        self._keypoints = np.asarray([_keypoints(person) for person in people], np.float32).reshape(-1, 16, 3)
        self._boxes = stack_boxes([_box(person) for person in people])
        rows: dict[str, list[int]] = {}
        for row, person in enumerate(people):
            rows.setdefault(person.image, []).append(row)
        self._people = list(rows.items())

    def __len__(self) -> int:
        return len(self._people)

    def count_people(self, index: int) -> int:
        """How many people of the file image `index` shows."""
        return len(self.people(index))

    def people(self, index: int) -> NDArray[np.int64]:
        """Where in the file the N people of image `index` stand, [N]: the order of `MpiiTruth` and of PCKh."""
        check_index(self.name, index, len(self))
        return np.asarray(self._people[index][1], np.int64)

    def sample(self, index: int) -> Sample:
        """Image `index`, in the order in which the file first names them, decoded."""
        rows = self.people(index)
        if self._folder is None:
            raise InputError(f"{self.name}: no folder of images was given, so image {index} cannot be read")
        name = self._people[index][0]
        boxes, keypoints = self._boxes[rows], self._keypoints[rows]
        return Sample(
            image=read_image(self._folder / name),
            boxes=boxes,
            keypoints=keypoints,
            ignore=stack_boxes([]),
            name=name,
            image_id=index,
            areas=np.asarray([_area(*person) for person in zip(keypoints, boxes, strict=True)], np.float32),
        )


@dataclass(frozen=True)
class MpiiTruth:
    """What PCKh compares with, N people in the order of the JSON file of the same split; pixels count from 0.

    Attributes:
        keypoints: float64 [N, 16, 3], x, y and visibility, 0 for joints that are missing.
        head_boxes: float64 [N, 4], x1, y1, x2, y2.
    """

    keypoints: NDArray[np.float64]
    head_boxes: NDArray[np.float64]


def read_mpii_truth(path: str | Path) -> MpiiTruth:
    """``mpii_gt_val.mat``.

    Raises:
        InputError: the file is missing or does not hold ``pos_gt_src`` [16, 2, N], ``jnt_missing`` [16, N] and
            ``headboxes_src`` [2, 2, N].
    """
    content = _read_matlab(path)
    arrays = {}
    for key, shape in (("pos_gt_src", (16, 2, None)), ("jnt_missing", (16, None)), ("headboxes_src", (2, 2, None))):
        array = np.asarray(content.get(key, ()), np.float64)
        if array.ndim == len(shape) - 1:
            array = array[..., None]  # MATLAB drops a last axis of one person.
        if array.ndim != len(shape) or any(a not in (None, b) for a, b in zip(shape, array.shape, strict=True)):
            expected = ", ".join("N" if size is None else str(size) for size in shape)
            raise InputError(f"{str(path)!r} must hold {key} [{expected}], got {list(array.shape)}")
        arrays[key] = array
    counts = {key: array.shape[-1] for key, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"{str(path)!r} must hold as many people in all of its arrays, got {counts}")
    labelled = np.where(arrays["jnt_missing"] != 0, NOT_LABELLED, VISIBLE)
    points = np.concatenate([arrays["pos_gt_src"] - 1, labelled[:, None]], axis=1)
    corners = arrays["headboxes_src"] - 1
    return MpiiTruth(points.transpose(2, 0, 1), corners.reshape(4, -1).T)


def _read_matlab(path: str | Path, **options: bool) -> dict[str, Any]:
    try:
        content: dict[str, Any] = scipy.io.loadmat(path, **options)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}") from error
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"{str(path)!r} is not a MATLAB file: {error}") from error
    return content


def _read_json(path: Path) -> list[_Person]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"annotations {str(path)!r} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"annotations {str(path)!r} is not a JSON file: {error}") from error
    if not isinstance(content, list):
        raise InputError(f"annotations {str(path)!r} must be a list of people, got {type(content).__name__}")
    return [_person(record, f"annotations {str(path)!r}, person {row}") for row, record in enumerate(content)]


def _person(record: Any, what: str) -> _Person:
    if not isinstance(record, dict) or not {"image", "center", "scale"} <= record.keys():
        raise InputError(f"{what}: must hold image, center and scale")
    for key, shape in _SHAPES.items():
        if key in record and not _are_numbers(record[key], shape):
            raise InputError(f"{what}: {key} must be finite numbers {list(shape)}, got {record[key]!r:.80}")
    keypoints = np.zeros((16, 3))
    if "joints" in record:
        labelled = np.asarray(record.get("joints_vis", np.ones(16))) > 0
        keypoints = np.column_stack([record["joints"], np.where(labelled, VISIBLE, NOT_LABELLED)])
    return _Person(str(record["image"]), tuple(record["center"]), float(record["scale"]), keypoints)


def _are_numbers(value: Any, shape: tuple[int, ...]) -> bool:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return False
    return array.shape == shape and bool(np.isfinite(array).all())


def _read_release(path: Path, split: Split) -> list[_Person]:
    """The people of one part of RELEASE: its annolist(i).annorect(r), where img_train(i) says which part image i is."""
    content = _read_matlab(path, struct_as_record=False, squeeze_me=True)
    release: Any = content.get("RELEASE")
    if not hasattr(release, "annolist") or not hasattr(release, "img_train"):
        raise InputError(f"{str(path)!r} must hold RELEASE with annolist and img_train")
    images, training = np.atleast_1d(release.annolist), np.atleast_1d(release.img_train)
    if len(images) != len(training):
        raise InputError(f"{str(path)!r} must hold img_train for {len(images)} images, got {len(training)}")
    people = []
    for image, train in zip(images, training, strict=True):
        if bool(train) != (split == "train"):
            continue
        for rect in _structs(image, "annorect"):
            points = [point for points in _structs(rect, "annopoints") for point in _structs(points, "point")]
            places = _structs(rect, "objpos")
            scale: Any = getattr(rect, "scale", ())
            if places and np.size(scale) and (points or split == "test"):
                centre = float(places[0].x), float(places[0].y)
                people.append(_Person(str(image.image.name), centre, float(scale), _released_keypoints(points)))
    return people


def _structs(parent: Any, field: str) -> list[Any]:
    """The structs in a field that may be missing or hold nothing, one struct or several."""
    values = np.atleast_1d(getattr(parent, field, ()))
    return [value for value in values if hasattr(value, "_fieldnames")]


def _released_keypoints(points: list[Any]) -> NDArray[np.float64]:
    keypoints = np.zeros((16, 3))
    for point in points:
        # A number or text of one digit; upper neck and head top have neither.
        occluded = str(getattr(point, "is_visible", "")) in ("0", "0.0")
        keypoints[int(point.id)] = float(point.x), float(point.y), OCCLUDED if occluded else VISIBLE
    return keypoints


def _keypoints(person: _Person) -> NDArray[np.float64]:
    """[16, 3], x, y and visibility, pixels counted from 0."""
    labelled = person.keypoints[:, 2:] != NOT_LABELLED
    return np.where(labelled, person.keypoints - [1, 1, 0], 0)


def _box(person: _Person) -> tuple[float, float, float, float]:
    x, y = person.centre
    side = 200.0 * person.scale
    if x == -1:
        side /= _MARGIN  # A person without a centre is not moved and not enlarged, as published.
    else:
        y += _DOWN * person.scale
    x, y, reach = x - 1, y - 1, side / 2
    return x - reach, y - reach, x + reach, y + reach


def _area(keypoints: NDArray[np.float32], box: NDArray[np.float32]) -> float:
    """About what the person covers: of the extent of the joints as much as COCO's people fill of their boxes."""
    if (keypoints[:, 2] != NOT_LABELLED).any():
        box = box_of_keypoints(keypoints, BOX_MARGIN)
    return 0.53 * float((box[2] - box[0]) * (box[3] - box[1]))
