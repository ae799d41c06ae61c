"""The layouts that ONNX detectors give their boxes in, each as its family publishes it.

Coordinates are pixels of the graph's input. Every reader gives the boxes [N, 4] (x1, y1, x2, y2) and scores [N] of one
class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyposeext.errors import InputError

Array = NDArray[Any]
Outputs = Mapping[str, Array]
Found = tuple[Array, Array]
Size = tuple[int, int]

# The grids that detectors have their boxes on: YOLOX, YOLOv5 and later, and their larger and finer relatives.
_STRIDES = (8, 16, 32)
_GRIDS = (_STRIDES, (*_STRIDES, 64), (4, *_STRIDES))
# So many boxes have YOLOv5 and YOLOv7 for each cell, later families one.
_ANCHORS = 3
# Graphs that suppress boxes themselves give a few hundred rows, those that do not give thousands.
_MOST_ROWS = 1000
# Rows of a box, its score and its class; with COCO's 17 joints or 32 coefficients of a mask behind them.
_ROW_LENGTHS = (6, 6 + 3 * 17, 6 + 32)
# What the TensorFlow Object Detection API calls its boxes (y1, x1, y2, x2), classes and scores.
_TENSORFLOW = ("detection_boxes", "detection_classes", "detection_scores")
# Corners up to this are shares of the image: nobody is a pixel large.
_LARGEST_SHARE = 1.5
# Columns of logits: DETR has COCO's numbers up to 90, from 0, and "no object", RT-DETR the 80 classes themselves.
_DETR_CLASSES, _RTDETR_CLASSES = 92, 80


class Layout(NamedTuple):
    """One convention.

    Attributes:
        fits: whether outputs, by name, follow it; given the class that is wanted, the (height, width) of the input, and
            whether somebody said that it is this layout: then it is enough that it can be read, else it must be sure.
        read: the boxes and scores of that class.
        person: the class of people that is usual.
        suppressed: whether the graph has already dropped overlapping boxes, or gives one box for each object.
        values, colours: of the pixels that are usual, as in `OnnxSettings`.
        stretched: whether images fill the input whatever their proportions.
    """

    fits: Callable[[Outputs, int, Size, bool], bool]
    read: Callable[[Outputs, int, Size], Found]
    person: int = 0
    suppressed: bool = False
    values: str = "unit"
    colours: str = "rgb"
    stretched: bool = False


def _table(outputs: Outputs) -> Array | None:
    """The one output that is a table [1, R, C] or [R, C], as [R, C]; None where none or more than one is.

    Prototypes of masks and the grids of YOLOv5 have more axes and may stand beside it.
    """
    tables = [value for value in outputs.values() if value.ndim <= 3]
    if len(tables) != 1 or tables[0].ndim < 2 or (tables[0].ndim == 3 and tables[0].shape[0] != 1):
        return None
    table: Array = tables[0].reshape(tables[0].shape[-2:])
    return table


def _read_table(outputs: Outputs) -> Array:
    table = _table(outputs)
    if table is None:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
        raise InputError(f"the detector's outputs are no longer of the shapes they had at first: {shapes}")
    return table


def _on_grid(count: int, size: Size, per_cell: Sequence[int]) -> bool:
    """Whether there are so many boxes as cells, or a multiple of them."""
    cells = [sum((size[0] // stride) * (size[1] // stride) for stride in strides) for strides in _GRIDS]
    return any(count == each * times for each in cells for times in per_cell)


def _fits_yolo(outputs: Outputs, person: int, size: Size, told: bool) -> bool:
    table = _table(outputs)
    if table is None or not 4 + person < table.shape[0] < table.shape[1]:
        return False
    return told or _on_grid(table.shape[1], size, (1,))


def _read_yolo(outputs: Outputs, person: int, size: Size) -> Found:
    table = _read_table(outputs).T
    return _corners(table), table[:, 4 + person]


def _fits_objectness(outputs: Outputs, person: int, size: Size, told: bool) -> bool:
    table = _table(outputs)
    if table is None or not 5 + person < table.shape[1] < table.shape[0]:
        return False
    return told or _on_grid(table.shape[0], size, (1, _ANCHORS))


def _read_objectness(outputs: Outputs, person: int, size: Size) -> Found:
    table = _read_table(outputs)
    return _corners(table), table[:, 4] * table[:, 5 + person]


def _fits_yolox(outputs: Outputs, person: int, size: Size, told: bool) -> bool:
    table = _table(outputs)
    if table is None or not _fits_objectness(outputs, person, size, told) or len(table) != len(_cells(size)):
        return False
    # Centres in pixels reach over the whole image, offsets from the cells do not.
    return bool(np.abs(table[:, :2]).max() < max(size) / 4)


def _read_yolox(outputs: Outputs, person: int, size: Size) -> Found:
    table, cells = _read_table(outputs), _cells(size)
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


def _fits_rows(outputs: Outputs, person: int, size: Size, told: bool) -> bool:
    table = _table(outputs)
    if table is None or table.shape[1] < 6 or len(table) > _MOST_ROWS:
        return False
    # Boxes within a pixel are shares, which no convention of rows is sure about: RT-DETR has centres there.
    sure = table.shape[1] in _ROW_LENGTHS and not _are_shares(table[:, :4])
    return told or (sure and not _on_grid(len(table), size, (1, _ANCHORS)))


def _read_rows(outputs: Outputs, person: int, size: Size) -> Found:
    table = _read_table(outputs)
    table = table[np.rint(table[:, 5]) == person]
    return table[:, :4], table[:, 4]


def _fits_rtdetr_rows(outputs: Outputs, person: int, size: Size, told: bool) -> bool:
    # From corners as shares nothing tells them apart.
    return told and _fits_rows(outputs, person, size, told)


def _read_rtdetr_rows(outputs: Outputs, person: int, size: Size) -> Found:
    boxes, scores = _read_rows(outputs, person, size)
    return _corners(_in_pixels(boxes, size)), scores


def _are_shares(boxes: Array) -> bool:
    """Whether coordinates are shares of the image; boxes of nothing but zeros say nothing."""
    return bool(boxes.size and boxes.any() and np.abs(boxes).max() <= _LARGEST_SHARE)


def _fits_dets(outputs: Outputs, person: int, size: Size, told: bool) -> bool:
    if not {"dets", "labels"} <= set(outputs):
        return False
    boxes, labels = outputs["dets"].shape, outputs["labels"].shape
    return len(boxes) in (2, 3) and boxes[-1] == 5 and (len(boxes) == 2 or boxes[0] == 1) and labels == boxes[:-1]


def _read_dets(outputs: Outputs, person: int, size: Size) -> Found:
    table = outputs["dets"].reshape(-1, 5)[np.rint(outputs["labels"].reshape(-1)) == person]
    return table[:, :4], table[:, 4]


def _queries(outputs: Outputs, person: int) -> tuple[Array, Array] | None:
    """Boxes [N, 4] and logits [N, C] of a transformer's queries, by the names that they are exported with."""
    boxes = outputs.get("pred_boxes")
    logits = outputs.get("logits", outputs.get("pred_logits"))
    if boxes is None or logits is None or boxes.ndim != 3 or logits.ndim != 3:
        return None
    if boxes.shape != (1, logits.shape[1], 4) or logits.shape[0] != 1 or logits.shape[2] <= person:
        return None
    return boxes[0], logits[0].astype(np.float32)


def _fits_detr(outputs: Outputs, person: int, size: Size, told: bool) -> bool:
    queries = _queries(outputs, person)
    return queries is not None and (told or queries[1].shape[1] == _DETR_CLASSES)


def _read_detr(outputs: Outputs, person: int, size: Size) -> Found:
    queries = _queries(outputs, person)
    if queries is None:
        return _nobody()
    boxes, logits = queries
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return _corners(_in_pixels(boxes, size)), powers[:, person] / powers.sum(axis=1)


def _fits_rtdetr(outputs: Outputs, person: int, size: Size, told: bool) -> bool:
    queries = _queries(outputs, person)
    if queries is not None:
        return told or queries[1].shape[1] == _RTDETR_CLASSES
    table = _table(outputs)
    if table is None or table.shape[1] <= 4 + person or len(table) > _MOST_ROWS:
        return False
    # Shares and probabilities, neither on a grid nor with the number of columns of rows.
    sure = table.shape[1] not in _ROW_LENGTHS and _are_shares(table[:, :4])
    sure = sure and not _on_grid(len(table), size, (1, _ANCHORS))
    return told or (sure and bool((table >= 0).all() and (table <= 1).all()))


def _read_rtdetr(outputs: Outputs, person: int, size: Size) -> Found:
    queries = _queries(outputs, person)
    if queries is not None:
        boxes, logits = queries
        scores = 1 / (1 + np.exp(-logits[:, person].clip(-80, 80)))
    else:
        table = _read_table(outputs)
        boxes, scores = table[:, :4], table[:, 4 + person]
    return _corners(_in_pixels(boxes, size)), scores


def _in_pixels(boxes: Array, size: Size) -> Array:
    """Shares of the image as pixels of the graph's input."""
    return boxes * np.array([size[1], size[0]] * 2, dtype=np.float32)


def _nobody() -> Found:
    return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)


def _fits_parts(outputs: Outputs, person: int, size: Size, told: bool) -> bool:
    return _parts(outputs) is not None


def _read_parts(outputs: Outputs, person: int, size: Size) -> Found:
    names = _parts(outputs)
    if names is None:  # not the shapes of the image that the layout was found by
        return _nobody()
    boxes, labels, scores = outputs[names[0]].reshape(-1, 4), *(outputs[name].reshape(-1) for name in names[1:])
    if _TENSORFLOW[0] in names[0].lower():
        boxes = boxes[:, [1, 0, 3, 2]]
    if boxes.size and np.abs(boxes).max() <= _LARGEST_SHARE:
        boxes = _in_pixels(boxes, size)
    people = np.rint(labels) == person
    return boxes[people], scores[people]


def _parts(outputs: Outputs) -> tuple[str, str, str] | None:
    """The names of boxes, labels and scores, by what they say or else by their shapes; None where neither tells.

    TensorFlow's graphs have more outputs whose names hold the same words (raw_detection_boxes).
    """
    exact = [[name for name in outputs if name == wanted] for wanted in _TENSORFLOW]
    words = (("box",), ("label", "class"), ("score",))
    by_name = [[name for name in outputs if any(word in name.lower() for word in each)] for each in words]
    boxes = [name for name, value in outputs.items() if value.ndim > 1 and value.shape[-1] == 4]
    flat = [name for name, value in outputs.items() if boxes and value.shape == outputs[boxes[0]].shape[:-1]]
    labels = [name for name in flat if np.issubdtype(outputs[name].dtype, np.integer)]
    by_shape = [boxes, labels, [name for name in flat if name not in labels]]
    for found in (exact, by_name, by_shape):
        if all(len(each) == 1 for each in found):
            (box,), (label,), (score,) = found
            values = outputs[box], outputs[label], outputs[score]
            if values[0].size == 4 * values[1].size == 4 * values[2].size:
                return box, label, score
    return None


# Tried in this order, which matters where YOLOX's cells are also those of its decoded relatives.
LAYOUTS = {
    "dets": Layout(_fits_dets, _read_dets, suppressed=True, values="imagenet", colours="bgr"),
    "parts": Layout(_fits_parts, _read_parts, person=1, suppressed=True),
    "detr": Layout(_fits_detr, _read_detr, person=1, suppressed=True, values="imagenet"),
    "rtdetr": Layout(_fits_rtdetr, _read_rtdetr, suppressed=True, stretched=True),
    "rtdetr_rows": Layout(_fits_rtdetr_rows, _read_rtdetr_rows, suppressed=True, stretched=True),
    "rows": Layout(_fits_rows, _read_rows, suppressed=True),
    "yolo": Layout(_fits_yolo, _read_yolo),
    "yolox": Layout(_fits_yolox, _read_yolox, values="byte", colours="bgr"),
    "yolo_objectness": Layout(_fits_objectness, _read_objectness),
}


def _corners(table: Array) -> Array:
    """Centres, widths and heights [N, 4 or more] as corners [N, 4]."""
    half = table[:, 2:4] / 2
    return np.concatenate([table[:, :2] - half, table[:, :2] + half], axis=1)
