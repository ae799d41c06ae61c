"""Puts the parts of a Mask R-CNN together from the arguments that its named builders share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from pyposeext.errors import InputError
from pyposeext.layers.anchors import AnchorGenerator
from pyposeext.layers.fpn import FeaturePyramid
from pyposeext.layers.normalization import FrozenBatchNorm2d, Norm
from pyposeext.layers.resnet import ResNet, resnet_stage
from pyposeext.models.mask_rcnn.box_heads import BoxPredictor, ConvolutionalHead, StageHead, TwoLayerHead
from pyposeext.models.mask_rcnn.conventions import Conventions
from pyposeext.models.mask_rcnn.keypoints import KeypointHead, KeypointPredictor, initialise
from pyposeext.models.mask_rcnn.masks import MaskHead, MaskPredictor
from pyposeext.models.mask_rcnn.model import MaskRCNN, PyramidBackbone, SingleMapBackbone
from pyposeext.models.mask_rcnn.roi_heads import PYRAMID_SCALES, Branch, DetectionSettings, RoIHeads, RoIPooler
from pyposeext.models.mask_rcnn.rpn import ProposalHead, ProposalSettings, RegionProposalNetwork
from pyposeext.models.mask_rcnn.transform import ImageTransform
from pyposeext.skeletons import NO_JOINTS, skeleton_of
from pyposeext.structures import Skeleton

ANCHOR_SIZES = (32, 64, 128, 256, 512)
_PYRAMID_STRIDES = (4, 8, 16, 32, 64)
_HEAD_NORMS: dict[str | None, Norm | None] = {
    None: None,
    "batch": nn.BatchNorm2d,
    "group": partial(nn.GroupNorm, 32),
}


@dataclass(frozen=True)
class Options:
    """The builders' arguments by their names; their docstrings describe them.

    Attributes:
        masks: whether there is a mask branch; with `num_joints` 0 there is no keypoint branch.
        candidates: the best anchors of a level before suppression, (training, evaluation); None: as many as proposals.
    """

    num_classes: int
    num_joints: int
    masks: bool
    min_size: int | Sequence[int]
    max_size: int
    frozen_norm: bool
    norm_eps: float
    trainable_stages: int
    class_agnostic_boxes: bool
    class_agnostic_masks: bool
    proposals: Sequence[int]
    score_threshold: float
    nms_threshold: float
    detections_per_image: int
    keypoint_rois_per_person: int | None = None
    head_norm: str | None = None
    candidates: Sequence[int] | None = None

    @property
    def skeleton(self) -> Skeleton:
        """Of the keypoint branch; no joints without one."""
        return NO_JOINTS if self.num_joints == 0 else skeleton_of(self.num_joints)

    def trunk_norm(self) -> Norm:
        """What builds the trunk's norms."""
        return partial(FrozenBatchNorm2d, eps=self.norm_eps) if self.frozen_norm else nn.BatchNorm2d

    def proposal_settings(self, conventions: Conventions) -> ProposalSettings:
        """The RPN's."""
        after = pair_of_counts("proposals", self.proposals)
        return ProposalSettings(
            before_nms=after if self.candidates is None else pair_of_counts("candidates", self.candidates),
            after_nms=after,
            smallest_side=conventions.proposal_side,
            beta=conventions.proposal_beta,
            full_count=conventions.full_proposal_count,
        )

    def detection_settings(self, conventions: Conventions) -> DetectionSettings:
        """The RoI heads'."""
        return DetectionSettings(
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            detections_per_image=self.detections_per_image,
            smallest_side=conventions.detection_side,
            box_beta=conventions.box_beta,
            keypoint_rois_per_person=self.keypoint_rois_per_person,
            keypoint_rois_visible=conventions.keypoint_rois_visible,
            keypoint_score=conventions.keypoint_score,
            mask_rule=conventions.mask_rule,
        )

    def transform(self, conventions: Conventions, divisor: int = 32) -> ImageTransform:
        """From images to a batch."""
        return ImageTransform(
            image_sizes(self.min_size),
            self.max_size,
            conventions.mean,
            conventions.std,
            conventions.keypoint_offset,
            conventions.resizing,
            divisor,
        )

    def mask_predictor(self, in_channels: int) -> MaskPredictor:
        """For features of so many channels."""
        return MaskPredictor(in_channels, 1 if self.class_agnostic_masks else self.num_classes)


def pyramid_model(depth: int, options: Options, conventions: Conventions, second_version: bool = False) -> MaskRCNN:
    """A Mask R-CNN on a ResNet of that depth with a feature pyramid.

    `second_version` is torchvision's: two convolutions in the RPN head, and the heads' norm in the pyramid too.
    """
    check_classes(options.num_classes)
    skeleton = options.skeleton
    norm = _head_norm(options.head_norm)
    body = ResNet(depth, options.trunk_norm(), options.trainable_stages, conventions.stride_in_1x1)
    fpn = FeaturePyramid(body.channels, norm=norm if second_version else None)
    channels = fpn.out_channels
    anchors = AnchorGenerator(
        ANCHOR_SIZES,
        rounded=conventions.rounded_anchors,
        strides=_PYRAMID_STRIDES if conventions.fixed_strides else None,
    )
    box = Branch(
        pooler(7, conventions),
        TwoLayerHead(channels * 7 * 7) if norm is None else ConvolutionalHead(channels, 7, norm),
        BoxPredictor(1024, options.num_classes, options.class_agnostic_boxes),
    )
    mask, keypoint = None, None
    if options.masks:
        mask = Branch(pooler(14, conventions), MaskHead(channels, norm=norm), options.mask_predictor(256))
    if options.num_joints:
        keypoint = Branch(pooler(14, conventions), KeypointHead(channels), KeypointPredictor(512, options.num_joints))
    head = ProposalHead(channels, anchors.count, depth=2 if second_version else 1)
    return MaskRCNN(
        PyramidBackbone(body, fpn),
        RegionProposalNetwork(head, anchors, options.proposal_settings(conventions)),
        RoIHeads(box, options.detection_settings(conventions), mask, keypoint),
        options.transform(conventions),
        skeleton,
        options.num_classes,
    )


def single_map_model(depth: int, options: Options, conventions: Conventions) -> MaskRCNN:
    """A Mask R-CNN on C4 of a ResNet of that depth; its last stage is the box head, and the mask branch shares it."""
    check_classes(options.num_classes)
    norm = options.trunk_norm()
    body = ResNet(depth, norm, options.trainable_stages, conventions.stride_in_1x1, with_layer4=False)
    layer4 = resnet_stage(depth, 4, norm, conventions.stride_in_1x1)
    for module in layer4.modules():
        if isinstance(module, nn.Conv2d):
            initialise(module)
    layer4.requires_grad_(options.trainable_stages > 0)
    in_channels, out_channels = body.channels[2:]
    anchors = AnchorGenerator(
        (ANCHOR_SIZES,), rounded=conventions.rounded_anchors, strides=(16,) if conventions.fixed_strides else None
    )
    box = Branch(
        pooler(14, conventions, (1 / 16,)),
        StageHead(layer4),
        BoxPredictor(out_channels, options.num_classes, options.class_agnostic_boxes),
    )
    mask = Branch(None, nn.Identity(), options.mask_predictor(out_channels)) if options.masks else None
    return MaskRCNN(
        SingleMapBackbone(body),
        RegionProposalNetwork(
            ProposalHead(in_channels, anchors.count), anchors, options.proposal_settings(conventions)
        ),
        RoIHeads(box, options.detection_settings(conventions), mask),
        # Detectron2 pads these batches to nothing but the largest image.
        options.transform(conventions, divisor=1 if conventions.fixed_strides else 32),
        NO_JOINTS,
        options.num_classes,
    )


def pooler(size: int, conventions: Conventions, scales: tuple[float, ...] = PYRAMID_SCALES) -> RoIPooler:
    """RoIAlign to `size` cells a side under a library's rules."""
    return RoIPooler(
        size,
        conventions.sampling_ratio,
        aligned=conventions.aligned,
        scales=scales,
        level_epsilon=conventions.level_epsilon,
        epsilon_inside_log=conventions.epsilon_inside_log,
    )


def check_classes(num_classes: int) -> None:
    """At least background and one class."""
    if num_classes < 2:
        raise InputError(f"num_classes must be at least 2, background and persons, got {num_classes}")


def image_sizes(min_size: int | Sequence[int]) -> tuple[int, ...]:
    """One or several lengths of the shorter side."""
    sizes = (min_size,) if isinstance(min_size, int) else tuple(min_size)
    if not sizes or min(sizes) < 1:
        raise InputError(f"min_size must be one or several positive numbers of pixels, got {min_size}")
    return sizes


def pair_of_counts(name: str, counts: Sequence[int]) -> tuple[int, int]:
    """(training, evaluation)."""
    if len(counts) != 2 or min(counts) < 1:
        raise InputError(f"{name} must be two positive counts (training, evaluation), got {counts}")
    return counts[0], counts[1]


def _head_norm(name: str | None) -> Norm | None:
    if name not in _HEAD_NORMS:
        raise InputError(f"head_norm must be None, 'batch' or 'group', got {name!r}")
    return _HEAD_NORMS[name]
