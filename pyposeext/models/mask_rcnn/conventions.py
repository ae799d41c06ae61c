"""How torchvision and detectron2 compute what the paper leaves open.

Both libraries train the same network, and their weights fit the same modules; the numbers come out right only under the
rules that the weights were trained with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pyposeext.models.mask_rcnn.keypoints import KeypointScore
from pyposeext.models.mask_rcnn.masks import MaskRule
from pyposeext.models.mask_rcnn.transform import Resizing

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Conventions:
    """The rules of one library.

    Attributes:
        mean, std: of the normalisation, RGB, for values in 0..1.
        resizing, keypoint_offset: see `ImageTransform`.
        stride_in_1x1: the stride of a ResNet's bottleneck lies on its first convolution.
        rounded_anchors: anchors in whole pixels.
        fixed_strides: anchors stand at the strides of the network, not at the padded image's side over the map's.
        sampling_ratio, aligned, level_epsilon, epsilon_inside_log: see `RoIPooler`.
        proposal_side, detection_side: the shortest sides in pixels of proposals and detections.
        proposal_beta, box_beta: of the two regression losses, where they turn from a square to a line.
        full_proposal_count: see `ProposalSettings.full_count`.
        keypoint_rois_visible, keypoint_score, mask_rule: see `DetectionSettings`.
    """

    mean: Colour
    std: Colour
    resizing: Resizing
    keypoint_offset: float
    stride_in_1x1: bool
    rounded_anchors: bool
    fixed_strides: bool
    sampling_ratio: int
    aligned: bool
    level_epsilon: float
    epsilon_inside_log: bool
    proposal_side: float
    detection_side: float
    proposal_beta: float
    box_beta: float
    full_proposal_count: bool
    keypoint_rois_visible: bool
    keypoint_score: KeypointScore
    mask_rule: MaskRule


TORCHVISION = Conventions(
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resizing="torchvision",
    keypoint_offset=0.0,
    stride_in_1x1=False,
    rounded_anchors=True,
    fixed_strides=False,
    sampling_ratio=2,
    aligned=False,
    level_epsilon=1e-6,
    epsilon_inside_log=False,
    proposal_side=1e-3,
    detection_side=1e-2,
    proposal_beta=1 / 9,
    box_beta=1 / 9,
    full_proposal_count=False,
    keypoint_rois_visible=False,
    keypoint_score="logit",
    mask_rule="torchvision",
)

# Its networks take BGR in 0..255 less the mean. The same in our terms; the order of the channels is in the weights.
_BGR_MEAN = (103.530, 116.280, 123.675)
# Boxes without area go; the smallest side stands for "more than nothing".
_ANY_SIDE = 1e-30

DETECTRON2 = Conventions(
    mean=(_BGR_MEAN[2] / 255, _BGR_MEAN[1] / 255, _BGR_MEAN[0] / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    resizing="detectron2",
    keypoint_offset=0.5,
    stride_in_1x1=True,
    rounded_anchors=False,
    fixed_strides=True,
    sampling_ratio=0,
    aligned=True,
    level_epsilon=1e-8,
    epsilon_inside_log=True,
    proposal_side=_ANY_SIDE,
    detection_side=_ANY_SIDE,
    proposal_beta=0.0,
    box_beta=0.0,
    full_proposal_count=True,
    keypoint_rois_visible=True,
    keypoint_score="softmax",
    mask_rule="detectron2",
)

DETECTRON2_KEYPOINTS = replace(DETECTRON2, box_beta=0.5)
