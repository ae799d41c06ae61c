"""Torchvision's published R-CNN files: their key names and the facts that are not in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyposeext.errors import InputError
from pyposeext.models.registry import Checkpoint

_SOURCE = "https://download.pytorch.org/models/"
_BATCH_NORM_EPS = 1e-5


def _published(name: str, **arguments: Any) -> Checkpoint:
    """A file of torchvision's; its name ends on the beginning of its SHA-256."""
    licence = "BSD-3-Clause (torchvision)"
    return Checkpoint(name, f"{_SOURCE}{name}.pth", licence, arguments, sha256=name.rpartition("-")[2])


# Which eps a file needs is written nowhere in it.
KEYPOINT_RCNN_RESNET50 = (
    _published("keypointrcnn_resnet50_fpn_coco-fc266e95", norm_eps=0.0),
    _published("keypointrcnn_resnet50_fpn_coco-9f466800", norm_eps=1e-5),
)
MASK_RCNN_RESNET50 = (_published("maskrcnn_resnet50_fpn_coco-bf2d0c1e", norm_eps=0.0),)
MASK_RCNN_RESNET50_V2 = (_published("maskrcnn_resnet50_fpn_v2_coco-73cbd019"),)


def convert_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision Mask or Keypoint R-CNN as ours: the names of files from before 2022 become the present ones.

    The result is for the builders' default, frozen norms with eps 0. Where the file holds ordinary batch norms (told by
    their `num_batches_tracked`), their eps of 1e-5 is therefore added to the variances.

    Raises:
        InputError: the keys are not those of such a model.
    """
    _check(state_dict)
    converted = {}
    for key, value in state_dict.items():
        if key.endswith(".num_batches_tracked"):
            continue
        is_batch_norm = key.endswith(".running_var") and key.replace("running_var", "num_batches_tracked") in state_dict
        converted[_present_name(key)] = value + _BATCH_NORM_EPS if is_batch_norm else value
    return converted


def convert_torchvision_v2(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision Mask R-CNN of the second version as ours: the names are the same, and so are the batch norms.

    Raises:
        InputError: the keys are not those of such a model.
    """
    _check(state_dict)
    return dict(state_dict)


def _check(state_dict: Mapping[str, Tensor]) -> None:
    for key in ("backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.weight"):
        if key not in state_dict:
            raise InputError(f"state_dict must be of a torchvision R-CNN with a ResNet FPN, but has no {key!r}")


def _present_name(key: str) -> str:
    key = re.sub(r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1", key)
    key = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", key)
    return re.sub(
        r"^roi_heads\.mask_head\.mask_fcn(\d+)\.", lambda match: f"roi_heads.mask_head.{int(match[1]) - 1}.0.", key
    )
