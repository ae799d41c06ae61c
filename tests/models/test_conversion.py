"""What `convert_state_dict` takes: any file of its model, however it is wrapped, and of no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyposeext.errors import InputError
from pyposeext.models import convert_state_dict, create_model
from pyposeext.models.weights import state_dict_differences

MASK, KEYPOINT = "mask_rcnn_resnet50_fpn", "keypoint_rcnn_resnet50_fpn"
LITE = "keypoint_rcnn_efficientnet_lite0_fpn"


def meta_model(name: str, **arguments: Any) -> Any:
    """Without memory: only names and shapes matter here."""
    with torch.device("meta"):
        return create_model(name, **arguments)


def published_hrnet(**arguments: Any) -> dict[str, Any]:
    state_dict = meta_model("hrnet_w18_small", **arguments).state_dict()
    return {name.removeprefix("trunk.").replace("head.conv", "final_layer"): v for name, v in state_dict.items()}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (MASK, {"num_classes": 5}),
        (MASK, {"num_joints": 14, "class_agnostic_boxes": True, "class_agnostic_masks": True}),
        (MASK, {"head_norm": "group"}),
        (MASK, {"head_norm": "batch", "frozen_norm": False}),
        (KEYPOINT, {"num_joints": 5, "masks": True}),
        ("mask_rcnn_resnet50_fpn_v2", {"head_norm": None}),
        ("mask_rcnn_resnet50_c4", {"num_classes": 2, "class_agnostic_masks": True}),
        (LITE, {"num_joints": 16, "head_norm": "group"}),
        (LITE, {}),
    ],
)
def test_counts_and_norms_of_the_file_itself(name: str, arguments: dict[str, Any]) -> None:
    model = meta_model(name, **arguments)
    assert state_dict_differences(model, convert_state_dict(name, model.state_dict())) == []


def test_other_widths_are_said() -> None:
    state_dict = meta_model(LITE, pyramid_channels=64).state_dict()
    with pytest.raises(InputError, match=f"does not fit {LITE}: .* is "):
        convert_state_dict(LITE, state_dict)
    assert convert_state_dict(LITE, state_dict, pyramid_channels=64).keys() == state_dict.keys()


@pytest.mark.parametrize("num_joints", [16, 17])
def test_wrapped_as_training_saves_it(num_joints: int) -> None:
    published = published_hrnet(num_joints=num_joints)
    expected = convert_state_dict("hrnet_w18_small", published)
    assert len(expected["head.conv.bias"]) == num_joints
    parallel = {f"module.{name}": value for name, value in published.items()}
    for content in (parallel, {"epoch": 3, "state_dict": published}, {"best_state_dict": parallel}):
        assert convert_state_dict("hrnet_w18_small", content).keys() == expected.keys()
    for nothing in ({}, {"epoch": 3}, [published]):
        with pytest.raises(InputError, match="official_state_dict must hold a state dict"):
            convert_state_dict("hrnet_w18_small", nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "of", "message"),
    [
        (KEYPOINT, MASK, r"roi_heads\.keypoint_head\.0\.weight is missing"),
        ("mask_rcnn_resnet50_fpn_v2", MASK, r"rpn\.head\.conv\.1\.0\.weight is missing"),
        (MASK, "mask_rcnn_resnet50_fpn_v2", r"backbone\.fpn\.inner_blocks\.0\.0\.bias is missing"),
        ("mask_rcnn_resnet101_fpn", MASK, r"backbone\.body\.layer3\.6\.conv1\.weight is missing"),
        (LITE, KEYPOINT, "head_norm must be 'batch' or 'group', got None"),
    ],
)
def test_files_of_other_models(name: str, of: str, message: str) -> None:
    with pytest.raises(InputError, match=f"official_state_dict does not fit {name}: {message}"):
        convert_state_dict(name, meta_model(of).state_dict())


def test_foreign_and_impossible_entries() -> None:
    foreign = {**meta_model(MASK).state_dict(), "foo.bar": torch.zeros(3)}
    with pytest.raises(InputError, match=rf"does not fit {MASK}: foo\.bar is not of this model$"):
        convert_state_dict(MASK, foreign)
    with pytest.raises(InputError, match=rf"does not fit {LITE}: .* is missing"):
        convert_state_dict(LITE, {"x": torch.zeros(1)})
    bias, stem = "roi_heads.box_predictor.cls_score.bias", "backbone.bottom_up.stem.conv1.weight"
    for content, message in (
        ({bias: torch.zeros(1)}, r"a background and a class or more, but its .* is \[1\]"),
        ({bias: torch.tensor(0.0)}, r"a background and a class or more, but its .* is \[\]"),
        ({bias: torch.zeros(3), stem: torch.zeros(1)}, rf"but its '{stem}' is \[1\]"),
        ({bias: torch.zeros(3)}, rf"does not fit {MASK}_detectron2: .* is missing"),
    ):
        with pytest.raises(InputError, match=message):
            convert_state_dict(f"{MASK}_detectron2", content)
