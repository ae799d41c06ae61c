"""Tiny ONNX graphs in the layouts of the common detectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("int64"): TensorProto.INT64}


def save_graph(
    path: Path,
    outputs: dict[str, np.ndarray],
    shape=(1, 3, 64, 96),
    kind=TensorProto.FLOAT,
    mean_in: tuple[int, ...] | None = None,
    inputs: int = 1,
) -> Path:
    """A graph that gives these outputs whatever the image is.

    `mean_in` is the place in the first output that the mean of the input's numbers is added to.
    """
    nodes, made = [], []
    for index, (name, value) in enumerate(outputs.items()):
        constant = f"constant{index}" if mean_in is not None and index == 0 else name
        nodes.append(helper.make_node("Constant", [], [constant], value=numpy_helper.from_array(value, constant)))
        made.append(helper.make_tensor_value_info(name, TYPES[value.dtype], list(value.shape)))
    if mean_in is not None:
        name, value = next(iter(outputs.items()))
        place = np.zeros_like(value)
        place[mean_in] = 1
        nodes += [
            helper.make_node("Constant", [], ["place"], value=numpy_helper.from_array(place, "place")),
            helper.make_node("Cast", ["image0"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["numbers"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["place", "mean"], ["added"]),
            helper.make_node("Add", ["constant0", "added"], [name]),
        ]
    takes = [helper.make_tensor_value_info(f"image{index}", kind, list(shape)) for index in range(inputs)]
    graph = helper.make_graph(nodes, "detector", takes, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path
