"""What comes into an estimator: checked images, boxes and scores, and their way to the device."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyposeext.errors import InputError


class InputImage(NamedTuple):
    """An image and where it is from, by which detections in a file are found.

    Attributes:
        image: RGB uint8 [H, W, 3].
        number: of the frame among those read from a video, from 0; None for an image that is no frame.
        name: of the image's file; "" where it has none.
        time: of the frame in its video, in seconds; None for an image that is no frame.
    """

    image: NDArray[np.uint8]
    number: int | None = None
    name: str = ""
    time: float | None = None


def checked_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image, or an InputError where it is not RGB uint8 [H, W, 3] with at least one pixel."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"image must be RGB uint8 [H, W, 3] and not empty, got {image.dtype} {list(image.shape)}")
    return image


def checked_boxes(boxes: ArrayLike) -> NDArray[np.float32]:
    """Boxes as float32 [N, 4], or an InputError where they are not finite boxes with an area."""
    array = _numbers(boxes, "boxes must be [N, 4] of numbers")
    if array.size == 0:
        array = array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"boxes must be [N, 4], got shape {list(array.shape)}")
    if not np.isfinite(array).all() or (array[:, 2:] <= array[:, :2]).any():
        raise InputError("boxes must be finite with x2 > x1 and y2 > y1")
    return array


def checked_scores(scores: ArrayLike, count: int) -> NDArray[np.float32]:
    """Scores as float32 [count], or an InputError where they are not so many finite numbers."""
    array = _numbers(scores, f"scores must be {count} finite numbers, one for each box")
    if array.shape != (count,) or not np.isfinite(array).all():
        raise InputError(f"scores must be {count} finite numbers, one for each box, got shape {list(array.shape)}")
    return array


def _numbers(values: ArrayLike, expected: str) -> NDArray[np.float32]:
    """An array of float32, or an InputError that begins with what was expected."""
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which the caller refuses
            return np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{expected}, got {reprlib.repr(values)}") from error


def stack_on(device: torch.device, images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Images of one size as uint8 [N, H, W, 3] on the device, in one transfer (from pinned memory to a GPU)."""
    stack = torch.from_numpy(images[0][None] if len(images) == 1 else np.stack(images))
    if device.type != "cuda":
        return stack.to(device)
    return stack.contiguous().pin_memory().to(device, non_blocking=True)


def frames_and_table(
    device: torch.device, images: Sequence[NDArray[np.uint8]], table: NDArray[np.float64]
) -> tuple[Tensor, Tensor]:
    """Images of one size as uint8 [N, H, W, 3] and a table of numbers, on the device: one transfer for both."""
    if device.type == "cpu":
        return stack_on(device, images), torch.from_numpy(table)
    shape = (len(images), *images[0].shape)
    packed = torch.empty(table.nbytes + math.prod(shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
    # The table comes first, where its eight-byte numbers are aligned.
    packed[: table.nbytes].view(torch.float64).copy_(torch.from_numpy(table).flatten())
    for place, image in zip(packed[table.nbytes :].view(shape), images, strict=True):
        place.copy_(torch.from_numpy(image))
    there = packed.to(device, non_blocking=True)
    return there[table.nbytes :].view(shape), there[: table.nbytes].view(torch.float64).view(table.shape)


def model_images(device: torch.device, images: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
    """Each image as float [3, H, W] in 0..1 on the device; those of one size go there in one transfer."""
    if len({image.shape for image in images}) > 1:
        return [tensor for image in images for tensor in model_images(device, [image])]
    return [image.permute(2, 0, 1).float() / 255 for image in stack_on(device, images)]
