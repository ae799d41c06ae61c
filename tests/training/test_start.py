"""Training starts from what others have published, or from an earlier run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyposeext.errors import InputError
from pyposeext.io.weights import file_sha256
from pyposeext.layers.hrnet import HRNet
from pyposeext.layers.resnet import ResNet
from pyposeext.models import create_model
from pyposeext.models.registry import Checkpoint, model_entry
from pyposeext.models.weights import save_model
from pyposeext.training.start import load_start

IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def shaken(module: nn.Module) -> nn.Module:
    """With statistics as of a trained model: none of them 0 or 1."""
    generator = torch.Generator().manual_seed(3)
    for name, value in module.state_dict().items():
        if name.endswith(("running_mean", "running_var", "bias")) or value.dim() == 1:
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.25)
    return module.eval()


def resnet_file(path: Path) -> nn.Module:
    """A ResNet-18 as torchvision's file holds it, with its classifier; gives the trunk."""
    trunk = shaken(ResNet(18))
    classifier = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save({**trunk.state_dict(), **classifier}, path)
    return trunk


def test_torchvision_resnet_under_a_top_down_model(tmp_path: Path) -> None:
    trunk = resnet_file(tmp_path / "resnet18.pth")
    model: Any = create_model("simple_baseline_resnet18")
    head = {name: value.clone() for name, value in model.head.state_dict().items()}
    load_start(model, tmp_path / "resnet18.pth")
    assert all(torch.equal(*pair) for pair in zip(model.trunk(IMAGES), trunk(IMAGES), strict=True))
    assert all(torch.equal(value, head[name]) for name, value in model.head.state_dict().items())


@pytest.mark.parametrize("arguments", [{}, {"norm_eps": 1e-5}, {"frozen_norm": False}])
def test_torchvision_resnet_under_an_rcnn(tmp_path: Path, arguments: dict[str, Any]) -> None:
    trunk = resnet_file(tmp_path / "resnet18.pth")
    model: Any = create_model("mask_rcnn_resnet18_fpn", **arguments)
    load_start(model, tmp_path / "resnet18.pth")
    for ours, theirs in zip(model.backbone.body(IMAGES), trunk(IMAGES), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_trunk_whose_last_stage_is_the_box_head(tmp_path: Path) -> None:
    trunk = shaken(ResNet(50))
    torch.save(trunk.state_dict(), tmp_path / "resnet50.pth")
    model: Any = create_model("mask_rcnn_resnet50_c4")
    load_start(model, tmp_path / "resnet50.pth")
    features = trunk(IMAGES)
    assert torch.allclose(model.backbone.body(IMAGES)[-1], features[2], rtol=1e-3, atol=1e-3)
    assert torch.equal(
        model.get_submodule("roi_heads.box_head").state_dict()["layer4.0.conv1.weight"],
        trunk.state_dict()["layer4.0.conv1.weight"],
    )


def test_an_hrnet_classifier(tmp_path: Path) -> None:
    # Classifiers have the exchange to all branches, and layers of their own at the end.
    trunk = shaken(HRNet(16, modules=(1, 1, 1), blocks=2, stem_blocks=1, stem_width=32, multiscale_output=True))
    classifier = {
        "final_layer.0.weight": torch.zeros(1),
        "classifier.weight": torch.zeros(1),
        "incre_modules.0": torch.zeros(1),
    }
    torch.save({**trunk.state_dict(), **classifier}, tmp_path / "hrnet.pth")
    model: Any = create_model("hrnet_w18_small")
    load_start(model, tmp_path / "hrnet.pth")
    assert torch.equal(model.trunk(IMAGES)[0], trunk(IMAGES)[0])


def test_a_published_pose_network(tmp_path: Path) -> None:
    published: Any = create_model("hrnet_w18_small")
    shaken(published)
    renamed: dict[str, Tensor] = {
        name.removeprefix("trunk.").replace("head.conv", "final_layer"): value
        for name, value in published.state_dict().items()
    }
    torch.save({"state_dict": {f"module.{name}": value for name, value in renamed.items()}}, tmp_path / "pose.pth")
    model: Any = create_model("hrnet_w18_small")
    load_start(model, tmp_path / "pose.pth")
    assert torch.equal(model(IMAGES), published(IMAGES))
    other: Any = create_model("hrnet_w18_small", num_joints=16)
    with pytest.raises(InputError, match=r"do not fit hrnet_w18_small: head\.conv\.weight is \[17"):
        load_start(other, tmp_path / "pose.pth")


def test_weights_of_this_package(tmp_path: Path) -> None:
    saved: Any = create_model("hrnet_w18_small")
    save_model(tmp_path / "own.safetensors", shaken(saved))
    model: Any = create_model("hrnet_w18_small")
    load_start(model, tmp_path / "own.safetensors")
    assert torch.equal(model(IMAGES), saved(IMAGES))


def test_weights_of_another_model_or_skeleton_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "torchvision.safetensors", create_model("mask_rcnn_resnet50_fpn", num_classes=2))
    model: Any = create_model("mask_rcnn_resnet50_fpn_detectron2", num_classes=2)
    with pytest.raises(InputError, match="are of the model mask_rcnn_resnet50_fpn, not of mask_rcnn_resnet50_fpn_det"):
        load_start(model, tmp_path / "torchvision.safetensors")
    posetrack = create_model("hrnet_w18_small", skeleton="posetrack18")
    save_model(tmp_path / "posetrack.safetensors", posetrack)
    message = r"""skeleton posetrack18, the model has coco17: give --arguments '\{"skeleton": "posetrack18"\}'"""
    with pytest.raises(InputError, match=message):
        load_start(create_model("hrnet_w18_small"), tmp_path / "posetrack.safetensors")
    load_start(create_model("hrnet_w18_small", skeleton="posetrack18"), tmp_path / "posetrack.safetensors")


def test_frozen_norms_of_another_eps_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: Any = shaken(create_model("keypoint_rcnn_resnet18_fpn", norm_eps=0.25))
    save_model(tmp_path / "own.safetensors", saved)
    torch.save(saved.state_dict(), tmp_path / "published.pth")
    digest = file_sha256(tmp_path / "published.pth")
    known = Checkpoint("published", "https://example.org", "MIT", {"norm_eps": 0.25}, sha256=digest)
    entry = replace(model_entry("keypoint_rcnn_resnet18_fpn"), checkpoints=(known,))
    monkeypatch.setattr("pyposeext.training.start.model_entry", lambda name: entry)
    for file in ("own.safetensors", "published.pth"):
        plain = create_model("keypoint_rcnn_resnet18_fpn")
        message = r"""norm_eps 0\.25, the model has \S+: give --arguments '\{"norm_eps": 0\.25\}'"""
        with pytest.raises(InputError, match=message):
            load_start(plain, tmp_path / file)
        alike: Any = create_model("keypoint_rcnn_resnet18_fpn", norm_eps=0.25)
        load_start(alike, tmp_path / file)
        assert torch.equal(alike.backbone.body(IMAGES)[-1], saved.backbone.body(IMAGES)[-1])
        # Norms that are trained take any.
        load_start(create_model("keypoint_rcnn_resnet18_fpn", frozen_norm=False), tmp_path / file)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"part\.pth do not fit .*: bn1\.weight is missing"):
        load_start(create_model("mask_rcnn_resnet18_fpn"), tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"part\.pth do not fit .*: bn1\.weight is missing"):
        load_start(create_model("simple_baseline_resnet18"), tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"checkpoint .* does not exist"):
        load_start(create_model("simple_baseline_resnet18"), tmp_path / "none.pth")
