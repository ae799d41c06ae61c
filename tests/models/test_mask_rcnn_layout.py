"""Sizes and key names of Keypoint R-CNN, as they were listed from the official class."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import pytest
import torch

from pyposeext.errors import InputError
from pyposeext.layers.normalization import FrozenBatchNorm2d
from pyposeext.models import convert_state_dict, create_model, registry
from pyposeext.models.registry import Checkpoint, model_entry
from pyposeext.models.weights import convert_checkpoint, verify_weights

NAME = "keypoint_rcnn_resnet50_fpn"
R50_SHAPES = {
    "backbone.body.conv1.weight": (64, 3, 7, 7),
    "backbone.body.bn1.running_var": (64,),
    "backbone.body.layer1.0.downsample.0.weight": (256, 64, 1, 1),
    "backbone.body.layer1.0.downsample.1.running_mean": (256,),
    "backbone.body.layer3.5.conv2.weight": (256, 256, 3, 3),
    "backbone.body.layer4.2.bn3.bias": (2048,),
    "backbone.fpn.inner_blocks.0.0.weight": (256, 256, 1, 1),
    "backbone.fpn.inner_blocks.3.0.bias": (256,),
    "backbone.fpn.layer_blocks.3.0.weight": (256, 256, 3, 3),
    "rpn.head.conv.0.0.weight": (256, 256, 3, 3),
    "rpn.head.cls_logits.weight": (3, 256, 1, 1),
    "rpn.head.bbox_pred.bias": (12,),
    "roi_heads.box_head.fc6.weight": (1024, 12544),
    "roi_heads.box_head.fc7.bias": (1024,),
    "roi_heads.box_predictor.cls_score.weight": (2, 1024),
    "roi_heads.box_predictor.bbox_pred.weight": (8, 1024),
    "roi_heads.keypoint_head.0.weight": (512, 256, 3, 3),
    "roi_heads.keypoint_head.14.bias": (512,),
    "roi_heads.keypoint_predictor.kps_score_lowres.weight": (512, 17, 4, 4),
}


def meta_model(name, **arguments):
    with torch.device("meta"):
        return create_model(name, **arguments)


def count(part):
    return sum(parameter.numel() for parameter in part.parameters())


def test_resnet50_counts_and_keys():
    model = meta_model(NAME)
    state = model.state_dict()
    assert len(state) == 313
    assert count(model) == 59_137_258
    assert sum(value.numel() for value in state.values()) == 59_243_498
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 58_914_858
    assert {key: tuple(state[key].shape) for key in R50_SHAPES} == R50_SHAPES
    assert count(model.backbone.fpn) == 3_344_384
    assert count(model.rpn) == 593_935
    heads = model.roi_heads
    assert count(heads.box_head) == 13_895_680
    assert count(heads.box_predictor) == 10_250
    assert count(heads.keypoint_head) == 17_698_816
    assert count(heads.keypoint_predictor) == 139_281


def test_resnet101_and_light_counts():
    assert count(meta_model("keypoint_rcnn_resnet101_fpn")) == 78_077_162
    light = meta_model("keypoint_rcnn_efficientnet_lite0_fpn")
    assert count(light) < 12_000_000
    assert count(light) == 4_541_962


def test_other_numbers_of_joints_and_classes():
    model = meta_model(NAME, num_joints=14, num_classes=3)
    state = model.state_dict()
    assert state["roi_heads.keypoint_predictor.kps_score_lowres.weight"].shape == (512, 14, 4, 4)
    assert state["roi_heads.box_predictor.bbox_pred.weight"].shape == (12, 1024)
    assert len(model.skeleton) == 14
    assert meta_model(NAME).skeleton.name == "coco17"


def test_eps_reaches_every_norm():
    for eps in (0.0, 1e-5):
        norms = [m for m in meta_model(NAME, norm_eps=eps).modules() if isinstance(m, FrozenBatchNorm2d)]
        assert len(norms) == 53
        assert {norm.eps for norm in norms} == {eps}


def with_old_names(state):
    def old_name(key):
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        return re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", key)

    return {old_name(key): value for key, value in state.items()}


def test_old_names_load_strictly():
    torch.manual_seed(0)
    official = {key: torch.rand(value.shape) for key, value in meta_model(NAME).state_dict().items()}
    old = with_old_names(official)
    assert "rpn.head.conv.weight" in old
    assert "backbone.fpn.inner_blocks.0.weight" in old
    assert "backbone.fpn.layer_blocks.3.bias" in old
    model = meta_model(NAME)
    model.load_state_dict(convert_state_dict(NAME, old), strict=True, assign=True)
    assert all(torch.equal(value, official[key]) for key, value in model.state_dict().items())


def test_batch_norm_checkpoints_keep_their_eps():
    frozen = {key: torch.ones(value.shape) for key, value in meta_model(NAME).state_dict().items()}
    counters = {
        key.replace("running_var", "num_batches_tracked"): torch.tensor(7) for key in frozen if "running_var" in key
    }
    converted = convert_state_dict(NAME, {**frozen, **counters})
    assert sorted(converted) == sorted(frozen)
    assert torch.equal(converted["backbone.body.bn1.running_var"], torch.full((64,), 1 + 1e-5))
    assert torch.equal(converted["backbone.body.bn1.running_mean"], torch.ones(64))


def test_converting_something_else_says_so():
    with pytest.raises(InputError, match=r"has no 'backbone\.body\.conv1\.weight'"):
        convert_state_dict(NAME, {"conv1.weight": torch.zeros(1)})


def test_known_files_bring_their_eps():
    entry = model_entry(NAME)
    current, legacy = (entry.checkpoint_of(digits + 56 * "0") for digits in ("fc266e95", "9f466800"))
    assert current.arguments == {"norm_eps": 0.0}
    assert legacy.arguments == {"norm_eps": 1e-5}
    assert current.source.endswith("keypointrcnn_resnet50_fpn_coco-fc266e95.pth")
    assert entry.checkpoint_of(64 * "0") is None


def test_convert_checkpoint_recognises_a_file_and_stores_its_arguments(tmp_path, monkeypatch):
    name = "keypoint_rcnn_resnet18_fpn"
    official = create_model(name, frozen_norm=True).state_dict()
    torch.save(with_old_names(official), tmp_path / "official.pth")
    digest = hashlib.sha256((tmp_path / "official.pth").read_bytes()).hexdigest()
    known = Checkpoint("official", "https://example.org/official.pth", "BSD-3-Clause", {"norm_eps": 1e-5}, digest[:8])
    entry = replace(model_entry(name), checkpoints=(known,))
    monkeypatch.setattr(registry, "_ENTRIES", {**registry._ENTRIES, name: entry})
    manifest = convert_checkpoint(tmp_path / "official.pth", name, tmp_path / "ours.safetensors", dtype="float16")
    assert manifest["arguments"]["norm_eps"] == 1e-5
    assert manifest["licence"] == "BSD-3-Clause"
    assert manifest["source_sha256"] == digest
    verified = verify_weights(tmp_path / "ours.safetensors")
    assert verified["model"] == name
    assert verified["tensors"] == len(official)
    model = create_model(name, tmp_path / "ours.safetensors")
    assert model.backbone.body.bn1.eps == 1e-5
    key = "roi_heads.keypoint_head.14.weight"
    torch.testing.assert_close(model.state_dict()[key], official[key], atol=1e-4, rtol=1e-3)
