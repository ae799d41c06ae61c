"""The named Mask R-CNNs and Keypoint R-CNNs that compute what detectron2's do, for the weights of its model zoo.

What differs from torchvision stands in `conventions.DETECTRON2`. Two things are only nearly the same: images are
resized by PyTorch's antialiased bilinear kernel, rounded to 8 bits, in place of Pillow's (single values differ by
1/255), and training masks are cut out of bitmaps, as detectron2 does with bitmaps, where its published models used
polygons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyposeext.models.mask_rcnn import checkpoints_detectron2 as published
from pyposeext.models.mask_rcnn.assembly import Options, pyramid_model, single_map_model
from pyposeext.models.mask_rcnn.checkpoints_detectron2 import convert_detectron2
from pyposeext.models.mask_rcnn.conventions import DETECTRON2, DETECTRON2_KEYPOINTS
from pyposeext.models.mask_rcnn.model import MaskRCNN
from pyposeext.models.registry import register_model

_SIZES = (640, 672, 704, 736, 768, 800)


@register_model(convert_detectron2, published.KEYPOINT_RCNN_RESNET50)
def keypoint_rcnn_resnet50_fpn_detectron2(
    num_joints: int = 17,
    num_classes: int = 2,
    min_size: int | Sequence[int] = _SIZES,
    max_size: int = 1333,
    frozen_norm: bool = True,
    norm_eps: float = 1e-5,
    trainable_stages: int = 3,
    candidates: Sequence[int] = (2000, 1000),
    proposals: Sequence[int] = (1500, 1000),
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 100,
    keypoint_rois_per_person: int | None = None,
    masks: bool = False,
    class_agnostic_boxes: bool = False,
    class_agnostic_masks: bool = False,
) -> MaskRCNN:
    """Detectron2's Keypoint R-CNN with a ResNet-50 and a feature pyramid (He et al., "Mask R-CNN", ICCV 2017).

    Keypoint scores are detectron2's: about the probability of the place, and they can exceed 1.

    Args:
        candidates: the best anchors of a level that go into suppression: (training, evaluation).
        proposals: the most that come out of it in an image: (training, evaluation).
        keypoint_rois_per_person: None trains the joints on every foreground proposal with a visible joint of its person
            inside, as published; else as in `keypoint_rcnn_resnet50_fpn`.
        num_joints, num_classes, min_size, max_size, frozen_norm, norm_eps, trainable_stages, score_threshold,
            nms_threshold, detections_per_image, masks, class_agnostic_boxes, class_agnostic_masks: as in
            `keypoint_rcnn_resnet50_fpn`.
    """
    return pyramid_model(50, Options(**locals()), DETECTRON2_KEYPOINTS)


@register_model(
    convert_detectron2, published.KEYPOINT_RCNN_RESNET101, arguments_of=keypoint_rcnn_resnet50_fpn_detectron2
)
def keypoint_rcnn_resnet101_fpn_detectron2(**arguments: Any) -> MaskRCNN:
    """As `keypoint_rcnn_resnet50_fpn_detectron2`, with a ResNet-101."""
    return pyramid_model(101, Options(**arguments), DETECTRON2_KEYPOINTS)


@register_model(convert_detectron2, published.MASK_RCNN_RESNET50)
def mask_rcnn_resnet50_fpn_detectron2(
    num_classes: int = 91,
    num_joints: int = 0,
    min_size: int | Sequence[int] = _SIZES,
    max_size: int = 1333,
    frozen_norm: bool = True,
    norm_eps: float = 1e-5,
    trainable_stages: int = 3,
    candidates: Sequence[int] = (2000, 1000),
    proposals: Sequence[int] = (1000, 1000),
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 100,
    keypoint_rois_per_person: int | None = None,
    class_agnostic_boxes: bool = False,
    class_agnostic_masks: bool = False,
) -> MaskRCNN:
    """Detectron2's Mask R-CNN with a ResNet-50 and a feature pyramid (He et al., "Mask R-CNN", ICCV 2017).

    Args:
        num_classes: with background. The published 80 classes become 91, so that a label is a category id of COCO as in
            `mask_rcnn_resnet50_fpn`, and 1 is a person.
        num_joints: K of a keypoint branch beside the mask branch; 0 leaves it out.
        min_size, max_size, frozen_norm, norm_eps, trainable_stages, candidates, proposals, score_threshold,
            nms_threshold, detections_per_image, keypoint_rois_per_person, class_agnostic_boxes, class_agnostic_masks:
            as in `keypoint_rcnn_resnet50_fpn_detectron2`.
    """
    return pyramid_model(50, Options(**locals(), masks=True), DETECTRON2)


@register_model(convert_detectron2, published.MASK_RCNN_RESNET101, arguments_of=mask_rcnn_resnet50_fpn_detectron2)
def mask_rcnn_resnet101_fpn_detectron2(**arguments: Any) -> MaskRCNN:
    """As `mask_rcnn_resnet50_fpn_detectron2`, with a ResNet-101."""
    return pyramid_model(101, Options(**arguments, masks=True), DETECTRON2)


@register_model(convert_detectron2, published.MASK_RCNN_RESNET50_C4)
def mask_rcnn_resnet50_c4_detectron2(
    num_classes: int = 91,
    min_size: int | Sequence[int] = _SIZES,
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
    """Detectron2's Mask R-CNN on C4 of a ResNet-50, without a pyramid (He et al., ICCV 2017, figure 4, left).

    The arguments are those of `mask_rcnn_resnet50_c4`, with the classes of `mask_rcnn_resnet50_fpn_detectron2`.
    """
    return single_map_model(50, Options(**locals(), num_joints=0, masks=True), DETECTRON2)


@register_model(convert_detectron2, published.MASK_RCNN_RESNET101_C4, arguments_of=mask_rcnn_resnet50_c4_detectron2)
def mask_rcnn_resnet101_c4_detectron2(**arguments: Any) -> MaskRCNN:
    """As `mask_rcnn_resnet50_c4_detectron2`, with a ResNet-101."""
    return single_map_model(101, Options(**arguments, num_joints=0, masks=True), DETECTRON2)
