"""`pyposeext train` from data files to a weight file, alone and under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pyposeext.cli import train as command_module
from pyposeext.cli.train import TrainArguments, main, train
from pyposeext.errors import InputError
from pyposeext.io.weights import read_manifest
from pyposeext.layers.resnet import ResNet
from pyposeext.models import create_model
from tests.training.generated import write_people

SMALL = '{"pyramid_channels": 16, "keypoint_channels": 16, "keypoint_blocks": 1, "frozen_blocks": 9}'


def test_from_data_to_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_people(tmp_path / "set", count=2)
    entry = f"{tmp_path}/set/people.json:{tmp_path}/set/images"
    output = tmp_path / "run"
    arguments = ["--data", f"{entry}:2", entry, "-o", str(output), "--val", entry, "--steps", "2", "--progress", "json"]
    arguments += ["--batch-size", "2", "--canvas", "64", "--arguments", SMALL, "--workers", "0", "--device", "cpu"]
    assert main([*arguments, "--licence", "test"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.err.splitlines()[-1])["step"] == 2
    assert printed.out.startswith("people  boxes  AP ")
    measured = json.loads((output / "validation.json").read_text())["people"]
    assert set(measured) == {"boxes", "keypoints"}
    assert {"AP", "AP50", "AR100"} < set(measured["boxes"])
    manifest = read_manifest(output / "weights.safetensors")
    assert manifest["model"] == "keypoint_rcnn_efficientnet_lite0_fpn"
    assert manifest["licence"] == "test"
    model = create_model("keypoint_rcnn_efficientnet_lite0_fpn", output / "weights.safetensors")
    assert {"boxes", "keypoints"} <= set(model([torch.rand(3, 64, 64)])[0])


def test_a_top_down_model_from_an_imagenet_trunk_to_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_people(tmp_path / "set", count=2)
    entry = f"{tmp_path}/set/people.json:{tmp_path}/set/images"
    trunk = ResNet(18)
    torch.save({**trunk.state_dict(), "fc.weight": torch.zeros(1000, 512)}, tmp_path / "resnet18.pth")
    output = tmp_path / "run"
    arguments = ["--model", "simple_baseline_resnet18", "--arguments", '{"input_size": [64, 64]}', "--recipe", "hrnet"]
    arguments += ["--data", entry, "--val", entry, "-o", str(output), "--steps", "2", "--batch-size", "2"]
    arguments += ["--backbone-weights", str(tmp_path / "resnet18.pth"), "--learning-rate", "1e-6", "--colour", "0.5"]
    arguments += ["--progress", "json", "--workers", "0", "--device", "cpu", "--weigh-joints", "--store", "float32"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.err.splitlines()[-1])["losses"].keys() == {"loss_heatmap", "total"}
    assert printed.out.startswith("people  keypoints  AP ")
    model: Any = create_model("simple_baseline_resnet18", output / "weights.safetensors")
    assert model.input_size == (64, 64)
    # Two steps at that rate leave the trunk where it was.
    assert torch.allclose(model.trunk.conv1.weight, trunk.conv1.weight, atol=1e-5)
    settings = torch.load(output / "checkpoint.pt", weights_only=True)["settings"]
    assert (settings["optimizer"], settings["learning_rate"], settings["schedule"]) == ("adam", 1e-6, "steps")
    # The same command with more steps goes on.
    arguments[arguments.index("--steps") + 1] = "3"
    assert main(arguments) == 0
    lines = [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()]
    assert lines == [2, 3]


def test_what_decides_a_run_stays_and_files_of_one_name_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = []
    for name in ("a", "b"):
        write_people(tmp_path / name, count=1)
        entries.append(f"{tmp_path}/{name}/people.json:{tmp_path}/{name}/images")
    small: dict[str, Any] = {"model": "hrnet_w18_small", "batch_size": 1, "workers": 0, "device": "cpu"}
    small |= {"arguments": '{"input_size": [64, 64]}', "progress": "none", "output": tmp_path / "run"}
    train(TrainArguments(data=tuple(entries[:1]), val=tuple(entries), steps=1, **small))
    assert set(json.loads((tmp_path / "run/validation.json").read_text())) == set(entries)
    for changes, message in (
        (
            {"data": tuple(entries[1:])},
            r"was trained with data \['.*/a/people\.json:.*'\], asked for is \['.*/b/people",
        ),
        ({"batch_size": 2}, "was trained with batch_size 1, asked for is 2"),
        ({"augmentation": "none"}, "was trained with augmentation auto, asked for is none"),
        (
            {"arguments": '{"input_size": [64, 96]}'},
            r"trained with arguments\.input_size \[64, 64\], asked for is \[64",
        ),
        ({"model": "hrnet_w16"}, "was trained with model hrnet_w18_small, asked for is hrnet_w16"),
    ):
        with pytest.raises(InputError, match=message):
            train(TrainArguments(**{"data": tuple(entries[:1]), "steps": 2, **small, **changes}))
    # The same files, named from where they are.
    monkeypatch.chdir(tmp_path)
    train(TrainArguments(data=("a/people.json:a/images",), steps=2, **small))
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["step"] == 2


def test_a_mask_rcnn_by_its_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_people(tmp_path / "set", count=2, masks=True)
    entry = f"{tmp_path}/set/people.json:{tmp_path}/set/images"
    arguments = ["--model", "mask_rcnn_resnet18_fpn", "--recipe", "mask_rcnn", "--data", entry, "--val", entry]
    builder = {"num_classes": 2, "min_size": 64, "proposals": [20, 4], "frozen_norm": False, "detections_per_image": 2}
    arguments += ["-o", str(tmp_path / "run"), "--steps", "1", "--arguments", json.dumps(builder), "--batch-size", "1"]
    assert main([*arguments, "--progress", "json", "--workers", "0", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    line = json.loads(printed.err.splitlines()[-1])
    assert "loss_mask" in line["losses"]
    assert "loss_keypoint" not in line["losses"]
    assert {row.split()[1] for row in printed.out.splitlines()} == {"boxes", "masks"}


def torchrun_command(tmp_path: Path, *options: str) -> list[str]:
    write_people(tmp_path / "set", count=2)
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom torch import distributed\nfrom pyposeext.cli.main import main\n"
        "code = main(['train', *sys.argv[1:]])\nassert not distributed.is_initialized()\nsys.exit(code)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    command += ["--data", f"{tmp_path}/set/people.json:{tmp_path}/set/images", "--output", str(tmp_path / "run")]
    command += ["--batch-size", "1", "--canvas", "64", "--arguments", SMALL, "--device", "cpu", "--threads", "1"]
    return [*command, "--progress", "json", *options]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_under_torchrun(tmp_path: Path) -> None:
    command = torchrun_command(tmp_path, "--steps", "2", "--workers", "0")
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    # One log for both processes, and one weight file.
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "run/weights.safetensors").exists()


def test_ctrl_c_under_torchrun_saves_the_checkpoint(tmp_path: Path) -> None:
    command = torchrun_command(tmp_path, "--steps", "100000", "--workers", "1")
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith('{"step"'):
                break
        running.send_signal(signal.SIGINT)
        said = running.stderr.read()
    assert running.returncode != 0
    assert "pyposeext: interrupted" in said
    checkpoint = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert checkpoint["step"] >= 20
    assert not (tmp_path / "run/weights.safetensors").exists()


def test_every_process_has_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert command_module._device("auto") == torch.device("cuda", 3)
    assert chosen == [3]
    assert command_module._device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(InputError, match="one process per GPU"):
        command_module._device("cuda")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ("people.json",)}, r"data must be ANNOTATIONS\.json:IMAGES"),
        ({"data": ("people.json:images:much",)}, "must be a number, got 'much'"),
        ({"steps": None}, "exactly one of steps and minutes"),
        ({"device": "tpu"}, "device must be auto, cpu or cuda"),
        ({"arguments": "[1]"}, "arguments must be a JSON object"),
        ({"canvas": (100,)}, "canvas must be multiples of 32"),
        ({"canvas": ()}, r"canvas must be multiples of 32 from 64 on, or 0 for whole images, got \(\)"),
        ({"weigh_joints": True}, "weigh_joints is for top-down models, and keypoint_rcnn"),
        ({"colour": 0.5}, "colour is for top-down models"),
        ({"model": "hrnet_w18_small", "canvas": (320,)}, "canvas is for detectors"),
        ({"model": "hrnet_w18_small", "colour": 2.0}, "colour must be a probability"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"recipe": "yolo"}, "recipe must be one of default, hrnet, mask_rcnn, keypoint_rcnn, got 'yolo'"),
        ({"milestones": (0.9, 0.5)}, "milestones must be rising shares"),
        ({"data": ("mpii:labels.json:images",)}, "data of mpii: is for top-down models, and keypoint_rcnn_eff"),
        ({"data": ("lsp:a:1:2",)}, "data must be ANNOTATIONS"),
        (
            {"model": "hrnet_w18_small", "arguments": '{"num_joints": 16}', "val": "set"},
            "val: data must label the model's 16",
        ),
        ({"val": ("lsp:nowhere",)}, "cannot be read"),
        ({"backbone_weights": Path("none.pth")}, r"checkpoint none\.pth does not exist"),
        ({"backbone_weights": Path("none.pt")}, r"none\.pt is not the checkpoint\.pt of a training run"),
    ],
)
def test_wrong_input(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_people(tmp_path / "set", count=1)
    entry = f"{tmp_path}/set/people.json:{tmp_path}/set/images"
    arguments = {"data": (entry,), "output": tmp_path / "run", "steps": 1, **changes}
    if changes.get("val") == "set":
        arguments["val"] = (entry,)
    with pytest.raises(InputError, match=message):
        train(TrainArguments(**arguments))
    assert not (tmp_path / "run").exists()
