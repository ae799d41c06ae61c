"""The named Mask R-CNNs and Keypoint R-CNNs that compute what torchvision's compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyposeext.models.mask_rcnn.assembly import Options, pyramid_model, single_map_model
from pyposeext.models.mask_rcnn.checkpoints import (
    KEYPOINT_RCNN_RESNET50,
    MASK_RCNN_RESNET50,
    MASK_RCNN_RESNET50_V2,
    convert_torchvision,
    convert_torchvision_v2,
)
from pyposeext.models.mask_rcnn.conventions import TORCHVISION
from pyposeext.models.mask_rcnn.model import MaskRCNN
from pyposeext.models.registry import register_model

_KEYPOINT_SIZES = (640, 672, 704, 736, 768, 800)


@register_model(convert_torchvision, KEYPOINT_RCNN_RESNET50)
def keypoint_rcnn_resnet50_fpn(
    num_joints: int = 17,
    num_classes: int = 2,
    min_size: int | Sequence[int] = _KEYPOINT_SIZES,
    max_size: int = 1333,
    frozen_norm: bool = True,
    norm_eps: float = 0.0,
    trainable_stages: int = 3,
    proposals: Sequence[int] = (2000, 1000),
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 100,
    keypoint_rois_per_person: int | None = None,
    masks: bool = False,
    head_norm: str | None = None,
    class_agnostic_boxes: bool = False,
    class_agnostic_masks: bool = False,
) -> MaskRCNN:
    """Keypoint R-CNN with a ResNet-50 and a feature pyramid (He et al., "Mask R-CNN", ICCV 2017), torchvision's.

    Args:
        num_joints: K; 17 are COCO's. 0 leaves the keypoint branch out.
        num_classes: with background.
        min_size: what the shorter side of an image becomes; several to draw from in training, the last in evaluation.
        max_size: what its longer side may not exceed.
        frozen_norm: norms with constant statistics, for pretrained weights. From scratch use False: a frozen norm that
            was never loaded does nothing.
        norm_eps: of the frozen norms. The released COCO_V1 file needs 0.0; COCO_LEGACY, and training from an ImageNet
            trunk, 1e-5. Saved with the weights. Ordinary batch norms have 1e-5 always.
        trainable_stages: how many of the trunk's five stages train, from the last one.
        proposals: most proposals of an image, before (per level) and after suppression alike: (training, evaluation).
        score_threshold: detections must exceed it.
        nms_threshold: overlap above which the worse of two detections goes.
        detections_per_image: the most that are kept.
        keypoint_rois_per_person: None trains the joints on every foreground proposal, as published; else on each
            person's own box and at most this many proposals.
        masks: a mask branch too.
        head_norm: "batch" or "group" (32 groups): norms in the box head, which then has four convolutions and one
            fully connected layer, and in the mask head (He and Wu, "Group Normalization", ECCV 2018). None: the
            published heads.
        class_agnostic_boxes, class_agnostic_masks: one box, or one mask, per RoI whatever class it shows.
    """
    return pyramid_model(50, Options(**locals()), TORCHVISION)


@register_model(convert_torchvision, arguments_of=keypoint_rcnn_resnet50_fpn)
def keypoint_rcnn_resnet18_fpn(**arguments: Any) -> MaskRCNN:
    """Keypoint R-CNN with a ResNet-18 and a feature pyramid; the arguments are `keypoint_rcnn_resnet50_fpn`'s."""
    return pyramid_model(18, Options(**arguments), TORCHVISION)


@register_model(convert_torchvision, arguments_of=keypoint_rcnn_resnet50_fpn)
def keypoint_rcnn_resnet101_fpn(**arguments: Any) -> MaskRCNN:
    """Keypoint R-CNN with a ResNet-101 and a feature pyramid; the arguments are `keypoint_rcnn_resnet50_fpn`'s."""
    return pyramid_model(101, Options(**arguments), TORCHVISION)


@register_model(convert_torchvision, MASK_RCNN_RESNET50)
def mask_rcnn_resnet50_fpn(
    num_classes: int = 91,
    num_joints: int = 0,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    frozen_norm: bool = True,
    norm_eps: float = 0.0,
    trainable_stages: int = 3,
    proposals: Sequence[int] = (2000, 1000),
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 100,
    keypoint_rois_per_person: int | None = None,
    head_norm: str | None = None,
    class_agnostic_boxes: bool = False,
    class_agnostic_masks: bool = False,
) -> MaskRCNN:
    """Mask R-CNN with a ResNet-50 and a feature pyramid (He et al., "Mask R-CNN", ICCV 2017), torchvision's.

    Args:
        num_classes: with background. In the 91 of the released file, a label is a category id of COCO, so that 1 is a
            person; ten of the ids are never used.
        num_joints: K of a keypoint branch beside the mask branch; 0 leaves it out.
        norm_eps: of the frozen norms. The released file needs 0.0; training from an ImageNet trunk 1e-5.
        min_size, max_size, frozen_norm, trainable_stages, proposals, score_threshold, nms_threshold,
            detections_per_image, keypoint_rois_per_person, head_norm, class_agnostic_boxes, class_agnostic_masks: as in
            `keypoint_rcnn_resnet50_fpn`.
    """
    return pyramid_model(50, Options(**locals(), masks=True), TORCHVISION)


@register_model(convert_torchvision, arguments_of=mask_rcnn_resnet50_fpn)
def mask_rcnn_resnet18_fpn(**arguments: Any) -> MaskRCNN:
    """Mask R-CNN with a ResNet-18 and a feature pyramid; the arguments are `mask_rcnn_resnet50_fpn`'s."""
    return pyramid_model(18, Options(**arguments, masks=True), TORCHVISION)


@register_model(convert_torchvision, arguments_of=mask_rcnn_resnet50_fpn)
def mask_rcnn_resnet101_fpn(**arguments: Any) -> MaskRCNN:
    """Mask R-CNN with a ResNet-101 and a feature pyramid; the arguments are `mask_rcnn_resnet50_fpn`'s."""
    return pyramid_model(101, Options(**arguments, masks=True), TORCHVISION)


@register_model(convert_torchvision_v2, MASK_RCNN_RESNET50_V2)
def mask_rcnn_resnet50_fpn_v2(
    num_classes: int = 91,
    num_joints: int = 0,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    frozen_norm: bool = False,
    norm_eps: float = 1e-5,
    trainable_stages: int = 3,
    proposals: Sequence[int] = (2000, 1000),
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 100,
    keypoint_rois_per_person: int | None = None,
    head_norm: str | None = "batch",
    class_agnostic_boxes: bool = False,
    class_agnostic_masks: bool = False,
) -> MaskRCNN:
    """Torchvision's second version of Mask R-CNN with a ResNet-50 and a feature pyramid (Li et al., "Benchmarking
    Detection Transfer Learning with Vision Transformers", 2021).

    It has trainable batch norms everywhere, two convolutions in the RPN head, and a box head of four convolutions and
    one fully connected layer.

    Args:
        frozen_norm: keep the trunk's batch statistics in training; then `norm_eps` is what they were trained with.
        head_norm: as in `keypoint_rcnn_resnet50_fpn`, and in the pyramid too.
        num_classes, num_joints, min_size, max_size, trainable_stages, proposals, score_threshold, nms_threshold,
            detections_per_image, keypoint_rois_per_person, class_agnostic_boxes, class_agnostic_masks: as in
            `mask_rcnn_resnet50_fpn`.
    """
    return pyramid_model(50, Options(**locals(), masks=True), TORCHVISION, second_version=True)


@register_model()
def mask_rcnn_resnet50_c4(
    num_classes: int = 91,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    frozen_norm: bool = True,
    norm_eps: float = 1e-5,
    trainable_stages: int = 3,
    candidates: Sequence[int] = (12000, 6000),
    proposals: Sequence[int] = (2000, 1000),
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 100,
    class_agnostic_boxes: bool = False,
    class_agnostic_masks: bool = False,
) -> MaskRCNN:
    """Mask R-CNN on C4 of a ResNet-50, without a pyramid (He et al., ICCV 2017, figure 4, left).

    The trunk's last stage is the box head, and the mask branch is a deconvolution on what it gives. The rules are
    torchvision's, which has published no such model and no weights; for detectron2's there is
    `mask_rcnn_resnet50_c4_detectron2`.

    Args:
        candidates: the best anchors that go into suppression: (training, evaluation).
        proposals: the most that come out of it: (training, evaluation).
        num_classes, min_size, max_size, frozen_norm, norm_eps, trainable_stages, score_threshold, nms_threshold,
            detections_per_image, class_agnostic_boxes, class_agnostic_masks: as in `mask_rcnn_resnet50_fpn`. The stages
            that train include the one in the box head.
    """
    return single_map_model(50, Options(**locals(), num_joints=0, masks=True), TORCHVISION)


@register_model(arguments_of=mask_rcnn_resnet50_c4)
def mask_rcnn_resnet101_c4(**arguments: Any) -> MaskRCNN:
    """Mask R-CNN on C4 of a ResNet-101; the arguments are `mask_rcnn_resnet50_c4`'s, and so is what it says."""
    return single_map_model(101, Options(**arguments, num_joints=0, masks=True), TORCHVISION)
