"""The command line: what it writes, and one sentence for every wrong input."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pyposeext
from pyposeext.cli.main import VERBS, main
from pyposeext.io.coco import CocoWriter
from pyposeext.io.images import write_image
from pyposeext.io.video import VideoReader
from pyposeext.io.weights import save_weights
from pyposeext.models import create_model
from pyposeext.models.weights import save_model
from tests.io.videos import cut, make_audio, make_headers_only, make_size_change, make_video

SMALL = {"min_size": 64, "max_size": 96, "proposals": (20, 10), "detections_per_image": 4}
QUIET = ["--progress", "none", "--device", "cpu"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(path, create_model("keypoint_rcnn_efficientnet_lite0_fpn", **SMALL), "float16")
    return path


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "clip.mp4", 6)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    write_image(path, np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    return path


def sentence_of(capsys, code, expected=2):
    """The one sentence on standard error."""
    error = capsys.readouterr().err
    assert code == expected, error
    lines = error.strip().splitlines()
    assert len(lines) == 1, error
    assert lines[0].startswith("pyposeext: ")
    return lines[0]


def test_help_names_every_verb_without_loading_torch():
    code = "import sys; from pyposeext.cli.main import main; main(['--help']); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"
    assert all(f"  {verb} " in run.stdout for verb in VERBS)


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyposeext {pyposeext.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    assert f"pyposeext {verb}" in capsys.readouterr().out


def test_track_writes_all_files(clip, weights, tmp_path, capsys):
    assert main(["track", str(clip), "-o", str(tmp_path / "out"), "--model", str(weights), *QUIET]) == 0
    out = capsys.readouterr().out
    assert out.startswith("6 frames in ")
    for name in ("clip.posetrack.json", "clip.coco.json", "clip.csv", "clip.mp4", "clip.timeline.png", "run.toml"):
        assert (tmp_path / "out" / name).stat().st_size > 0
        assert name in out
    assert len(list(VideoReader(tmp_path / "out" / "clip.mp4"))) == 6


def test_track_takes_its_options(clip, weights, tmp_path):
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    options = ["--max-frames", "3", "--start", "0.08", "--formats", "csv", "toml", "--threads", "1"]
    options += ["--preset", "detect_and_track", "--tracker.max-gap", "7", "--estimator.pose-from", "crops"]
    model = ["--model", "keypoint_rcnn_efficientnet_lite0_fpn", "--weights", str(weights)]
    threads = torch.get_num_threads()
    try:
        assert main(["track", str(clip), "-o", str(tmp_path / "out"), *model, *options, *QUIET]) == 0
    finally:
        torch.set_num_threads(threads)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip.csv", "run.toml"}
    record = tomllib.loads((tmp_path / "out" / "run.toml").read_text())
    assert (record["tracker"]["max_gap"], record["tracker"]["id_limit"]) == (7, 999)
    assert (record["input"]["start"], record["result"]["frames"]) == (0.08, 3)
    assert record["estimator"]["pose_from"] == "crops"
    assert record["model"]["name"] == "keypoint_rcnn_efficientnet_lite0_fpn"
    assert len(record["model"]["weights_sha256"]) == 64


def test_progress_as_json_lines(clip, weights, tmp_path, capsys):
    arguments = ["-o", str(tmp_path / "out"), "--model", str(weights), "--formats", "csv", "--progress", "json"]
    assert main(["track", str(clip), *arguments]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[-1]["frames"] == 6
    assert lines[-1]["done"]
    assert set(lines[0]) == {"frames", "time", "fraction", "fps", "eta", "done"}


def test_progress_as_a_bar(clip, weights, tmp_path, capsys):
    assert main(["track", str(clip), "-o", str(tmp_path / "out"), "--model", str(weights), "--formats", "csv"]) == 0
    assert "6 frames" in capsys.readouterr().err


def _text(path: Path) -> Path:
    path.write_text("no video\n" * 100)
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path, "no such file"),
        (lambda path: path.parent, "is a folder"),
        (_text, "is not a video"),
        (make_audio, "has no video stream"),
        (make_headers_only, "holds no stream that can be read"),
    ],
)
def test_track_what_is_no_video(make, sentence, weights, tmp_path, capsys):
    code = main(["track", str(make(tmp_path / "a.mp4")), "-o", str(tmp_path / "out"), "--model", str(weights), *QUIET])
    assert sentence in sentence_of(capsys, code)
    assert not (tmp_path / "out").exists()


def test_track_a_video_cut_short(weights, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8)
    clip = cut(make_video(tmp_path / "a.mp4", images=list(noise), options={"movflags": "faststart"}), 0.5)
    code = main(["track", str(clip), "-o", str(tmp_path / "out"), "--model", str(weights), *QUIET])
    assert "cut_a.mp4: the file is cut short" in sentence_of(capsys, code)
    assert 3 < len(list(VideoReader(tmp_path / "out" / "cut_a.mp4"))) < 30


def test_track_a_video_whose_size_changes(weights, tmp_path, capsys):
    clip = make_size_change(tmp_path / "a.ts", 5)
    code = main(["track", str(clip), "-o", str(tmp_path / "out"), "--model", str(weights), *QUIET])
    assert "the frame size changes from 64x48 to 96x48 at frame 5" in sentence_of(capsys, code)
    assert len(list(VideoReader(tmp_path / "out" / "a.mp4"))) == 5


def test_track_to_a_place_that_cannot_be_written(clip, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    # The model is not there either, but the place is looked at first.
    code = main(
        ["track", str(clip), "-o", str(tmp_path / "file"), "--model", str(tmp_path / "none.safetensors"), *QUIET]
    )
    assert "cannot make the folder" in sentence_of(capsys, code)


def test_wrong_models_and_weights(clip, weights, tmp_path, capsys):
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "text.pth").write_text("text")
    damaged = bytearray(weights.read_bytes())
    damaged[-1000:-900] = bytes(100)
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    save_weights(
        tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {"model": "keypoint_rcnn_efficientnet_lite0_fpn"}
    )
    for options, sentence in (
        (["--model", "nothing"], "model must be one of default"),
        (["--model", "keypoint_rcnn_resnet50_fpn"], "has no weights of the model keypoint_rcnn_resnet50_fpn"),
        (["--model", "keypoint_rcnn_resnet50_fpn", "--weights", str(weights)], "are of the model"),
        (["--model", str(tmp_path / "none.safetensors")], "does not exist"),
        (["--model", str(tmp_path / "text.safetensors")], "damaged or not a safetensors file"),
        (["--model", str(tmp_path / "text.pth")], "damaged or not a safetensors file"),
        (["--model", str(tmp_path / "damaged.safetensors")], "damaged"),
        (["--model", str(tmp_path / "other.safetensors")], "do not fit"),
        (["--model", str(weights), "--device", "abacus"], "device must be"),
        (["--model", str(weights), "--preset", "none"], "preset must be one of"),
        (["--model", str(weights), "--formats", "gif"], "formats must be among"),
        (
            ["--model", str(weights), "--estimator.maximum-people", "101", "--formats", "posetrack"],
            "maximum_people must be 100 or less",
        ),
        (["--model", str(weights), "--max-frames", "0"], "max_frames must be"),
        (["--model", str(weights), "--start", "100"], "lies beyond the last frame"),
    ):
        arguments = ["-o", str(tmp_path / "out"), "--progress", "none", *options]
        assert sentence in sentence_of(capsys, main(["track", str(clip), *arguments])), options


def test_wrong_usage_exits_with_2(capsys):
    assert "there is no verb 'dance'" in sentence_of(capsys, main(["dance"]))
    for arguments in (["track"], ["track", "a.mp4", "-o", "out", "--tracker.max-gap", "-1"], ["weights", "juggle"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2


def test_an_interrupt_finishes_the_files_and_exits_with_130(weights, tmp_path):
    clip = make_video(tmp_path / "clip.mp4", 2000)
    command = [sys.executable, "-m", "pyposeext", "track", str(clip), "-o", str(tmp_path / "out"), "--device", "cpu"]
    command += ["--model", str(weights), "--progress", "json", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert json.loads(process.stderr.readline())["frames"] >= 1
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.strip().splitlines()[-1] == "pyposeext: interrupted"
    frames = int(out.split()[0])
    assert 0 < frames < 2000
    assert len(list(VideoReader(tmp_path / "out" / "clip.mp4"))) == frames
    assert len(json.loads((tmp_path / "out" / "clip.coco.json").read_text())["images"]) == frames
    assert not list((tmp_path / "out").glob(".*"))


def test_predict_an_image_to_standard_output(picture, weights, capsys):
    assert main(["predict", str(picture), "--model", str(weights), "--estimator.score-threshold", "0"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["images"] == [{"id": 0, "file_name": "picture.png", "width": 80, "height": 60}]
    assert len(content["annotations"][0]["keypoints"]) == 51


def test_predict_standard_input(picture, weights, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(picture.read_bytes())))
    assert main(["predict", "-", "--model", str(weights)]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["width"] == 80
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert "standard input is empty" in sentence_of(capsys, main(["predict", "-", "--model", str(weights)]))


def test_predict_a_folder(picture, weights, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b.png", "a.png"):
        (folder / name).write_bytes(picture.read_bytes())
    assert main(["predict", str(folder), "-o", str(tmp_path / "out"), "--model", str(weights)]) == 0
    assert capsys.readouterr().out == f"2 images: coco, overlay in {tmp_path / 'out'}\n"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"folder.coco.json", "a.overlay.png", "b.overlay.png"}
    assert main(["predict", str(folder), "-o", str(tmp_path / "o"), "--model", str(weights), "--save", "coco"]) == 0
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["folder.coco.json"]
    content = json.loads((tmp_path / "out" / "folder.coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.png"]


def test_predict_skips_a_damaged_image_of_a_folder(picture, weights, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_text("text")
    (folder / "b.png").write_bytes(picture.read_bytes())
    (folder / "c.png").write_bytes(picture.read_bytes()[:5000])
    (folder / "d.png").write_bytes(picture.read_bytes())
    code = main(["predict", str(folder), "-o", str(tmp_path / "out"), "--model", str(weights)])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert [line.split("/")[-1].split()[0] for line in lines] == ["a.png", "c.png"]
    content = json.loads((tmp_path / "out" / "folder.coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["b.png", "d.png"]
    for name in ("b.png", "c.png", "d.png"):
        (folder / name).unlink()
    assert "a.png is not an image" in sentence_of(capsys, main(["predict", str(folder), "--model", str(weights)]))


def test_predict_keeps_overlays_of_one_stem_apart(picture, weights, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.jpg", "a.png", "a.jpg.png", "b.png"):
        (folder / name).write_bytes(picture.read_bytes())
    assert main(["predict", str(folder), "-o", str(tmp_path / "out"), "--model", str(weights)]) == 0
    names = {path.name.removesuffix(".overlay.png") for path in (tmp_path / "out").glob("*.overlay.png")}
    assert names == {"a.jpg", "a.png", "a.jpg.png", "b"}


def test_an_interrupted_prediction_of_a_video_is_printed(weights, tmp_path, capsys, monkeypatch):
    clip = make_video(tmp_path / "clip.mp4", 30)
    write = CocoWriter.write

    def interrupted(writer, frame):
        write(writer, frame)
        if frame.number == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CocoWriter, "write", interrupted)
    assert main(["predict", str(clip), "--model", str(weights), *QUIET]) == 130
    out, error = capsys.readouterr()
    assert len(json.loads(out)["images"]) == 3
    assert error == "pyposeext: interrupted\n"


def test_predict_a_video(clip, weights, tmp_path, capsys):
    assert main(["predict", str(clip), "-o", str(tmp_path / "out"), "--model", str(weights), *QUIET]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip.coco.json", "clip.mp4"}
    capsys.readouterr()
    assert main(["predict", str(clip), "--model", str(weights), "--max-frames", "2", *QUIET]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 2


def test_predict_wrong_input(picture, weights, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, sentence in (
        ([str(tmp_path / "none.jpg")], "no such file"),
        ([str(tmp_path / "none.mp4")], "no such file"),
        ([str(tmp_path / "text.jpg")], "is not an image"),
        ([str(tmp_path / "empty")], "holds no images"),
        ([str(picture), "-o", str(tmp_path / "file" / "out")], "cannot make the folder"),
        ([str(picture), "--formats", "gif"], "formats must be among coco, overlay"),
    ):
        code = main(["predict", *arguments, "--model", str(weights)])
        assert sentence in sentence_of(capsys, code), arguments
    assert capsys.readouterr().out == ""


def test_models_are_listed(capsys):
    assert main(["models"]) == 0
    assert "keypoint_rcnn_resnet50_fpn " in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    assert "default" in {model["name"] for model in json.loads(capsys.readouterr().out)}


def test_system_says_what_there_is(capsys):
    assert main(["system", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["pyposeext"] == pyposeext.__version__
    assert facts["torch running"] == torch.__version__
    assert {"torch built against", "cuda toolkit", "cpu level", "threads", "ffmpeg", "weights"} <= set(facts)
    assert main(["system"]) == 0
    assert "ffmpeg libraries" in capsys.readouterr().out


def test_weights_verify_and_list(weights, tmp_path, capsys):
    assert main(["weights", "verify", str(weights)]) == 0
    assert "model: keypoint_rcnn_efficientnet_lite0_fpn" in capsys.readouterr().out
    assert main(["weights", "list"]) == 0
    capsys.readouterr()
    (tmp_path / "text.safetensors").write_text("text")
    for arguments, sentence in (
        (["verify", str(tmp_path / "text.safetensors")], "not a safetensors file"),
        (["verify", "nothing"], "weights must be a file or the name"),
        (["convert", str(tmp_path / "none.pth"), "--model", "default", "-o", "a.safetensors"], "does not exist"),
        (["convert", str(weights), "--model", "default", "-o", "a.pth"], "must end in .safetensors"),
        (["convert", str(weights), "--model", "none", "-o", "a.safetensors"], "model must be one of"),
    ):
        assert sentence in sentence_of(capsys, main(["weights", *arguments])), arguments


def test_weights_convert(tmp_path):
    model = create_model("keypoint_rcnn_efficientnet_lite0_fpn")
    torch.save(model.state_dict(), tmp_path / "a.pth")
    target = tmp_path / "a.safetensors"
    name = ["--model", "keypoint_rcnn_efficientnet_lite0_fpn"]
    assert main(["weights", "convert", str(tmp_path / "a.pth"), *name, "-o", str(target), "--dtype", "float16"]) == 0
    assert main(["weights", "verify", str(target)]) == 0


def test_a_reader_that_has_enough_is_no_error():
    command = f"'{sys.executable}' -m pyposeext system | head -c 1"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in run.stderr
