"""One image with its labelled people: what every image data set of this package gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pyposeext.errors import InputError
from pyposeext.structures import Skeleton

NOT_LABELLED, OCCLUDED, VISIBLE = 0, 1, 2


@dataclass
class Sample:
    """One labelled image. Pixel coordinates have their integers at pixel centres.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        boxes: float32 [N, 4], x1, y1, x2, y2 of every labelled person.
        keypoints: float32 [N, K, 3], x, y and visibility: 0 not labelled (x = y = 0), 1 occluded, 2 visible.
        ignore: float32 [M, 4], regions that may hold unlabelled people: neither people nor background.
        name: the image's file name, unique in its data set.
        image_id: the data set's own number for it.
        areas: float32 [N], the area of each person in square pixels (segment, not box, where the data set gives it).
        masks: uint8 [N, H, W], 1 where a person is, or None where the data set has none or they were not asked for.
        labels: int64 [N], what each is, in the data set's numbers; None: all are persons, 1.
        pose_boxes: float32 [N, 4], the boxes by which a data set's protocol cuts people out for pose estimation; None:
            `boxes`.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    ignore: NDArray[np.float32]
    name: str
    image_id: int
    areas: NDArray[np.float32]
    masks: NDArray[np.uint8] | None = None
    labels: NDArray[np.int64] | None = None
    pose_boxes: NDArray[np.float32] | None = None


class ImageDataset(Protocol):
    """An indexed set of labelled images, decoded one at a time.

    Attributes:
        name: what the set is called.
        licence: under which terms its owners give it out.
        skeleton: what the K joints are.
    """

    name: str
    licence: str
    skeleton: Skeleton

    def __len__(self) -> int: ...

    def count_people(self, index: int) -> int:
        """How many people, crowds included, image `index` holds, told without decoding it."""
        ...

    def sample(self, index: int) -> Sample:
        """Reads and decodes image `index` (0 to len - 1)."""
        ...


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """The image file as uint8 RGB [H, W, 3], its pixels as they are stored, whatever its EXIF orientation says.

    Labels refer to the stored pixels: the published training and evaluation code reads them so.

    Raises:
        InputError: the file is missing or not an image.
    """
    # Reading the bytes first keeps names in any alphabet readable and tells "missing" from "not an image".
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(f"image {str(path)!r} cannot be read: {error.strerror or error}") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if data.size else None
    if image is None:
        raise InputError(f"image {str(path)!r} is not in a format OpenCV decodes")
    return np.ascontiguousarray(image[:, :, ::-1])


def box_of_keypoints(keypoints: NDArray[np.float32], margin: float) -> NDArray[np.float32]:
    """The extent of the labelled joints, widened on every side by `margin` times its longer side.

    Args:
        keypoints: [K, 3] x, y, visibility, with at least one labelled joint.
        margin: 0 gives the bare extent.

    Returns:
        float32 [4], x1, y1, x2, y2.
    """
    labelled = keypoints[keypoints[:, 2] > 0, :2]
    if not len(labelled):
        raise InputError("keypoints must hold at least one labelled joint, got none")
    low, high = labelled.min(0), labelled.max(0)
    reach = margin * float(max(high - low))
    return np.concatenate([low - reach, high + reach]).astype(np.float32)


def check_index(name: str, index: int, count: int) -> None:
    """Raises InputError where `index` is not one of the `count` samples of the data set `name`."""
    if not 0 <= index < count:
        raise InputError(f"{name}: index must be in 0..{count - 1}, got {index}")


def stack_boxes(boxes: Sequence[NDArray[np.float32] | Sequence[float]]) -> NDArray[np.float32]:
    """Float32 [N, 4] from N boxes, also where N is 0."""
    return np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
