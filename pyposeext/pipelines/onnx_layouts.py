"""The layouts that ONNX detectors give their boxes in, each as its family publishes it.

Coordinates are pixels of the graph's input. Every reader gives the boxes [N, 4] (x1, y1, x2, y2) and scores [N] of one
class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Outputs = Mapping[str, Array]
Found = tuple[Array, Array]
Size = tuple[int, int]

# YOLOX has one box for each cell of these strides, in this order.
_STRIDES = (8, 16, 32)
# Graphs that suppress boxes themselves give a few hundred rows, those that do not give thousands.
_MOST_ROWS = 1000
# What the TensorFlow Object Detection API calls its boxes, y1, x1, y2, x2.
_Y_FIRST = "detection_boxes"
# Corners up to this are shares of the image: nobody is a pixel large.
_LARGEST_SHARE = 1.5


class Layout(NamedTuple):
    """One convention.

    Attributes:
        fits: whether outputs, by name, follow it; given the class that is wanted and the (height, width) of the input.
        read: the boxes and scores of that class.
        person: the class of people that is usual.
        suppressed: whether the graph has already dropped overlapping boxes.
        values, colours: of the pixels that are usual, as in `OnnxSettings`.
    """

    fits: Callable[[Outputs, int, Size], bool]
    read: Callable[[Outputs, int, Size], Found]
    person: int = 0
    suppressed: bool = False
    values: str = "unit"
    colours: str = "rgb"


def _fits_yolo(outputs: Outputs, person: int, size: Size) -> bool:
    shape = _first(outputs).shape
    return len(shape) == 3 and shape[0] == 1 and 4 + person < shape[1] < shape[2]


def _read_yolo(outputs: Outputs, person: int, size: Size) -> Found:
    table = _first(outputs)[0].T
    return _corners(table), table[:, 4 + person]


def _fits_objectness(outputs: Outputs, person: int, size: Size) -> bool:
    shape = _first(outputs).shape
    return len(shape) == 3 and shape[0] == 1 and 5 + person < shape[2] < shape[1]


def _read_objectness(outputs: Outputs, person: int, size: Size) -> Found:
    table = _first(outputs)[0]
    return _corners(table), table[:, 4] * table[:, 5 + person]


def _fits_yolox(outputs: Outputs, person: int, size: Size) -> bool:
    if not _fits_objectness(outputs, person, size) or _first(outputs).shape[1] != len(_cells(size)):
        return False
    # Centres in pixels reach over the whole image, offsets from the cells do not.
    return bool(np.abs(_first(outputs)[0, :, :2]).max() < max(size) / 4)


def _read_yolox(outputs: Outputs, person: int, size: Size) -> Found:
    table, cells = _first(outputs)[0], _cells(size)
    sides = np.exp(np.minimum(table[:, 2:4].astype(np.float32), 20))  # so that nonsense does not overflow
    boxes = np.concatenate([table[:, :2] + cells[:, :2], sides], axis=1) * cells[:, 2:]
    return _corners(boxes), table[:, 4] * table[:, 5 + person]


def _cells(size: Size) -> Array:
    """float32 [N, 3]: column, row and stride of each cell, row by row and stride by stride."""
    grids = []
    for stride in _STRIDES:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
        grids.append(np.stack([columns.ravel(), rows.ravel(), np.full(rows.size, stride)], axis=1))
    return np.concatenate(grids).astype(np.float32)


def _fits_rows(outputs: Outputs, person: int, size: Size) -> bool:
    shape = _first(outputs).shape
    return shape[-1:] == (6,) and (len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)) and shape[-2] <= _MOST_ROWS


def _read_rows(outputs: Outputs, person: int, size: Size) -> Found:
    table = _first(outputs).reshape(-1, 6)
    table = table[np.rint(table[:, 5]) == person]
    return table[:, :4], table[:, 4]


def _fits_parts(outputs: Outputs, person: int, size: Size) -> bool:
    return _parts(outputs) is not None


def _read_parts(outputs: Outputs, person: int, size: Size) -> Found:
    names = _parts(outputs)
    if names is None:  # not the shapes of the image that the layout was found by
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    boxes, labels, scores = outputs[names[0]].reshape(-1, 4), *(outputs[name].reshape(-1) for name in names[1:])
    if _Y_FIRST in names[0].lower():
        boxes = boxes[:, [1, 0, 3, 2]]
    if boxes.size and np.abs(boxes).max() <= _LARGEST_SHARE:
        boxes = boxes * np.array([size[1], size[0]] * 2, dtype=np.float32)
    people = np.rint(labels) == person
    return boxes[people], scores[people]


def _parts(outputs: Outputs) -> tuple[str, str, str] | None:
    """The names of boxes, labels and scores, by what they say or else by their shapes; None where neither tells."""
    words = (("box",), ("label", "class"), ("score",))
    by_name = [[name for name in outputs if any(word in name.lower() for word in each)] for each in words]
    boxes = [name for name, value in outputs.items() if value.ndim > 1 and value.shape[-1] == 4]
    flat = [name for name, value in outputs.items() if boxes and value.shape == outputs[boxes[0]].shape[:-1]]
    labels = [name for name in flat if np.issubdtype(outputs[name].dtype, np.integer)]
    by_shape = [boxes, labels, [name for name in flat if name not in labels]]
    for found in (by_name, by_shape):
        if all(len(each) == 1 for each in found):
            (box,), (label,), (score,) = found
            values = outputs[box], outputs[label], outputs[score]
            if values[0].size == 4 * values[1].size == 4 * values[2].size:
                return box, label, score
    return None


# Tried in this order: a table of six columns is also one of YOLO's with a single class.
LAYOUTS = {
    "parts": Layout(_fits_parts, _read_parts, person=1, suppressed=True),
    "rows": Layout(_fits_rows, _read_rows, suppressed=True),
    "yolo": Layout(_fits_yolo, _read_yolo),
    "yolox": Layout(_fits_yolox, _read_yolox, values="byte", colours="bgr"),
    "yolo_objectness": Layout(_fits_objectness, _read_objectness),
}


def _first(outputs: Outputs) -> Array:
    return next(iter(outputs.values()))


def _corners(table: Array) -> Array:
    """Centres, widths and heights [N, 4 or more] as corners [N, 4]."""
    half = table[:, 2:4] / 2
    return np.concatenate([table[:, :2] - half, table[:, :2] + half], axis=1)
