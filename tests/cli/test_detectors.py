"""Top-down models and detectors on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pyposeext.cli.main import main
from pyposeext.io.coco import read_coco
from pyposeext.io.images import read_image, write_image
from pyposeext.io.video import VideoReader
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
        ("hrnet_w32", "got 'hrnet_w32'"),
        ("mask_rcnn_resnet50_fpn", "has no weights of the model mask_rcnn_resnet50_fpn"),
        (str(pose_weights), "is of hrnet_w16, which finds no boxes"),
        (f"default:{pose_weights}", "are of the model hrnet_w16, not of"),
        (str(tmp_path / "none.json"), "no such file"),
        (str(tmp_path / "broken.json"), "is not a JSON file"),
        (str(tmp_path / "fields.json"), "entry 0 must have image_id and bbox"),
    ):
        options = ["--model", str(pose_weights), "--detector", detector, *QUIET]
        code = main(["track", str(clip), "-o", str(tmp_path / "out"), *options])
        assert sentence in sentence_of(capsys, code), detector


def images_file(tmp_path, names):
    images = [{"id": index, "file_name": name} for index, name in enumerate(names)]
    annotations = [{"image_id": image["id"], "bbox": [10, 5, 20, 30]} for image in images]
    path = tmp_path / "images.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_predict_skips_an_image_of_a_folder_that_the_detections_do_not_know(pose_weights, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        write_image(folder / name, np.zeros((60, 80, 3), np.uint8))
    (folder / "d.png").write_text("text")
    options = ["--model", str(pose_weights), "--device", "cpu", "--detector"]
    known = images_file(tmp_path, ["a.png", "c.png"])
    code = main(["predict", str(folder), "-o", str(tmp_path / "out"), *options, str(known)])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 2
    assert "know no image of the name 'b.png'" in lines[0]
    assert "d.png is not an image" in lines[1]
    content = json.loads((tmp_path / "out" / "folder.coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "c.png"]
    assert [annotation["image_id"] for annotation in content["annotations"]] == [0, 1]
    overlays = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert overlays == {"a.overlay.png", "c.overlay.png"}

    # Where none is known, nothing is written.
    (folder / "d.png").unlink()
    none = images_file(tmp_path, ["z.png"])
    assert main(["predict", str(folder), "-o", str(tmp_path / "none"), *options, str(none)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert not list((tmp_path / "none").glob("*"))
    # One image alone is an error as any other.
    code = main(["predict", str(folder / "a.png"), *options, str(none)])
    assert "know no image of the name 'a.png'" in sentence_of(capsys, code)


def test_boxes_of_an_earlier_run_fit_a_video_begun_later(pose_weights, box_weights, tmp_path):
    clip = make_video(tmp_path / "clip.mp4", 8)
    numbers, times = range(8), [frame.time for frame in VideoReader(clip)]
    images = [{"id": n, "file_name": f"clip/{n:06d}.jpg", "time": round(times[n], 6)} for n in numbers]
    boxes = [{"image_id": n, "category_id": 1, "bbox": [10 + n, 5, 20, 30], "score": 0.9} for n in numbers]
    path = tmp_path / "earlier.coco.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes}))
    options = ["--model", str(pose_weights), "--detector", str(path), "--start", str(times[5] - times[0])]
    assert main(["predict", str(clip), "-o", str(tmp_path / "out"), "--formats", "coco", *options, *QUIET]) == 0
    frames = read_coco(tmp_path / "out" / "clip.coco.json")
    assert [frame.time for frame in frames] == pytest.approx(times[5:], abs=1e-6)
    np.testing.assert_allclose([frame.poses.boxes[0, 0] for frame in frames], [15, 16, 17], atol=2e-3)
