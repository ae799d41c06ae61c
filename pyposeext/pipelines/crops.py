"""People cut out of a full-resolution image at one fixed size, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# ImageNet's mean colour: zero once the model has normalised the image.
_GROUND = (124, 116, 104)
# A cut of more pixels than the image or the crop has, by this factor, is not made: nearly all of it is ground.
_LARGEST_CUT = 16


@dataclass(frozen=True)
class Crops:
    """N people's surroundings.

    Attributes:
        images: uint8 [N, h, w, 3], RGB.
        boxes: float32 [N, 4], each person's box in the pixels of the crop.
        origins: float32 [N, 2], x and y of the crop's upper left corner in the source.
        scales: float32 [N, 2], source pixels per crop pixel in x and y.
    """

    images: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    origins: NDArray[np.float32]
    scales: NDArray[np.float32]

    def to_source(self, points: NDArray[np.float32], offset: float = 0.5) -> NDArray[np.float32]:
        """Points [N, K, 2] of the crops in the source's pixels; `offset` is where whole numbers lie in a pixel."""
        return (points + offset) * self.scales[:, None] + self.origins[:, None] - offset


def cut_out(image: NDArray[np.uint8], boxes: NDArray[np.float32], size: tuple[int, int], margin: float) -> Crops:
    """Cut out each box, enlarged about its centre by `margin` and then to the shape of `size`, and resize it.

    Args:
        image: RGB uint8 [H, W, 3].
        boxes: [N, 4], x1, y1, x2, y2; they may reach beyond the image, which is the mean colour there.
        size: (height, width) of a crop.
        margin: 1 keeps the box.
    """
    height, width = size
    crops = np.empty((len(boxes), height, width, 3), dtype=np.uint8)
    boxes = boxes.astype(np.float64)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = (boxes[:, 2:] - boxes[:, :2]) * margin
    sides = np.stack([np.maximum(sides[:, 0], sides[:, 1] * width / height), sides[:, 1]], axis=1)
    sides[:, 1] = sides[:, 0] * height / width
    # Whole source pixels, so that what is cut is exactly what is scaled.
    sides = np.maximum(np.rint(sides), 2)
    origins = np.rint(middles - sides / 2)
    largest = _LARGEST_CUT * max(image.shape[0] * image.shape[1], height * width)
    for crop, origin, side in zip(crops, origins, sides, strict=True):
        if side.prod() > largest:
            _place(crop, image, origin, side)
            continue
        cut = _cut(image, *origin.astype(int), *side.astype(int))
        crop[:] = _resize(cut, (width, height), shrinks=side[0] > width)
    scales = sides / np.array([width, height])
    placed = (boxes - np.tile(origins, 2)) / np.tile(scales, 2)
    return Crops(crops, placed.astype(np.float32), origins.astype(np.float32), scales.astype(np.float32))


def _cut(image: NDArray[np.uint8], x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, image.shape[1]), min(y + height, image.shape[0])
    inside = image[top:bottom, left:right]
    if inside.shape[:2] == (height, width):
        return inside
    cut = np.full((height, width, 3), _GROUND, dtype=np.uint8)
    if right > left and bottom > top:
        cut[top - y : bottom - y, left - x : right - x] = inside
    return cut


def _place(
    crop: NDArray[np.uint8], image: NDArray[np.uint8], origin: NDArray[np.float64], side: NDArray[np.float64]
) -> None:
    """Fill the crop with what `_cut` and `_resize` would give, to a pixel of the crop, by way of the visible part."""
    crop[:] = _GROUND
    size = np.array(crop.shape[1::-1])
    begin = np.clip(origin, 0, image.shape[1::-1])
    end = np.clip(origin + side, 0, image.shape[1::-1])
    if (end <= begin).any():
        return
    first = np.minimum(np.rint((begin - origin) / side * size), size - 1).astype(int)
    last = np.clip(np.rint((end - origin) / side * size), first + 1, size).astype(int)
    (left, top), (right, bottom) = begin.astype(int), end.astype(int)
    x, y = first
    width, height = last - first
    visible = image[top:bottom, left:right]
    crop[y : y + height, x : x + width] = _resize(visible, (width, height), shrinks=right - left > width)


def _resize(image: NDArray[np.uint8], size: tuple[int, int], shrinks: bool) -> Any:
    """The image at (width, height)."""
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
