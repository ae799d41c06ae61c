"""PCK and PCKh of a top-down model that knows the answers, moved by a known distance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from torch import Tensor, nn

from pyposeext.cli.main import main
from pyposeext.datasets import LeedsSports, MpiiPose, read_mpii_truth
from pyposeext.errors import InputError
from pyposeext.models import create_model
from pyposeext.models.top_down import TopDownPose
from pyposeext.models.weights import save_model
from pyposeext.pipelines.evaluation_pck import evaluate_pck, evaluate_pckh
from pyposeext.skeletons import COCO17, LSP14, MPII16
from pyposeext.structures import Skeleton


class Oracle(TopDownPose):
    """Finds the points it is given, one list of people after the other."""

    def __init__(self, skeleton: Skeleton, answers: list[np.ndarray], size: tuple[int, int] = (64, 64)) -> None:
        super().__init__(nn.Conv2d(3, 1, 1), nn.Identity(), skeleton, size)
        self.answers = [torch.from_numpy(np.asarray(answer, np.float32)) for answer in answers]

    def estimate(self, crops: Tensor, matrices: Any = None, flip: bool = True, decoding: Any = None) -> Any:
        points = self.answers.pop(0)
        assert crops.shape == (len(points), 3, *self.input_size)
        return points, torch.ones(points.shape[:2])


@pytest.fixture
def lsp(tmp_path: Path) -> Path:
    """Three test images of LSP, every torso 50 pixels long, the last person's left shoulder not told."""
    generator = np.random.default_rng(0)
    joints = np.zeros((3, 14, 1003))
    joints[:2] = generator.uniform(20, 80, (2, 14, 1003))
    joints[:2, LSP14.names.index("right_hip")] = 60
    joints[:2, LSP14.names.index("left_shoulder")] = [[30], [20]]
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints})
    (tmp_path / "images").mkdir()
    for number in range(1001, 1004):
        cv2.imwrite(str(tmp_path / "images" / f"im{number}.jpg"), np.zeros((100, 100, 3), np.uint8))
    return tmp_path


def answers_of(dataset: LeedsSports, skeleton: Skeleton, shift: float) -> list[np.ndarray]:
    """The truth in the order of `skeleton`, moved to the right; joints that LSP has not lie far away."""
    answers = []
    for index in range(len(dataset)):
        truth = dataset.sample(index).keypoints
        answer = np.full((len(truth), len(skeleton), 2), 1e4)
        for place, name in enumerate(skeleton.names):
            if name in LSP14.names:
                answer[:, place] = truth[:, LSP14.names.index(name), :2]
        answers.append(answer + np.array([shift, 0]))
    return answers


@pytest.mark.parametrize(("shift", "expected"), [(9.99, 1.0), (10.01, 0.0)])
@pytest.mark.parametrize("skeleton", [COCO17, LSP14])
def test_pck_of_lsp(lsp: Path, skeleton: Skeleton, shift: float, expected: float) -> None:
    dataset = LeedsSports(lsp, "test")
    model = Oracle(skeleton, answers_of(dataset, skeleton, shift)).train()
    seen: list[int] = []
    figures = evaluate_pck(model, dataset, on_image=seen.append)
    assert seen == [0, 1, 2]
    assert model.training
    # A fifth of the torso of 50 pixels.
    assert set(figures.values()) == {expected}
    limbs = {"shoulder", "elbow", "wrist", "hip", "knee", "ankle"}
    assert set(figures) == {"overall", *limbs, *({"head_bottom", "head_top"} if skeleton is LSP14 else ())}


def test_joints_are_counted_one_by_one(lsp: Path) -> None:
    dataset = LeedsSports(lsp, "test")
    answers = answers_of(dataset, LSP14, 0)
    answers[0][0, LSP14.names.index("left_knee")] += 50
    figures = evaluate_pck(Oracle(LSP14, answers), dataset)
    assert figures["knee"] == pytest.approx(5 / 6)
    assert figures["overall"] == pytest.approx(41 / 42)
    with pytest.raises(InputError, match="must have the torso and joints of the model for PCK, got those of lsp"):
        evaluate_pck(Oracle(Skeleton("odd", ("tail",), (), ()), []), dataset)


@pytest.fixture
def mpii(tmp_path: Path) -> tuple[Path, Path]:
    """Three people on two images, not in the order of the images, and their truth; heads are 0.6 * 50 pixels."""
    records = []
    truth = np.zeros((16, 2, 3))
    for row, image in enumerate(("a.png", "b.png", "a.png")):
        truth[:, :, row] = np.stack([np.arange(16) * 3 + 10 * row, np.arange(16) * 4 + 5], axis=1) + 1
        person = {"image": image, "center": [50.0, 60.0], "scale": 0.4}
        records.append({**person, "joints": truth[:, :, row].tolist(), "joints_vis": [1] * 16})
        cv2.imwrite(str(tmp_path / image), np.zeros((150, 100, 3), np.uint8))
    (tmp_path / "mpii_val.json").write_text(json.dumps(records))
    heads = np.zeros((2, 2, 3))
    heads[1] = [[30] * 3, [40] * 3]
    content = {"pos_gt_src": truth, "jnt_missing": np.zeros((16, 3)), "headboxes_src": heads}
    scipy.io.savemat(tmp_path / "mpii_gt_val.mat", content)
    return tmp_path / "mpii_val.json", tmp_path / "mpii_gt_val.mat"


@pytest.mark.parametrize(("shift", "mean", "tenth"), [(2.9, 1, 1), (3.1, 1, 0), (14.9, 1, 0), (15.1, 0, 0)])
def test_pckh_of_mpii(mpii: tuple[Path, Path], shift: float, mean: float, tenth: float) -> None:
    dataset, truth = MpiiPose(mpii[0], mpii[0].parent), read_mpii_truth(mpii[1])
    # The third person stands on the first image.
    answers = [truth.keypoints[rows][:, :, :2] + np.array([shift, 0]) for rows in ([0, 2], [1])]
    figures = evaluate_pckh(Oracle(MPII16, answers), dataset, truth)
    assert (figures["mean"], figures["mean@0.1"], figures["wrist"]) == (mean, tenth, mean)
    assert set(figures) == {"head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "mean", "mean@0.1"}


def test_other_models_and_truths_are_refused(mpii: tuple[Path, Path]) -> None:
    dataset, truth = MpiiPose(mpii[0], mpii[0].parent), read_mpii_truth(mpii[1])
    with pytest.raises(InputError, match=r"model must have MPII's 16 joints for PCKh, got 17 \(coco17\)"):
        evaluate_pckh(Oracle(COCO17, []), dataset, truth)
    fewer = type(truth)(truth.keypoints[:2], truth.head_boxes[:2])
    with pytest.raises(InputError, match="truth must hold the 3 people of the data, got 2"):
        evaluate_pckh(Oracle(MPII16, []), dataset, fewer)


def test_the_command(lsp: Path, mpii: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = create_model("hrnet_w18_small", num_joints=16, input_size=(64, 64))
    path = lsp / "mpii.safetensors"
    save_model(path, model)
    arguments = ["eval", "--model", str(path), "--json", "--progress", "none", "--device", "cpu", "--data"]
    assert main([*arguments, f"lsp:{lsp}"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["images"], list(printed["metrics"])) == (3, ["PCK@0.2"])
    entry = f"mpii:{mpii[0]}:{mpii[0].parent}"
    assert main([*arguments, entry, "--truth", str(mpii[1])]) == 0
    printed = json.loads(capsys.readouterr().out)
    direct = evaluate_pckh(model, MpiiPose(mpii[0], mpii[0].parent), read_mpii_truth(mpii[1]))
    assert printed["metrics"]["PCKh@0.5"] == pytest.approx(direct, nan_ok=True)

    def refused(*more: str) -> str:
        assert main([*arguments, *more]) == 2
        return capsys.readouterr().err

    assert "truth must be mpii_gt_val.mat for PCKh of mpii data, got none" in refused(entry)
    assert "is for top-down models in the labelled boxes" in refused(entry, "--detector", "default")
    assert "joints.mat' cannot be read" in refused("lsp:nowhere")
