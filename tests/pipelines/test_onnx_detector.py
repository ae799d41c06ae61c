"""ONNX detectors: how images go in, the layouts of what comes out, and graphs that fit none."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from pyposeext.errors import InputError
from pyposeext.pipelines.detectors import resolve_detector
from pyposeext.pipelines.inputs import InputImage
from pyposeext.pipelines.onnx_detector import OnnxDetector, _fit, _pixels
from pyposeext.pipelines.settings import OnnxSettings
from tests.pipelines.fakes import blob

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from tests.pipelines.onnx_graphs import save_graph  # noqa: E402

CPU = torch.device("cpu")
UINT8, FLOAT, FLOAT16 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
# Fitted into 64 x 96: 0.5 of the size, 16 pixels of grey at the left and the right.
IMAGE = np.full((128, 128, 3), 100, np.uint8)
# A person at (20, 10, 60, 90) of the image, found twice, and a thing; in pixels of the graph.
CORNERS = np.array([[26, 5, 46, 45], [26, 5, 46.5, 45], [50, 20, 60, 30]], np.float32)
CENTRES = np.array([[36, 25, 20, 40], [36.25, 25, 20.5, 40], [55, 25, 10, 10]], np.float32)
EXPECTED = [20, 10, 60, 90]


# 64 x 96 has so many cells of the strides 8, 16 and 32.
CELLS = 8 * 12 + 4 * 6 + 2 * 3


def raw(channels, boxes=CELLS):
    """[N, channels] of nobody, with the three boxes in the first rows."""
    table = np.zeros((boxes, channels), np.float32)
    table[:, 2:4] = 1
    table[:3, :4] = CENTRES
    return table


def yolo():
    table = raw(4 + 3)
    table[:3, 4:] = [[0.9, 0, 0], [0.8, 0, 0], [0, 0.95, 0]]
    return {"output0": np.ascontiguousarray(table.T[None])}


def yolo_objectness(classes=3):
    table = raw(5 + classes, boxes=3 * CELLS)
    table[:3, 4] = [1.0, 0.9, 1.0]
    table[:2, 5], table[2, 5 + classes - 1] = 0.9, 0.95 if classes > 1 else 0
    return {"output": table[None]}


def yolox():
    # The person's centre (36, 25) lies in row 3, column 4 of stride 8.
    table = np.zeros((CELLS, 5 + 3), np.float32)
    cells = {3 * 12 + 4: (4, 3, 8, 0), 96 + 1 * 6 + 2: (2, 1, 16, 1), 120 + 1: (1, 0, 32, 2)}
    scores = ([1.0, 0.9, 0, 0], [0.9, 0.9, 0, 0], [1.0, 0, 0, 0.95])
    for place, (column, row, stride, box) in cells.items():
        x, y, width, height = CENTRES[box]
        table[place] = [x / stride - column, y / stride - row, *np.log([width / stride, height / stride]), *scores[box]]
    return {"output": table[None]}


def rows(batched=True):
    table = np.zeros((300, 6), np.float32)
    table[:3] = np.column_stack([CORNERS, [0.9, 0.0, 0.95], [0, 0, 1]])
    return {"output0": table[None] if batched else table}


def torchvision(names=("boxes", "labels", "scores")):
    values = CORNERS, np.array([1, 1, 3]), np.array([0.9, 0.0, 0.95], np.float32)
    return dict(zip(names, values, strict=True))


def shares():
    outputs = torchvision(("bboxes", "labels", "scores"))
    outputs["bboxes"] = outputs["bboxes"] / np.array([96, 64, 96, 64], np.float32)
    return {name: value[None] for name, value in outputs.items()}


def tensorflow():
    boxes = (CORNERS / np.array([96, 64, 96, 64], np.float32))[:, [1, 0, 3, 2]]
    return {
        "detection_boxes": boxes[None],
        "detection_classes": np.array([[1, 1, 3]], np.float32),
        "detection_scores": np.array([[0.9, 0.0, 0.95]], np.float32),
        "num_detections": np.array([3], np.float32),
    }


def tensorflow2():
    outputs = {
        "detection_anchor_indices": np.zeros((1, 3), np.float32),
        **tensorflow(),
        "detection_multiclass_scores": np.zeros((1, 3, 91), np.float32),
        "raw_detection_boxes": np.zeros((1, 1917, 4), np.float32),
        "raw_detection_scores": np.zeros((1, 1917, 91), np.float32),
    }
    return dict(sorted(outputs.items()))


def dets():
    table = np.column_stack([CORNERS, np.array([0.9, 0.0, 0.95], np.float32)])
    return {"dets": table[None], "labels": np.array([[0, 0, 2]])}


def rows_with(columns):
    table = np.zeros((300, columns), np.float32)
    table[:, :6], table[:3, 6:] = rows(batched=False)["output0"], 7
    return {"output0": table[None], "output1": np.zeros((1, 32, 16, 24), np.float32)}


# RT-DETR stretches: (20, 10, 60, 90) of 128 x 128 as shares.
SHARES = np.array([[40 / 128, 50 / 128, 40 / 128, 80 / 128], [0.5, 0.5, 0.1, 0.1], [0.2, 0.3, 0.1, 0.1]], np.float32)


def rtdetr():
    table = np.zeros((300, 4 + 80), np.float32)
    table[:, 2:4] = 0.1
    table[:3, :4] = SHARES
    table[0, 4], table[2, 6] = 0.9, 0.95
    return {"output0": table[None]}


def rtdetr_logits():
    table = rtdetr()["output0"]
    probabilities = table[..., 4:].clip(1e-6, 1 - 1e-6)
    return {"logits": np.log(probabilities / (1 - probabilities)), "pred_boxes": np.ascontiguousarray(table[..., :4])}


def detr(classes=92):
    boxes, logits = np.full((1, 100, 4), 0.1, np.float32), np.zeros((1, 100, classes), np.float32)
    # Fitted, not stretched: pixels of the graph by its size.
    boxes[0, :3] = CENTRES / np.array([96, 64, 96, 64], np.float32)
    logits[..., -1] = 20
    # 0.9 of the softmax is class 1, the rest "no object"; the others count nothing.
    logits[0, 0, -1], logits[0, 0, 1], logits[0, 2, 3] = 20 - np.log(9), 20, 40
    return {"logits": logits, "pred_boxes": boxes}


LAYOUTS = {
    "dets": (dets, "dets"),
    "rows with joints": (lambda: rows_with(57), "rows"),
    "rows with masks": (lambda: rows_with(38), "rows"),
    "tensorflow 2": (tensorflow2, "parts"),
    "rtdetr": (rtdetr, "rtdetr"),
    "rtdetr's logits": (rtdetr_logits, "rtdetr"),
    "detr": (detr, "detr"),
    "yolo with masks": (lambda: {**yolo(), "output1": np.zeros((1, 32, 16, 24), np.float32)}, "yolo"),
    "yolo": (yolo, "yolo"),
    "yolo_objectness": (yolo_objectness, "yolo_objectness"),
    "one class": (lambda: yolo_objectness(1), "yolo_objectness"),
    "yolox": (yolox, "yolox"),
    "rows": (rows, "rows"),
    "rows without images": (lambda: rows(False), "rows"),
    "torchvision": (torchvision, "parts"),
    "torchvision without names": (lambda: torchvision(("2774", "2770", "2769")), "parts"),
    "shares": (shares, "parts"),
    "tensorflow": (tensorflow, "parts"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_found_and_read(tmp_path, name):
    make, layout = LAYOUTS[name]
    path = save_graph(tmp_path / "a.onnx", make())
    for chosen in ("auto", layout):
        detector = OnnxDetector(path, CPU, OnnxSettings(layout=chosen))
        assert detector.source["layout"] == layout
        found = detector.detect([InputImage(IMAGE)])[0]
        np.testing.assert_allclose(found.boxes, [EXPECTED], atol=1e-4)
        assert found.scores.tolist() == pytest.approx([0.9])


def ssd():
    return {"scores": np.zeros((1, 8732, 81), np.float32), "boxes": np.zeros((1, 8732, 4), np.float32)}


def row_shares():
    outputs = rows()
    outputs["output0"][..., :4] /= 100
    return outputs


@pytest.mark.parametrize(
    "outputs",
    [
        ssd(),
        {"logits": np.zeros((1, 100, 91), np.float32), "pred_boxes": np.full((1, 100, 4), 0.5, np.float32)},
        {"a": np.zeros((1, 100, 92), np.float32), "b": np.full((1, 100, 4), 0.5, np.float32)},
        {"output0": np.full((1, 300, 84), 9, np.float32)},
        {"output0": np.zeros((1, 84, 300), np.float32)},
        {"output0": np.zeros((1, 2000, 84), np.float32)},
        {"output0": np.zeros((1, 300, 7), np.float32)},
        rows_with(60),
        row_shares(),
        {**yolo(), "more": np.zeros((1, CELLS, 4), np.float32)},
    ],
)
def test_nothing_is_guessed(tmp_path, outputs):
    sentence = r"without doubt of one of the layouts dets, parts, .*--estimator\.onnx\.layout"
    with pytest.raises(InputError, match=sentence):
        OnnxDetector(save_graph(tmp_path / "a.onnx", outputs), CPU, OnnxSettings())


def test_a_layout_that_is_named_is_taken_where_it_can_be_read(tmp_path):
    def found(outputs, **settings):
        path = save_graph(tmp_path / "a.onnx", outputs)
        return OnnxDetector(path, CPU, OnnxSettings(**settings)).detect([InputImage(IMAGE)])[0]

    np.testing.assert_allclose(found(rows_with(60), layout="rows").boxes, [EXPECTED], atol=1e-4)
    table = np.ascontiguousarray(raw(7, boxes=200).T[None])
    table[0, 4, 0] = 0.9
    np.testing.assert_allclose(found({"output0": table}, layout="yolo").boxes, [EXPECTED], atol=1e-4)
    np.testing.assert_allclose(found(detr(50), layout="detr").boxes, [EXPECTED], atol=1e-4)
    table = np.zeros((1, 300, 6), np.float32)
    table[0, :3] = np.column_stack([SHARES, [0.9, 0, 0.95], [0, 0, 1]])
    np.testing.assert_allclose(found({"output0": table}, layout="rtdetr_rows").boxes, [EXPECTED], atol=1e-4)
    # Deformable DETR: COCO's numbers without "no object".
    logits = np.full((1, 300, 91), -20, np.float32)
    logits[0, 0, 1] = np.log(9)
    outputs = {"logits": logits, "pred_boxes": rtdetr_logits()["pred_boxes"]}
    deformable = found(outputs, layout="rtdetr", person=1)
    np.testing.assert_allclose(deformable.boxes, [EXPECTED], atol=1e-4)
    assert deformable.scores.tolist() == pytest.approx([0.9])


def test_the_cells_are_those_of_the_size_that_an_open_graph_is_run_at(tmp_path):
    table = np.full((1, 3 * (64 + 16 + 4), 85), 50, np.float32)
    path = save_graph(tmp_path / "a.onnx", {"output": table}, (1, 3, "height", "width"))
    assert OnnxDetector(path, CPU, OnnxSettings(size=64)).source["layout"] == "yolo_objectness"
    with pytest.raises(InputError, match="without doubt"):
        OnnxDetector(path, CPU, OnnxSettings(size=96))


def test_another_class_may_be_the_person(tmp_path):
    path = save_graph(tmp_path / "a.onnx", yolo())
    found = OnnxDetector(path, CPU, OnnxSettings(person=1)).detect([InputImage(IMAGE)])[0]
    np.testing.assert_allclose(found.boxes, [[68, 40, 88, 60]], atol=1e-4)
    loose = OnnxDetector(path, CPU, OnnxSettings(iou_threshold=1.0)).detect([InputImage(IMAGE)])[0]
    assert loose.scores.tolist() == pytest.approx([0.9, 0.8])


def row_with_mean():
    return {"output0": np.array([[[10, 10, 50, 50, 0, 0]]], np.float32)}


@pytest.mark.parametrize(
    ("kind", "shape", "settings", "mean"),
    [
        (FLOAT, (1, 3, 64, 64), {}, 0.2),
        (FLOAT, (1, 64, 64, 3), {}, 0.2),
        (FLOAT, (3, 64, 64), {}, 0.2),
        (FLOAT16, (1, 3, 64, 64), {}, 0.2),
        (FLOAT, ("n", 3, "height", "width"), {"size": 64}, 0.2),
        (FLOAT, (1, 3, 64, 64), {"values": "imagenet"}, np.mean((0.2 - np.array([0.485, 0.456, 0.406])) / 0.225)),
    ],
)
def test_images_go_in_as_the_graph_takes_them(tmp_path, kind, shape, settings, mean):
    path = save_graph(tmp_path / "a.onnx", row_with_mean(), shape, kind, mean_in=(0, 0, 4))
    detector = OnnxDetector(path, CPU, OnnxSettings(**settings))
    image = np.full((128, 128, 3), 51, np.uint8)
    outputs = detector._run(_fit(image, (64, 64))[0], detector._values, detector._colours)
    assert outputs["output0"][0, 0, 4] == pytest.approx(mean, abs=0.02)


@pytest.mark.parametrize(("kind", "values"), [(UINT8, "auto"), (UINT8, "imagenet"), (FLOAT, "byte")])
def test_bytes_stay_bytes(tmp_path, kind, values):
    path = save_graph(tmp_path / "a.onnx", row_with_mean(), (1, 64, 64, 3), kind, mean_in=(0, 0, 4))
    detector = OnnxDetector(path, CPU, OnnxSettings(values=values))
    outputs = detector._run(np.full((64, 64, 3), 51, np.uint8), detector._values, detector._colours)
    assert outputs["output0"][0, 0, 4] == pytest.approx(51)


def test_values_and_colours():
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0] = 255
    assert _pixels(image, "unit", "rgb")[0, 0].tolist() == [1, 0, 0]
    assert _pixels(image, "byte", "bgr")[0, 0].tolist() == [0, 0, 255]
    expected = [-0.406 / 0.225, -0.456 / 0.224, 0.515 / 0.229]
    np.testing.assert_allclose(_pixels(image, "imagenet", "bgr")[0, 0], expected, rtol=1e-6)


def test_yolox_takes_bytes_from_blue_to_red_where_nothing_else_is_said(tmp_path):
    path = save_graph(tmp_path / "a.onnx", yolox())
    for settings, expected in ((OnnxSettings(), ("byte", "bgr")), (OnnxSettings(values="unit"), ("unit", "bgr"))):
        source = OnnxDetector(path, CPU, settings).source
        assert (source["values"], source["colours"]) == expected
    # Exported with its decoding, the graph looks like others of the family.
    table = yolox()["output"]
    table[0, :, :2] *= 100
    path = save_graph(tmp_path / "b.onnx", {"output": table})
    source = OnnxDetector(path, CPU, OnnxSettings()).source
    assert (source["layout"], source["values"], source["colours"]) == ("yolo_objectness", "unit", "rgb")


@pytest.mark.parametrize(("make", "values", "colours"), [(dets, "imagenet", "bgr"), (detr, "imagenet", "rgb")])
def test_other_families_take_imagenets_colours(tmp_path, make, values, colours):
    source = OnnxDetector(save_graph(tmp_path / "a.onnx", make()), CPU, OnnxSettings()).source
    assert (source["values"], source["colours"]) == (values, colours)


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (50, 400), (1, 1), (1, 999)])
def test_fitted_images_show_their_place(size):
    place = (size[1] * 0.7, size[0] * 0.4)
    fitted, ratio, corner = _fit(blob([place], size, width=6), (256, 192))
    assert fitted.shape == (256, 192, 3)
    inner = np.rint(np.array(size[::-1]) * ratio).astype(int)
    grey = np.ones((256, 192), bool)
    left, top = corner.astype(int)
    grey[top : top + inner[1], left : left + inner[0]] = False
    assert (fitted[grey] == 114).all()
    assert max(inner / [192, 256]) == 1
    if min(size) > 100:
        cells = np.where(grey, 0, fitted[..., 0].astype(float)) ** 4
        rows, columns = np.mgrid[:256, :192]
        seen = np.array([(columns * cells).sum(), (rows * cells).sum()]) / cells.sum()
        np.testing.assert_allclose(seen, (np.array(place) + 0.5) * ratio + corner - 0.5, atol=0.3)


def test_boxes_are_clipped_to_the_image(tmp_path):
    outputs = {"output0": np.array([[[0, -9, 200, 70, 0.9, 0]]], np.float32)}
    found = OnnxDetector(save_graph(tmp_path / "a.onnx", outputs), CPU, OnnxSettings()).detect([InputImage(IMAGE)])[0]
    np.testing.assert_allclose(found.boxes, [[0, 0, 128, 128]])


def test_nobody_is_nobody(tmp_path):
    for outputs in (
        {"output0": np.zeros((1, 0, 6), np.float32)},
        {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64), "scores": np.zeros(0, np.float32)},
        {"output0": np.full((1, 7, CELLS), np.nan, np.float32)},
    ):
        detector = OnnxDetector(save_graph(tmp_path / "a.onnx", outputs), CPU, OnnxSettings())
        assert len(detector.detect([InputImage(IMAGE)])[0].boxes) == 0


@pytest.mark.parametrize(
    ("outputs", "arguments", "sentence"),
    [
        ({"a": np.zeros((1, 1000), np.float32)}, {}, r"one of the layouts dets, parts, .* but has a \[1, 1000\]"),
        ({"a": np.zeros((1, 5, 5), np.float32)}, {}, "one of the layouts"),
        (rows(), {"shape": (1, 1, 64, 64)}, r"must take one image as .* takes tensor\(float\) \[1, 1, 64, 64\]"),
        (rows(), {"shape": (8, 3, 64, 64)}, "must take one image"),
        (rows(), {"shape": (1, 12)}, "must take one image"),
        (rows(), {"inputs": 2}, "must take one image"),
        (rows(), {"kind": onnx.TensorProto.INT64}, "must take one image"),
    ],
)
def test_graphs_that_are_no_detectors(tmp_path, outputs, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        OnnxDetector(save_graph(tmp_path / "a.onnx", outputs, **arguments), CPU, OnnxSettings())


def test_a_layout_that_the_graph_does_not_have(tmp_path):
    with pytest.raises(InputError, match="must have outputs of the layout yolo, but has output0"):
        OnnxDetector(save_graph(tmp_path / "a.onnx", rows()), CPU, OnnxSettings(layout="yolo"))


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.onnx").write_text("no graph")
    for name, sentence in (("text", "is not an ONNX graph that onnxruntime can run"), ("none", "does not exist")):
        with pytest.raises(InputError, match=sentence):
            resolve_detector(tmp_path / f"{name}.onnx", CPU)


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"needs onnxruntime: install it with `pip install pyposeext\[onnx\]`"):
        resolve_detector(tmp_path / "a.onnx", CPU)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"iou_threshold": 2}, "iou_threshold"),
        ({"size": 8}, "size"),
        ({"layout": "yolo9"}, "layout must be one of 'auto', 'yolo', .* got 'yolo9'"),
        ({"values": "bytes"}, "values must be one of 'auto', 'unit', .* got 'bytes'"),
        ({"colours": "grey"}, "colours must be one of 'auto', 'rgb', 'bgr', got 'grey'"),
        ({"person": -1}, "person must be the number of a class, 0 or more, got -1"),
    ],
)
def test_wrong_settings(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        OnnxSettings(**arguments)


def test_large_images_are_averaged(tmp_path):
    # Stripes of one pixel: bilinear steps would show them as dark or bright.
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[::2] = 255
    assert np.abs(_fit(stripes, (64, 64))[0].astype(int) - 127).max() <= 1
