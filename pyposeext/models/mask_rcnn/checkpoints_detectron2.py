"""Detectron2's published R-CNN files: their key names, the order of their classes and colours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pyposeext.errors import InputError
from pyposeext.models.registry import Checkpoint

_SOURCE = "https://dl.fbaipublicfiles.com/detectron2/"
_LICENCE = "CC BY-SA 3.0 (detectron2's model zoo)"


def _published(group: str, name: str, file: str) -> Checkpoint:
    """A file of the model zoo; its name ends on the beginning of its MD5 (MODEL_ZOO.md), not of its SHA-256."""
    return Checkpoint(name, f"{_SOURCE}COCO-{group}/{name}/{file}", _LICENCE)


KEYPOINT_RCNN_RESNET50 = (
    _published("Keypoints", "keypoint_rcnn_R_50_FPN_3x", "137849621/model_final_a6e10b.pkl"),
    _published("Keypoints", "keypoint_rcnn_R_50_FPN_1x", "137261548/model_final_04e291.pkl"),
)
KEYPOINT_RCNN_RESNET101 = (_published("Keypoints", "keypoint_rcnn_R_101_FPN_3x", "138363331/model_final_997cc7.pkl"),)
MASK_RCNN_RESNET50 = (
    _published("InstanceSegmentation", "mask_rcnn_R_50_FPN_3x", "137849600/model_final_f10217.pkl"),
    _published("InstanceSegmentation", "mask_rcnn_R_50_FPN_1x", "137260431/model_final_a54504.pkl"),
)
MASK_RCNN_RESNET101 = (
    _published("InstanceSegmentation", "mask_rcnn_R_101_FPN_3x", "138205316/model_final_a3ec72.pkl"),
)
MASK_RCNN_RESNET50_C4 = (
    _published("InstanceSegmentation", "mask_rcnn_R_50_C4_3x", "137849525/model_final_4ce675.pkl"),
    _published("InstanceSegmentation", "mask_rcnn_R_50_C4_1x", "137259246/model_final_9243eb.pkl"),
)
MASK_RCNN_RESNET101_C4 = (
    _published("InstanceSegmentation", "mask_rcnn_R_101_C4_3x", "138363239/model_final_a2914c.pkl"),
)

# COCO numbers its 80 categories from 1 to 90, with these left out. Detectron2 numbers them from 0 to 79.
_UNUSED_COCO_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = tuple(number for number in range(1, 91) if number not in _UNUSED_COCO_IDS)

# Of a class that there is not: its probability is exactly 0, in float16 too.
_NEVER = -1e4

# Held by some files, and known to the builder: the pixels' mean and deviation, and the anchors.
_CONSTANTS = re.compile(r"pixel_(mean|std)$|proposal_generator\.anchor_generator\.")

_STAGE = r"^(?:backbone\.(?:bottom_up\.)?|roi_heads\.)res(\d)\.(\d+)\."
_KEYPOINTS = r"^roi_heads\.keypoint_head\."
_NAMES = (
    (r"^backbone\.(?:bottom_up\.)?stem\.conv1\.weight$", lambda m: "backbone.body.conv1.weight"),
    (r"^backbone\.(?:bottom_up\.)?stem\.conv1\.norm\.(\w+)$", lambda m: f"backbone.body.bn1.{m[1]}"),
    (_STAGE + r"conv(\d)\.weight$", lambda m: f"{_stage(m)}.conv{m[3]}.weight"),
    (_STAGE + r"conv(\d)\.norm\.(\w+)$", lambda m: f"{_stage(m)}.bn{m[3]}.{m[4]}"),
    (_STAGE + r"shortcut\.weight$", lambda m: f"{_stage(m)}.downsample.0.weight"),
    (_STAGE + r"shortcut\.norm\.(\w+)$", lambda m: f"{_stage(m)}.downsample.1.{m[3]}"),
    (r"^backbone\.fpn_lateral(\d)\.(\w+)$", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}.0.{m[2]}"),
    (r"^backbone\.fpn_output(\d)\.(\w+)$", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}.0.{m[2]}"),
    (r"^proposal_generator\.rpn_head\.conv\.(\w+)$", lambda m: f"rpn.head.conv.0.0.{m[1]}"),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.(\w+)$", lambda m: f"rpn.head.cls_logits.{m[1]}"),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.(\w+)$", lambda m: f"rpn.head.bbox_pred.{m[1]}"),
    (r"^roi_heads\.box_head\.fc([12])\.(\w+)$", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 5}.{m[2]}"),
    (r"^roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(\w+)$", lambda m: m[0]),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)$", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}"),
    (r"^roi_heads\.mask_head\.deconv\.(\w+)$", lambda m: f"roi_heads.mask_predictor.conv5_mask.{m[1]}"),
    (r"^roi_heads\.mask_head\.predictor\.(\w+)$", lambda m: f"roi_heads.mask_predictor.mask_fcn_logits.{m[1]}"),
    (
        r"^roi_heads\.keypoint_head\.conv_fcn(\d)\.(\w+)$",
        lambda m: f"roi_heads.keypoint_head.{2 * int(m[1]) - 2}.{m[2]}",
    ),
    (
        r"^roi_heads\.keypoint_head\.score_lowres\.(\w+)$",
        lambda m: f"roi_heads.keypoint_predictor.kps_score_lowres.{m[1]}",
    ),
)


def convert_detectron2(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A detectron2 Mask or Keypoint R-CNN as ours.

    The stem takes RGB in place of BGR, and background becomes class 0. 80 classes become 91, numbered as COCO numbers
    its categories (`COCO_IDS`), so that a label means the same in all models; any other number keeps its order from 1
    on. Frozen norms stay as they are: they have eps 1e-5 there and here.

    Raises:
        InputError: a key that no such model has, or keys that every one has are missing or of no possible shape.
    """
    expected = "state_dict must be of a detectron2 Mask or Keypoint R-CNN"
    bias = state_dict.get("roi_heads.box_predictor.cls_score.bias")
    if bias is None:
        raise InputError(f"{expected}, but has no 'roi_heads.box_predictor.cls_score.bias'")
    if bias.dim() != 1 or len(bias) < 2:
        raise InputError(
            f"{expected} with a background and a class or more, "
            f"but its 'roi_heads.box_predictor.cls_score.bias' is {list(bias.shape)}"
        )
    classes = len(bias) - 1
    converted = {}
    for key, value in state_dict.items():
        if _CONSTANTS.match(key):
            continue
        name = _our_name(key)
        if value.dim() < (4 if name == "backbone.body.conv1.weight" else 1):
            raise InputError(f"{expected}, but its {key!r} is {list(value.shape)}")
        if name == "backbone.body.conv1.weight":
            converted[name] = value.flip(1)
        elif ".box_predictor." in name or ".mask_fcn_logits." in name:
            converted[name] = _our_classes(name, value, classes)
        else:
            converted[name] = value
    return converted


def _our_name(key: str) -> str:
    for pattern, rename in _NAMES:
        match = re.match(pattern, key)
        if match:
            return rename(match)
    raise InputError(f"state_dict must be of a detectron2 Mask or Keypoint R-CNN, got the key {key!r}")


def _stage(match: re.Match[str]) -> str:
    stage = int(match[1]) - 1
    # In a model without a pyramid, the last stage is the box head.
    owner = "roi_heads.box_head" if match[0].startswith("roi_heads.") else "backbone.body"
    return f"{owner}.layer{stage}.{match[2]}"


def _our_classes(name: str, value: Tensor, classes: int) -> Tensor:
    """Weight or bias of an output layer, from `classes` classes and background last to background first."""
    labels = torch.tensor(COCO_IDS if classes == len(COCO_IDS) else range(1, classes + 1))
    is_logit = ".cls_score." in name
    each = 4 if ".bbox_pred." in name else 1
    if len(value) != each * (classes + is_logit):
        # One box or one mask for all classes.
        return value
    by_class = value.reshape(-1, each, *value.shape[1:])
    moved = by_class.new_zeros((int(labels.max()) + 1, *by_class.shape[1:]))
    if is_logit and value.dim() == 1:
        moved.fill_(_NEVER)
    moved[labels] = by_class[:classes]
    if is_logit:
        moved[0] = by_class[classes]
    return moved.reshape(-1, *value.shape[1:])
