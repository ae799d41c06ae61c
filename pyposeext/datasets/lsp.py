"""Leeds Sports Pose (Johnson and Everingham, BMVC 2010) and its extension (CVPR 2011): one athlete per image.

Both give ``joints.mat`` with 14 joints, left and right the subject's own, and a folder of JPEG images. The two files
differ in the order of their axes and in the meaning of the third value: LSP's flag says "occluded", the extension's
says "labelled" (the coordinates of an unlabelled joint mean nothing). Coordinates are given as stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import scipy.io
from numpy.typing import NDArray

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
from pyposeext.skeletons import LSP14

LICENCE = "Leeds Sports Pose: academic use, no licence text; the photographs are Flickr users'"
TRAIN_IMAGES = 1000
# LSP gives no boxes: the extent of the joints leaves out hands, feet and hair.
BOX_MARGIN = 0.08


class LeedsSports:
    """LSP: images 1 to 1000 are the official training set, 1001 to 2000 the test set."""

    name = "lsp"
    licence = LICENCE
    skeleton = LSP14

    def __init__(self, root: str | Path, split: Literal["train", "test"] = "train") -> None:
        """Indexes `root`, which holds ``joints.mat`` and ``images/im0001.jpg`` and so on (fewer images are fine)."""
        if split not in ("train", "test"):
            raise InputError(f"split must be 'train' or 'test', got {split!r}")
        self._root = Path(root)
        joints = _read_joints(self._root / "joints.mat", (3, 14, None)).transpose(2, 1, 0)
        self._first = 0 if split == "train" else TRAIN_IMAGES
        self._joints = joints[:TRAIN_IMAGES] if split == "train" else joints[TRAIN_IMAGES:]
        self._joints[:, :, 2] = np.where(self._joints[:, :, 2] > 0, OCCLUDED, VISIBLE)

    def __len__(self) -> int:
        return len(self._joints)

    def count_people(self, index: int) -> int:
        """Always 1: the athlete. Others in the picture are not labelled."""
        check_index(self.name, index, len(self))
        return 1

    def sample(self, index: int) -> Sample:
        """Image `index` of the split, decoded."""
        check_index(self.name, index, len(self))
        number = self._first + index + 1
        return _one_person(self._root / "images" / f"im{number:04d}.jpg", number, self._joints[index])


class LeedsSportsExtended:
    """LSP-extended: 10,000 harder images, all of them for training, labelled by several hands and noisier."""

    name = "lsp_extended"
    licence = LICENCE
    skeleton = LSP14

    def __init__(self, root: str | Path) -> None:
        """Indexes `root`, which holds ``joints.mat`` and ``images/im00001.jpg`` and so on (fewer images are fine)."""
        self._root = Path(root)
        self._joints = _read_joints(self._root / "joints.mat", (14, 3, None)).transpose(2, 0, 1)
        labelled = self._joints[:, :, 2:] > 0
        visibility = np.where(labelled, VISIBLE, NOT_LABELLED)
        self._joints = np.concatenate([np.where(labelled, self._joints[:, :, :2], 0), visibility], axis=2)

    def __len__(self) -> int:
        return len(self._joints)

    def count_people(self, index: int) -> int:
        """Always 1: the athlete. Others in the picture are not labelled."""
        check_index(self.name, index, len(self))
        return 1

    def sample(self, index: int) -> Sample:
        """Image `index`, decoded."""
        check_index(self.name, index, len(self))
        number = index + 1
        return _one_person(self._root / "images" / f"im{number:05d}.jpg", number, self._joints[index])


def _read_joints(path: Path, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    try:
        joints = np.asarray(scipy.io.loadmat(path)["joints"], dtype=np.float64)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}") from error
    except (KeyError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a MATLAB file with the variable joints: {error}") from error
    if joints.ndim != 3 or any(want not in (None, have) for want, have in zip(shape, joints.shape, strict=True)):
        expected = ", ".join("N" if size is None else str(size) for size in shape)
        raise InputError(f"{str(path)!r}: joints must be [{expected}], got {list(joints.shape)}")
    return joints.copy()


def _one_person(path: Path, number: int, joints: NDArray[np.float64]) -> Sample:
    keypoints = joints.astype(np.float32)
    boxes, people = [], []
    if (keypoints[:, 2] > 0).any():
        boxes.append(box_of_keypoints(keypoints, BOX_MARGIN))
        people.append(keypoints)
    image = read_image(path)
    height, width = image.shape[:2]
    stacked = stack_boxes(boxes).clip(0, [width, height, width, height]).astype(np.float32)
    sides = stacked[:, 2:] - stacked[:, :2]
    return Sample(
        image=image,
        boxes=stacked,
        keypoints=np.asarray(people, dtype=np.float32).reshape(-1, len(LSP14), 3),
        ignore=stack_boxes([]),
        name=path.name,
        image_id=number,
        areas=(0.53 * sides[:, 0] * sides[:, 1]).astype(np.float32),
    )
