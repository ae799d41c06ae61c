"""Runs the TensorFlow.js graphs of MoveNet and CenterNet in plain PyTorch: labels where there are no human ones.

A development tool: it is no part of the package, and the graphs are read from a folder the caller names. A graph is a
pair ``NAME.json`` (nodes and a list of weights) and ``NAME.bin`` (the weights, in the order of that list).

* MoveNet Thunder: one person per crop, 256 x 256 pixels, 17 COCO joints.
* MoveNet multipose: up to six people in a whole image, 256 pixels or more.
* CenterNet (MobileNetV3, 512 x 512): 80 classes, of which only people are kept here.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Node = dict[str, Any]
_TYPES = {"DT_INT32": torch.int32, "DT_FLOAT": torch.float32, "DT_INT64": torch.int64, "DT_BOOL": torch.bool}


class Graph:
    """One TensorFlow.js graph, evaluated node by node on the CPU."""

    def __init__(self, path: str | Path) -> None:
        """Reads `path` (the .json) and the .bin beside it."""
        description = json.loads(Path(path).read_text())
        self._nodes: dict[str, Node] = {node["name"]: node for node in description["modelTopology"]["node"]}
        self._order = _topological_order(self._nodes)
        self._weights = _read_weights(description["weightsManifest"][0]["weights"], Path(path).with_suffix(".bin"))
        used = {_producer(name) for node in self._nodes.values() for name in node.get("input", [])}
        self._output = next(name for name in self._nodes if name not in used)

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        """The graph's output for one image batch [1, H, W, 3]."""
        values: dict[str, Any] = {}
        for name in self._order:
            node = self._nodes[name]
            if node["op"] == "Placeholder":
                values[name] = image
            elif node["op"] == "Const":
                values[name] = self._weights[name]
            else:
                inputs = [_value(values, reference) for reference in node.get("input", []) if reference[0] != "^"]
                values[name] = _OPERATIONS[node["op"]](node, inputs)
        return values[self._output]


class Thunder:
    """MoveNet Thunder on one person's box."""

    def __init__(self, weights: str | Path) -> None:
        self._graph = Graph(Path(weights) / "movenet-thunder.json")

    def __call__(self, image: NDArray[np.uint8], box: NDArray[np.float64], margin: float = 1.35) -> NDArray[np.float64]:
        """Joints [17, 3] (x, y, score) in pixels of the RGB image [H, W, 3] for a box (x1, y1, x2, y2).

        The crop is a square of `margin` times the box's longer side about its centre, black where it leaves the image.
        """
        side = margin * max(box[2] - box[0], box[3] - box[1])
        scale = 256 / side
        corner = (box[:2] + box[2:]) / 2 - side / 2
        # Source pixel s (its centre) lies at s + 0.5 on the continuous axis; so does the crop's.
        offset = (0.5 - corner) * scale - 0.5
        matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])
        method = cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR
        crop = cv2.warpAffine(image, matrix, (256, 256), flags=method)
        rows = self._graph(torch.from_numpy(crop.astype(np.int32))[None]).reshape(17, 3).double().numpy()
        return np.column_stack([rows[:, 1::-1] * side + corner - 0.5, rows[:, 2]])


class PersonDetector:
    """CenterNet's people."""

    def __init__(self, weights: str | Path) -> None:
        self._graph = Graph(Path(weights) / "centernet.json")

    def __call__(self, image: NDArray[np.uint8], threshold: float = 0.1) -> NDArray[np.float64]:
        """People [N, 5] (x1, y1, x2, y2, score) with a score of at least `threshold` in an RGB image [H, W, 3]."""
        height, width = image.shape[:2]
        side = max(height, width)
        square = np.zeros((side, side, 3), np.uint8)
        square[:height, :width] = image
        resized = cv2.resize(square, (512, 512), interpolation=cv2.INTER_AREA if side > 512 else cv2.INTER_LINEAR)
        rows = self._graph(torch.from_numpy(resized.astype(np.float32))[None])[0].double().numpy()
        people = rows[(rows[:, 5] == 0) & (rows[:, 4] >= threshold)][:, :5]
        people[:, :4] = (people[:, :4] * side / 512).clip(0, [width, height, width, height])
        return people[(people[:, 2] - people[:, 0] > 2) & (people[:, 3] - people[:, 1] > 2)]


class Multipose:
    """MoveNet multipose: boxes and joints of up to six people in one pass."""

    def __init__(self, weights: str | Path, long_side: int = 256) -> None:
        self._graph = Graph(Path(weights) / "movenet-multipose.json")
        self._long_side = long_side

    def __call__(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """People [6, 5] (x1, y1, x2, y2, score) and their joints [6, 17, 3] (x, y, score) in pixels of the image."""
        height, width = image.shape[:2]
        scale = self._long_side / max(height, width)
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        # The graph wants sides that are multiples of 32: the rest is black.
        rows, columns = (math.ceil(size / 32) * 32 for size in small.shape[:2])
        canvas = np.zeros((rows, columns, 3), np.int32)
        canvas[: small.shape[0], : small.shape[1]] = small
        output = self._graph(torch.from_numpy(canvas)[None])[0].double().numpy()
        unit = np.array([columns, rows]) / scale
        joints = output[:, :51].reshape(-1, 17, 3)
        joints = np.concatenate([joints[:, :, 1::-1] * unit - 0.5, joints[:, :, 2:]], axis=2)
        boxes = np.column_stack([output[:, [52, 51]] * unit, output[:, [54, 53]] * unit, output[:, 55]])
        return boxes, joints


def _read_weights(entries: list[dict[str, Any]], path: Path) -> dict[str, Tensor]:
    data, offset, weights = path.read_bytes(), 0, {}
    for entry in entries:
        count = math.prod(entry["shape"])
        stored = entry.get("quantization", entry)["dtype"]
        array = np.frombuffer(data, {"bool": "uint8"}.get(stored, stored), count, offset)
        offset += array.nbytes
        if "quantization" in entry:
            array = array.astype(np.float32)
            if stored != "float16":
                array = array * entry["quantization"]["scale"] + entry["quantization"]["min"]
        weights[entry["name"]] = torch.from_numpy(array.copy().reshape(entry["shape"]))
    return weights


def _producer(reference: str) -> str:
    return reference.split(":", maxsplit=1)[0].lstrip("^")


def _value(values: dict[str, Any], reference: str) -> Any:
    name, _, index = reference.partition(":")
    value = values[name]
    return value[int(index or 0)] if isinstance(value, list) else value


def _topological_order(nodes: dict[str, Node]) -> list[str]:
    order: list[str] = []
    done: set[str] = set()
    for start in nodes:
        stack = [start]
        while stack:
            name = stack.pop()
            if name in done:
                continue
            waiting = [n for n in map(_producer, nodes[name].get("input", [])) if n not in done]
            if waiting:
                stack += [name, *waiting]
            else:
                done.add(name)
                order.append(name)
    return order


def _attribute(node: Node, key: str, default: Any = None) -> Any:
    """The value of an attribute, out of the protocol buffer's JSON form."""
    value = node.get("attr", {}).get(key)
    if value is None:
        return default
    decode: dict[str, Callable[[Any], Any]] = {
        "s": lambda text: base64.b64decode(text).decode(),
        "i": int,
        "f": float,
        "b": bool,
        "type": str,
    }
    if "list" in value:
        return [decode[kind](item) for kind, items in value["list"].items() for item in items]
    kind, item = next(iter(value.items()))
    return decode[kind](item)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _convolution(node: Node, inputs: list[Any]) -> Tensor:
    image, weight = inputs[0].permute(0, 3, 1, 2), inputs[1]
    stride = _attribute(node, "strides")[1:3]
    if "epthwise" in node["op"]:
        height, width, channels, multiplier = weight.shape
        weight, groups = weight.permute(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width), channels
    else:
        weight, groups = weight.permute(3, 2, 0, 1), 1
    if _attribute(node, "padding") == "SAME":
        rows = _same_padding(image.shape[2], weight.shape[2], stride[0])
        columns = _same_padding(image.shape[3], weight.shape[3], stride[1])
        image = F.pad(image, (*columns, *rows))
    result = F.conv2d(image, weight, None, stride, 0, 1, groups).permute(0, 2, 3, 1)
    for name in _attribute(node, "fused_ops", []):
        result = result + inputs[2] if name == "BiasAdd" else _ACTIVATIONS[name](result)
    return result


def _max_pool(node: Node, inputs: list[Any]) -> Tensor:
    kernel, stride = _attribute(node, "ksize")[1:3], _attribute(node, "strides")[1:3]
    image = inputs[0].permute(0, 3, 1, 2)
    if _attribute(node, "padding") == "SAME":
        rows, columns = (_same_padding(image.shape[axis + 2], kernel[axis], stride[axis]) for axis in (0, 1))
        image = F.pad(image, (*columns, *rows), value=-math.inf)
    return F.max_pool2d(image, kernel, stride).permute(0, 2, 3, 1)


def _resize_bilinear(node: Node, inputs: list[Any]) -> Tensor:
    image, (rows, columns) = inputs[0].permute(0, 3, 1, 2), inputs[1].tolist()
    if _attribute(node, "half_pixel_centers"):
        return F.interpolate(image, (rows, columns), mode="bilinear").permute(0, 2, 3, 1)
    # TensorFlow's first rule: source = destination * (size in / size out), the last row and column repeated.
    for axis, size in ((2, rows), (3, columns)):
        position = torch.arange(size) * (image.shape[axis] / size)
        low = position.floor().long()
        high = (low + 1).clamp(max=image.shape[axis] - 1)
        weight = (position - low).reshape([-1 if a == axis else 1 for a in range(4)])
        image = torch.lerp(image.index_select(axis, low), image.index_select(axis, high), weight)
    return image.permute(0, 2, 3, 1)


def _strided_slice(node: Node, inputs: list[Any]) -> Tensor:
    begin, end, step = (tensor.tolist() for tensor in inputs[1:4])
    masks = {
        name: _attribute(node, f"{name}_mask", 0) for name in ("begin", "end", "shrink_axis", "new_axis", "ellipsis")
    }
    index: list[Any] = []
    for axis in range(len(begin)):
        bit = 1 << axis
        if masks["ellipsis"] & bit:
            index.append(Ellipsis)
        elif masks["new_axis"] & bit:
            index.append(None)
        elif masks["shrink_axis"] & bit:
            index.append(begin[axis])
        else:
            first = None if masks["begin"] & bit else begin[axis]
            last = None if masks["end"] & bit else end[axis]
            index.append(slice(first, last, step[axis]))
    return inputs[0][tuple(index)]


def _squeeze(node: Node, inputs: list[Any]) -> Tensor:
    axes = _attribute(node, "squeeze_dims") or [axis for axis, size in enumerate(inputs[0].shape) if size == 1]
    return inputs[0].squeeze(tuple(axes))


def _reduce(function: Callable[..., Tensor]) -> Callable[[Node, list[Any]], Tensor]:
    def reduce(node: Node, inputs: list[Any]) -> Tensor:
        axes = inputs[1].reshape(-1).tolist()
        return function(inputs[0], dim=axes, keepdim=bool(_attribute(node, "keep_dims")))

    return reduce


def _select(node: Node, inputs: list[Any]) -> Tensor:
    condition = inputs[0].reshape(inputs[0].shape + (1,) * (inputs[1].dim() - inputs[0].dim()))
    return torch.where(condition, inputs[1], inputs[2])


def _top_k(node: Node, inputs: list[Any]) -> list[Tensor]:
    values, indices = torch.topk(inputs[0], int(inputs[1]))
    return [values, indices.int()]


def _gather(node: Node, inputs: list[Any]) -> Tensor:
    axis = int(inputs[2])
    shape = (*inputs[0].shape[:axis], *inputs[1].shape, *inputs[0].shape[axis + 1 :])
    return inputs[0].index_select(axis, inputs[1].long().reshape(-1)).reshape(shape)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"Relu": torch.relu, "Relu6": F.relu6, "Sigmoid": torch.sigmoid}

_OPERATIONS: dict[str, Callable[[Node, list[Any]], Any]] = {
    **dict.fromkeys(("_FusedConv2D", "FusedDepthwiseConv2dNative", "Conv2D", "DepthwiseConv2dNative"), _convolution),
    **{name: lambda node, x: _ACTIVATIONS[node["op"]](x[0]) for name in _ACTIVATIONS},
    "MaxPool": _max_pool,
    "ResizeBilinear": _resize_bilinear,
    "StridedSlice": _strided_slice,
    "Squeeze": _squeeze,
    "Select": _select,
    "TopKV2": _top_k,
    "GatherV2": _gather,
    "Max": _reduce(torch.amax),
    "Sum": _reduce(torch.sum),
    "Mean": _reduce(torch.mean),
    "GatherNd": lambda node, x: x[0][tuple(x[1].long().unbind(-1))],
    "ArgMax": lambda node, x: x[0].argmax(int(x[1])).int(),
    "Cast": lambda node, x: x[0].to(_TYPES[_attribute(node, "DstT")]),
    "Add": lambda node, x: x[0] + x[1],
    "AddV2": lambda node, x: x[0] + x[1],
    "AddN": lambda node, x: sum(x),
    "Sub": lambda node, x: x[0] - x[1],
    "Mul": lambda node, x: x[0] * x[1],
    "RealDiv": lambda node, x: x[0] / x[1],
    "FloorDiv": lambda node, x: torch.div(x[0], x[1], rounding_mode="floor"),
    "FloorMod": lambda node, x: torch.remainder(x[0], x[1]),
    "Maximum": lambda node, x: torch.maximum(x[0], x[1].to(x[0].dtype)),
    "Minimum": lambda node, x: torch.minimum(x[0], x[1].to(x[0].dtype)),
    "SquaredDifference": lambda node, x: (x[0] - x[1]) ** 2,
    "Sqrt": lambda node, x: x[0].sqrt(),
    "Exp": lambda node, x: x[0].exp(),
    "Abs": lambda node, x: x[0].abs(),
    "Reciprocal": lambda node, x: 1 / x[0],
    "Identity": lambda node, x: x[0],
    "Less": lambda node, x: x[0] < x[1],
    "Greater": lambda node, x: x[0] > x[1],
    "GreaterEqual": lambda node, x: x[0] >= x[1],
    "Equal": lambda node, x: x[0] == x[1],
    "LogicalAnd": lambda node, x: x[0] & x[1],
    "ExpandDims": lambda node, x: x[0].unsqueeze(int(x[1])),
    "Reshape": lambda node, x: x[0].reshape(x[1].reshape(-1).tolist()),
    "Unpack": lambda node, x: list(x[0].unbind(_attribute(node, "axis", 0))),
    "Pack": lambda node, x: torch.stack([torch.as_tensor(item) for item in x], _attribute(node, "axis", 0)),
    "ConcatV2": lambda node, x: torch.cat(x[:-1], int(x[-1])),
    "Split": lambda node, x: list(x[1].chunk(_attribute(node, "num_split"), int(x[0]))),
    "Shape": lambda node, x: torch.tensor(x[0].shape, dtype=torch.int32),
    "Size": lambda node, x: torch.tensor(x[0].numel(), dtype=torch.int32),
    "Range": lambda node, x: torch.arange(int(x[0]), int(x[1]), int(x[2]), dtype=torch.int32),
    "Tile": lambda node, x: x[0].repeat(x[1].tolist()),
    "Fill": lambda node, x: torch.full(x[0].tolist(), x[1].item(), dtype=x[1].dtype),
}
