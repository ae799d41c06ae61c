"""Top-down models and detectors on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pyposeext.cli.main import main
from pyposeext.io.coco import read_coco
from pyposeext.io.images import read_image, write_image
from pyposeext.models import create_model
from pyposeext.models.weights import save_model
from tests.io.videos import make_video

SMALL = {"min_size": 64, "max_size": 96, "proposals": (20, 10), "detections_per_image": 4}
QUIET = ["--progress", "none", "--device", "cpu"]
# A model without training gives its heatmaps no maxima worth the name.
FAINT = ["--tracker.minimum-score", "0", "--tracker.birth-score", "0"]


@pytest.fixture(scope="module")
def pose_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "pose.safetensors"
    save_model(path, create_model("hrnet_w16", input_size=(64, 64), sigma=1.0), "float16")
    return path


@pytest.fixture(scope="module")
def box_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "boxes.safetensors"
    save_model(path, create_model("keypoint_rcnn_efficientnet_lite0_fpn", **SMALL), "float16")
    return path


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "clip.mp4", 5)


@pytest.fixture
def boxes(tmp_path):
    """Detections of the clip's frames 0 to 3, of which frame 2 has none."""
    path = tmp_path / "boxes.json"
    entries = [
        {"image_id": number, "category_id": 1, "bbox": [10 + number, 5, 20, 30], "score": 0.9} for number in (0, 1, 3)
    ]
    path.write_text(json.dumps(entries))
    return path


def sentence_of(capsys, code):
    error = capsys.readouterr().err
    assert code == 2, error
    assert len(error.strip().splitlines()) == 1, error
    return error


def test_track_with_a_file_of_detections(clip, boxes, pose_weights, tmp_path):
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    options = ["--model", "hrnet_w16", "--weights", str(pose_weights), "--detector", str(boxes), *FAINT]
    options += ["--estimator.frames-per-batch", "2", "--estimator.no-flip-test", "--estimator.decoding", "dark"]
    assert main(["track", str(clip), "-o", str(tmp_path / "out"), *options, *QUIET]) == 0
    frames = read_coco(tmp_path / "out" / "clip.coco.json")
    assert [len(frame.poses) for frame in frames] == [1, 1, 0, 1, 0]
    assert [frame.poses.ids.tolist() for frame in frames if len(frame.poses)] == [[0]] * 3
    np.testing.assert_allclose(frames[3].poses.boxes, [[13, 5, 33, 35]])
    record = tomllib.loads((tmp_path / "out" / "run.toml").read_text())
    assert record["model"]["name"] == "hrnet_w16"
    assert record["detector"]["file"] == str(boxes)
    assert len(record["detector"]["sha256"]) == 64
    assert (record["estimator"]["flip_test"], record["estimator"]["decoding"]) == (False, "dark")
    assert record["estimator"]["onnx"]["layout"] == "auto"


def test_track_with_a_model_as_detector(clip, box_weights, pose_weights, tmp_path):
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    arguments = ["track", str(clip), "-o", str(tmp_path / "out"), "--model", str(pose_weights), "--formats", "toml"]
    for detector, name in ((str(box_weights), str(box_weights)), (None, "default.safetensors")):
        chosen = [] if detector is None else ["--detector", detector]
        assert main([*arguments, *chosen, *QUIET]) == 0
        record = tomllib.loads((tmp_path / "out" / "run.toml").read_text())["detector"]
        assert record["name"] == "keypoint_rcnn_efficientnet_lite0_fpn"
        assert record["weights"].endswith(name)
        assert len(record["weights_sha256"]) == 64


def test_predict_images_by_their_names(pose_weights, box_weights, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        write_image(folder / name, np.full((60, 80, 3), 90, np.uint8))
    labels = {
        "images": [{"id": 7, "file_name": "b.png"}, {"id": 8, "file_name": "a.png"}],
        "annotations": [{"image_id": 7, "category_id": 1, "bbox": [10, 10, 20, 30]}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(labels))
    # With an R-CNN too, whose joints it then are.
    for weights in (pose_weights, box_weights):
        options = ["--model", str(weights), "--detector", str(tmp_path / "boxes.json")]
        assert main(["predict", str(folder), *options]) == 0
        content = json.loads(capsys.readouterr().out)
        names = {image["id"]: image["file_name"] for image in content["images"]}
        assert [names[each["image_id"]] for each in content["annotations"]] == ["b.png"]
        assert content["annotations"][0]["bbox"] == [10, 10, 20, 30]
    write_image(folder / "c.png", np.full((60, 80, 3), 90, np.uint8))
    code = main(["predict", str(folder), "-o", str(tmp_path / "out"), *options])
    assert "know no image of the name 'c.png'" in sentence_of(capsys, code)
    assert not (tmp_path / "out" / "folder.coco.json").exists()


def test_track_with_an_onnx_graph(clip, pose_weights, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    from tests.pipelines.onnx_graphs import save_graph

    graph = save_graph(tmp_path / "a.onnx", {"rows": np.array([[[8, 8, 40, 56, 0.9, 0]]], np.float32)}, (1, 3, 64, 64))
    options = ["--model", str(pose_weights), "--detector", str(graph), "--estimator.onnx.layout", "rows", *FAINT]
    assert main(["track", str(clip), "-o", str(tmp_path / "out"), *options, *QUIET]) == 0
    frames = read_coco(tmp_path / "out" / "clip.coco.json")
    # 64 x 48 in 64 x 64: eight rows of grey above.
    assert all(np.allclose(frame.poses.boxes, [[8, 0, 40, 48]]) for frame in frames)


def test_people_without_joints_are_tracked_with_their_masks(clip, tmp_path, capsys):
    torch.manual_seed(0)
    weights = tmp_path / "masks.safetensors"
    save_model(weights, create_model("mask_rcnn_resnet18_fpn", **SMALL, num_classes=2), "float16")
    options = ["--model", str(weights), "--estimator.score-threshold", "0", *FAINT]
    assert main(["track", str(clip), "-o", str(tmp_path / "out"), *options, *QUIET]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"clip.coco.json", "clip.csv", "clip.mp4", "clip.timeline.png", "run.toml"}
    content = json.loads((tmp_path / "out" / "clip.coco.json").read_text())
    assert content["categories"][0]["keypoints"] == []
    assert content["annotations"]
    for annotation in content["annotations"]:
        assert annotation["segmentation"]["size"] == [48, 64]
        assert annotation["keypoints"] == []
    write_image(tmp_path / "picture.png", np.full((60, 80, 3), 90, np.uint8))
    assert main(["predict", str(tmp_path / "picture.png"), "-o", str(tmp_path / "image"), *options[:-4]]) == 0
    found = json.loads((tmp_path / "image" / "picture.coco.json").read_text())["annotations"]
    assert found[0]["segmentation"]["size"] == [60, 80]
    assert np.ptp(read_image(tmp_path / "image" / "picture.overlay.png")) > 50
    capsys.readouterr()
    for more, sentence in (
        (["--formats", "posetrack"], "takes coco17 or posetrack18 joints, got 'none'"),
        (["--detector", "default"], "detector must be None with a model that finds no joints"),
    ):
        code = main(["track", str(clip), "-o", str(tmp_path / "other"), *options[:2], *more, *QUIET])
        assert sentence in sentence_of(capsys, code)


def test_detectors_that_are_none(clip, boxes, pose_weights, tmp_path, capsys):
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "fields.json").write_text('[{"image_id": 1}]')
    for detector, sentence in (
        ("nobody", "detector must be one of default"),
        ("hrnet_w32", "has no weights of the model hrnet_w32"),
        (str(pose_weights), "detector must be a model that finds boxes"),
        (f"default:{pose_weights}", "are of the model hrnet_w16, not of"),
        (str(tmp_path / "none.json"), "no such file"),
        (str(tmp_path / "broken.json"), "is not a JSON file"),
        (str(tmp_path / "fields.json"), "entry 0 must have image_id and bbox"),
    ):
        options = ["--model", str(pose_weights), "--detector", detector, *QUIET]
        code = main(["track", str(clip), "-o", str(tmp_path / "out"), *options])
        assert sentence in sentence_of(capsys, code), detector
