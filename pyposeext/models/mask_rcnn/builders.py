"""The named Keypoint R-CNNs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from pyposeext.errors import InputError
from pyposeext.layers.anchors import AnchorGenerator
from pyposeext.layers.efficientnet_lite import EfficientNetLite0
from pyposeext.layers.fpn import FeaturePyramid, LightFeaturePyramid
from pyposeext.layers.normalization import FrozenBatchNorm2d, Norm, group_norm
from pyposeext.layers.resnet import ResNet
from pyposeext.models.mask_rcnn.checkpoints import KEYPOINT_RCNN_RESNET50, convert_torchvision
from pyposeext.models.mask_rcnn.keypoints import KeypointHead, KeypointPredictor, LightKeypointHead
from pyposeext.models.mask_rcnn.model import MaskRCNN, PyramidBackbone
from pyposeext.models.mask_rcnn.roi_heads import BoxPredictor, DetectionSettings, RoIHeads, RoIPooler, TwoLayerHead
from pyposeext.models.mask_rcnn.rpn import LightProposalHead, ProposalHead, ProposalSettings, RegionProposalNetwork
from pyposeext.models.mask_rcnn.transform import ImageTransform
from pyposeext.models.registry import register_model
from pyposeext.skeletons import COCO17
from pyposeext.structures import Skeleton

_KEYPOINT_SIZES = (640, 672, 704, 736, 768, 800)
# EfficientNet-Lite was trained on (value - 127) / 128; the batch statistics of its published stem agree.
_LITE_NORMALISATION = ((127 / 255,) * 3, (128 / 255,) * 3)


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
) -> MaskRCNN:
    """Keypoint R-CNN with a ResNet-50 and a feature pyramid (He et al., "Mask R-CNN", ICCV 2017), torchvision's.

    Args:
        num_joints: K; 17 are COCO's.
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
    """
    return _resnet_model(50, **locals())


@register_model(convert_torchvision, arguments_of=keypoint_rcnn_resnet50_fpn)
def keypoint_rcnn_resnet18_fpn(**arguments: Any) -> MaskRCNN:
    """Keypoint R-CNN with a ResNet-18 and a feature pyramid; the arguments are `keypoint_rcnn_resnet50_fpn`'s."""
    return _resnet_model(18, **arguments)


@register_model(convert_torchvision, arguments_of=keypoint_rcnn_resnet50_fpn)
def keypoint_rcnn_resnet101_fpn(**arguments: Any) -> MaskRCNN:
    """Keypoint R-CNN with a ResNet-101 and a feature pyramid; the arguments are `keypoint_rcnn_resnet50_fpn`'s."""
    return _resnet_model(101, **arguments)


@register_model()
def keypoint_rcnn_efficientnet_lite0_fpn(
    num_joints: int = 17,
    num_classes: int = 2,
    min_size: int | Sequence[int] = 320,
    max_size: int = 576,
    frozen_norm: bool = True,
    frozen_blocks: int = 0,
    head_norm: str = "batch",
    pyramid_channels: int = 96,
    keypoint_channels: int = 176,
    keypoint_blocks: int = 4,
    anchor_sizes: Sequence[int] = (32, 64, 128, 256),
    proposals: Sequence[int] = (300, 150),
    rpn_batch_size: int = 128,
    box_batch_size: int = 64,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 50,
    keypoint_rois_per_person: int | None = 4,
) -> MaskRCNN:
    """Keypoint R-CNN for CPUs, this package's own: EfficientNet-Lite0, a light pyramid and light heads.

    It differs from the published design in its parts (depthwise separable convolutions, batch norm in the heads), in
    that proposals come from P3..P6 only, that keypoints are pooled from one level finer, and in smaller counts.

    Args:
        num_joints, num_classes, min_size, max_size, score_threshold, nms_threshold, detections_per_image, proposals: as
            in `keypoint_rcnn_resnet50_fpn`.
        frozen_norm: keep the trunk's batch statistics in training. They are those of the loaded weights: with random
            ones use False.
        frozen_blocks: the stem and this many of the trunk's 16 blocks do not train; 0 trains all.
        head_norm: "batch", or "group" where the RoIs of a training batch are few.
        pyramid_channels, keypoint_channels, keypoint_blocks: widths of pyramid and keypoint head, and its depth.
        anchor_sizes: one per level, from P3 on where four are given, from P2 on where five.
        rpn_batch_size, box_batch_size: anchors and proposals of an image that the losses look at.
        keypoint_rois_per_person: as in `keypoint_rcnn_resnet50_fpn`; few, or the keypoints take most of the time.
    """
    skeleton = _checked_skeleton(num_joints, num_classes)
    norms: dict[str, Norm] = {"batch": nn.BatchNorm2d, "group": group_norm}
    if head_norm not in norms:
        raise InputError(f"head_norm must be 'batch' or 'group', got {head_norm!r}")
    norm = norms[head_norm]
    body = EfficientNetLite0(frozen_norm, frozen_blocks)
    anchors = AnchorGenerator(anchor_sizes)
    counts = _counts(proposals)
    box_width = 256
    roi_heads = RoIHeads(
        RoIPooler(7),
        TwoLayerHead(pyramid_channels * 7 * 7, box_width),
        BoxPredictor(box_width, num_classes),
        RoIPooler(14, canonical_size=448),
        LightKeypointHead(pyramid_channels, keypoint_channels, keypoint_blocks, norm),
        KeypointPredictor(keypoint_channels, num_joints),
        DetectionSettings(
            batch_size=box_batch_size,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            detections_per_image=detections_per_image,
            keypoint_rois_per_person=keypoint_rois_per_person,
        ),
    )
    return MaskRCNN(
        PyramidBackbone(body, LightFeaturePyramid(body.channels, pyramid_channels, norm)),
        RegionProposalNetwork(
            LightProposalHead(pyramid_channels, anchors.count),
            anchors,
            ProposalSettings(before_nms=counts, after_nms=counts, batch_size=rpn_batch_size),
        ),
        roi_heads,
        ImageTransform(_sizes(min_size), max_size, *_LITE_NORMALISATION, keypoint_offset=0.5),
        skeleton,
        num_classes,
    )


def _checked_skeleton(num_joints: int, num_classes: int) -> Skeleton:
    """COCO's skeleton for 17 joints, else one of that many joints without names of their own."""
    if num_joints < 1:
        raise InputError(f"num_joints must be at least 1, got {num_joints}")
    if num_classes < 2:
        raise InputError(f"num_classes must be at least 2, background and persons, got {num_classes}")
    if num_joints == len(COCO17):
        return COCO17
    return Skeleton(f"joints{num_joints}", tuple(f"joint_{index}" for index in range(num_joints)), (), ())


def _resnet_model(
    depth: int,
    num_joints: int,
    num_classes: int,
    min_size: int | Sequence[int],
    max_size: int,
    frozen_norm: bool,
    norm_eps: float,
    trainable_stages: int,
    proposals: Sequence[int],
    score_threshold: float,
    nms_threshold: float,
    detections_per_image: int,
    keypoint_rois_per_person: int | None,
) -> MaskRCNN:
    skeleton = _checked_skeleton(num_joints, num_classes)
    norm: Norm = partial(FrozenBatchNorm2d, eps=norm_eps) if frozen_norm else nn.BatchNorm2d
    body = ResNet(depth, norm, trainable_stages)
    fpn = FeaturePyramid(body.channels)
    anchors = AnchorGenerator((32, 64, 128, 256, 512))
    counts = _counts(proposals)
    keypoint_head = KeypointHead(fpn.out_channels)
    return MaskRCNN(
        PyramidBackbone(body, fpn),
        RegionProposalNetwork(
            ProposalHead(fpn.out_channels, anchors.count),
            anchors,
            ProposalSettings(before_nms=counts, after_nms=counts),
        ),
        RoIHeads(
            RoIPooler(7),
            TwoLayerHead(fpn.out_channels * 7 * 7),
            BoxPredictor(1024, num_classes),
            RoIPooler(14),
            keypoint_head,
            KeypointPredictor(512, num_joints),
            DetectionSettings(
                score_threshold=score_threshold,
                nms_threshold=nms_threshold,
                detections_per_image=detections_per_image,
                keypoint_rois_per_person=keypoint_rois_per_person,
            ),
        ),
        ImageTransform(_sizes(min_size), max_size),
        skeleton,
        num_classes,
    )


def _sizes(min_size: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (min_size,) if isinstance(min_size, int) else tuple(min_size)
    if not sizes or min(sizes) < 1:
        raise InputError(f"min_size must be one or several positive numbers of pixels, got {min_size}")
    return sizes


def _counts(proposals: Sequence[int]) -> tuple[int, int]:
    if len(proposals) != 2 or min(proposals) < 1:
        raise InputError(f"proposals must be two positive counts (training, evaluation), got {proposals}")
    return proposals[0], proposals[1]
