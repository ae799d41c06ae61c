"""Sizes and key names of the R-CNNs, as they were listed from torchvision's classes."""

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
from pyposeext.models.weights import convert_checkpoint, state_dict_differences, verify_weights

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


MASK = "mask_rcnn_resnet50_fpn"
MASK_SHAPES = {
    "roi_heads.box_head.fc6.weight": (1024, 12544),
    "roi_heads.box_predictor.cls_score.weight": (91, 1024),
    "roi_heads.box_predictor.bbox_pred.weight": (364, 1024),
    "roi_heads.mask_head.0.0.weight": (256, 256, 3, 3),
    "roi_heads.mask_head.3.0.bias": (256,),
    "roi_heads.mask_predictor.conv5_mask.weight": (256, 256, 2, 2),
    "roi_heads.mask_predictor.mask_fcn_logits.weight": (91, 256, 1, 1),
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


def test_mask_resnet50_counts_and_keys():
    model = meta_model(MASK)
    state = model.state_dict()
    assert len(state) == 307
    assert count(model) == 44_401_393
    assert sum(value.numel() for value in state.values()) == 44_507_633
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 44_178_993
    assert len(meta_model(MASK, frozen_norm=False).state_dict()) == 360
    trunk = {key: shape for key, shape in R50_SHAPES.items() if not key.startswith("roi_heads")}
    expected = trunk | MASK_SHAPES
    assert {key: tuple(state[key].shape) for key in expected} == expected
    assert sum(value.numel() for value in model.backbone.body.state_dict().values()) == 23_561_152
    assert count(model.backbone.fpn) == 3_344_384
    assert count(model.rpn) == 593_935
    heads = model.roi_heads
    assert count(heads.box_head) == 13_895_680
    assert count(heads.box_predictor) == 466_375
    assert count(heads.mask_head) == 2_360_320
    assert count(heads.mask_predictor) == 285_787
    assert not [key for key in state if "keypoint" in key]


def test_second_version_counts_and_keys():
    model = meta_model("mask_rcnn_resnet50_fpn_v2")
    state = model.state_dict()
    assert len(state) == 432
    assert count(model) == 46_359_409
    assert sum(value.numel() for value in state.values()) == 46_359_409 + 61_381
    heads = model.roi_heads
    parts = (
        (model.backbone.fpn, 3_350_536),
        (model.rpn, 1_184_015),
        (heads.box_head, 15_209_476),
        (heads.mask_head, 2_363_396),
    )
    for part, expected in parts:
        assert sum(value.numel() for value in part.state_dict().values()) == expected
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {1e-5}
    assert not [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    for key in (
        "backbone.fpn.inner_blocks.3.0.weight",
        "backbone.fpn.layer_blocks.0.1.running_var",
        "rpn.head.conv.1.0.bias",
        "roi_heads.box_head.3.1.num_batches_tracked",
        "roi_heads.box_head.5.weight",
        "roi_heads.mask_head.3.1.bias",
    ):
        assert key in state
    assert "backbone.fpn.inner_blocks.3.0.bias" not in state
    assert "roi_heads.mask_head.0.0.bias" not in state


def test_resnet101_and_light_counts():
    assert count(meta_model("mask_rcnn_resnet101_fpn")) == 63_341_297
    body = meta_model("mask_rcnn_resnet101_fpn").backbone.body
    assert sum(value.numel() for value in body.state_dict().values()) == 42_605_504
    assert count(meta_model("keypoint_rcnn_resnet101_fpn")) == 78_077_162
    light = meta_model("keypoint_rcnn_efficientnet_lite0_fpn")
    assert count(light) < 12_000_000
    assert count(light) == 4_541_962


def test_branches_combine():
    everything = meta_model(MASK, num_joints=17, num_classes=2)
    assert everything.has_masks
    assert everything.has_keypoints
    assert everything.skeleton.name == "coco17"
    assert set(everything.state_dict()) == set(meta_model(NAME, masks=True).state_dict())
    assert count(everything) == count(meta_model(NAME)) + 2_360_320 + 285_787 - 89 * 257
    boxes_alone = meta_model(NAME, num_joints=0)
    assert not boxes_alone.has_masks
    assert not boxes_alone.has_keypoints
    assert count(boxes_alone) == count(meta_model(NAME)) - 17_698_816 - 139_281
    assert len(meta_model(MASK).skeleton) == 0


def test_norms_in_the_heads():
    model = meta_model(MASK, head_norm="group")
    norms = [module for module in model.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {(norm.num_groups, norm.num_channels) for norm in norms} == {(32, 256)}
    assert len(norms) == 8
    assert "roi_heads.box_head.5.weight" in model.state_dict()
    assert "backbone.fpn.inner_blocks.0.0.bias" in model.state_dict()
    with pytest.raises(InputError, match="head_norm must be None, 'batch' or 'group', got 'layer'"):
        meta_model(MASK, head_norm="layer")


def test_class_agnostic_outputs():
    state = meta_model(MASK, class_agnostic_boxes=True, class_agnostic_masks=True).state_dict()
    assert state["roi_heads.box_predictor.bbox_pred.weight"].shape == (4, 1024)
    assert state["roi_heads.box_predictor.cls_score.weight"].shape == (91, 1024)
    assert state["roi_heads.mask_predictor.mask_fcn_logits.weight"].shape == (1, 256, 1, 1)


def test_models_without_a_pyramid():
    model = meta_model("mask_rcnn_resnet50_c4")
    state = model.state_dict()
    shapes = {
        "backbone.body.layer3.5.conv3.weight": (1024, 256, 1, 1),
        "rpn.head.conv.0.0.weight": (1024, 1024, 3, 3),
        "rpn.head.cls_logits.weight": (15, 1024, 1, 1),
        "rpn.head.bbox_pred.weight": (60, 1024, 1, 1),
        "roi_heads.box_head.layer4.0.conv2.weight": (512, 512, 3, 3),
        "roi_heads.box_predictor.cls_score.weight": (91, 2048),
        "roi_heads.mask_predictor.conv5_mask.weight": (2048, 256, 2, 2),
        "roi_heads.mask_predictor.mask_fcn_logits.weight": (91, 256, 1, 1),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    assert not [key for key in state if "body.layer4" in key or "fpn" in key or "mask_head" in key]
    trained = {
        name.partition("layer")[2][0] for name, p in model.named_parameters() if "layer" in name and p.requires_grad
    }
    assert trained == {"2", "3", "4"}
    frozen = meta_model("mask_rcnn_resnet50_c4", trainable_stages=0)
    assert not [name for name, p in frozen.named_parameters() if p.requires_grad and "layer" in name]


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
        key = re.sub(r"mask_head\.(\d)\.0\.", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}.", key)
        return re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", key)

    return {old_name(key): value for key, value in state.items()}


def test_old_names_load_strictly():
    torch.manual_seed(0)
    model = meta_model(MASK, num_joints=17)
    official = {key: torch.rand(value.shape) for key, value in model.state_dict().items()}
    old = with_old_names(official)
    assert "rpn.head.conv.weight" in old
    assert "backbone.fpn.inner_blocks.0.weight" in old
    assert "backbone.fpn.layer_blocks.3.bias" in old
    assert "roi_heads.mask_head.mask_fcn4.bias" in old
    model.load_state_dict(convert_state_dict(MASK, old), strict=True, assign=True)
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


def test_the_second_version_keeps_its_batch_norms():
    name = "mask_rcnn_resnet50_fpn_v2"
    official = {key: torch.ones(value.shape, dtype=value.dtype) for key, value in meta_model(name).state_dict().items()}
    converted = convert_state_dict(name, official)
    assert sorted(converted) == sorted(official)
    assert all(converted[key] is official[key] for key in official)
    with pytest.raises(InputError, match=r"has no 'backbone\.body\.conv1\.weight'"):
        convert_state_dict(name, {"conv1.weight": torch.zeros(1)})


def test_trained_batch_norms_can_be_frozen():
    trained, frozen = (meta_model("mask_rcnn_resnet18_fpn", frozen_norm=choice) for choice in (False, True))
    state = trained.state_dict()
    assert "backbone.body.bn1.num_batches_tracked" in state
    assert state_dict_differences(frozen, state) == []
    assert state_dict_differences(frozen, {**state, "fc.num_batches_tracked": torch.zeros(())}) != []


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
    mask = model_entry(MASK).checkpoint_of("bf2d0c1e" + 56 * "0")
    assert mask.arguments == {"norm_eps": 0.0}
    second = model_entry("mask_rcnn_resnet50_fpn_v2").checkpoint_of("73cbd019" + 56 * "0")
    assert second.source == "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"


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
