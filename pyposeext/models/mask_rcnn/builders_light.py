"""The named Keypoint R-CNN for CPUs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pyposeext.errors import InputError
from pyposeext.layers.anchors import AnchorGenerator
from pyposeext.layers.efficientnet_lite import EfficientNetLite0
from pyposeext.layers.fpn import LightFeaturePyramid
from pyposeext.layers.normalization import Norm, group_norm
from pyposeext.models.mask_rcnn.assembly import check_classes, image_sizes, pair_of_counts
from pyposeext.models.mask_rcnn.box_heads import BoxPredictor, TwoLayerHead
from pyposeext.models.mask_rcnn.keypoints import KeypointPredictor, LightKeypointHead
from pyposeext.models.mask_rcnn.model import MaskRCNN, PyramidBackbone
from pyposeext.models.mask_rcnn.roi_heads import Branch, DetectionSettings, RoIHeads, RoIPooler
from pyposeext.models.mask_rcnn.rpn import LightProposalHead, ProposalSettings, RegionProposalNetwork
from pyposeext.models.mask_rcnn.transform import ImageTransform
from pyposeext.models.registry import register_model
from pyposeext.skeletons import skeleton_of

# EfficientNet-Lite was trained on (value - 127) / 128; the batch statistics of its published stem agree.
_LITE_NORMALISATION = ((127 / 255,) * 3, (128 / 255,) * 3)


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
    check_classes(num_classes)
    skeleton = skeleton_of(num_joints)
    norms: dict[str, Norm] = {"batch": nn.BatchNorm2d, "group": group_norm}
    if head_norm not in norms:
        raise InputError(f"head_norm must be 'batch' or 'group', got {head_norm!r}")
    norm = norms[head_norm]
    body = EfficientNetLite0(frozen_norm, frozen_blocks)
    anchors = AnchorGenerator(anchor_sizes)
    counts = pair_of_counts("proposals", proposals)
    box_width = 256
    roi_heads = RoIHeads(
        Branch(
            RoIPooler(7),
            TwoLayerHead(pyramid_channels * 7 * 7, box_width),
            BoxPredictor(box_width, num_classes),
        ),
        DetectionSettings(
            batch_size=box_batch_size,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            detections_per_image=detections_per_image,
            keypoint_rois_per_person=keypoint_rois_per_person,
        ),
        keypoint=Branch(
            RoIPooler(14, canonical_size=448),
            LightKeypointHead(pyramid_channels, keypoint_channels, keypoint_blocks, norm),
            KeypointPredictor(keypoint_channels, num_joints),
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
        ImageTransform(image_sizes(min_size), max_size, *_LITE_NORMALISATION, keypoint_offset=0.5),
        skeleton,
        num_classes,
    )
