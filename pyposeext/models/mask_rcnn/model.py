"""Mask R-CNN: boxes, and joints in each box, from a feature pyramid.

He, Gkioxari, Dollar and Girshick, "Mask R-CNN", ICCV 2017, as torchvision computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyposeext.models.mask_rcnn.checks import check_boxes, check_images, check_targets
from pyposeext.models.mask_rcnn.roi_heads import RoIHeads
from pyposeext.models.mask_rcnn.rpn import RegionProposalNetwork
from pyposeext.models.mask_rcnn.transform import ImageTransform, Target, move_boxes
from pyposeext.structures import Skeleton


class PyramidBackbone(nn.Module):
    """A trunk and a feature pyramid on it: [N, 3, H, W] to the maps P2..P6."""

    def __init__(self, body: nn.Module, fpn: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn

    def forward(self, input: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.fpn(self.body(input))
        return features


class MaskRCNN(nn.Module):
    """The detector.

    Args:
        backbone: [N, 3, H, W] to P2..P6 at strides 4 to 64.
        rpn: proposals from the coarsest of these maps, as many as it has anchor levels.
        roi_heads: boxes and joints from P2..P5.
        transform: from images to a batch and back.
        skeleton: what the joints are.
        num_classes: with background, class 0; class 1 is a person.

    Attributes:
        skeleton, num_classes, transform: as given.
    """

    def __init__(
        self,
        backbone: nn.Module,
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads,
        transform: ImageTransform,
        skeleton: Skeleton,
        num_classes: int = 2,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.transform = transform
        self.skeleton = skeleton
        self.num_classes = num_classes

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        resize: bool = True,
        heatmaps: bool = False,
    ) -> Any:
        """Losses in training, detections in evaluation.

        Args:
            images: float RGB in 0..1, each [3, h, w], of any sizes.
            targets: in training one dict per image, in its pixels: "boxes" float [n, 4] (x1, y1, x2, y2), "labels"
                int64 [n] in 1..num_classes-1, "keypoints" float [n, K, 3] (x, y, visibility; 0 is not labelled).
                "keypoints" may be missing: then the image trains the boxes alone. Optional are "keypoint_weights"
                [n, K], and "ignore" [m, 4], regions with unlabelled people, which count neither for nor against.
            resize: False takes the images at the size they have.
            heatmaps: also give the heatmaps in evaluation.

        Returns:
            In training a dict of scalars: loss_objectness, loss_rpn_box_reg, loss_classifier, loss_box_reg,
            loss_keypoint; their sum is the loss. In evaluation one dict per image, best detection first, in the image's
            pixels: "boxes" [D, 4], "labels" [D], "scores" [D] in 0..1, "keypoints" [D, K, 3] (x, y, 1),
            "keypoint_scores" [D, K], raw logits, and on wish "keypoint_heatmaps" [D, K, 56, 56] in its box.

        Raises:
            InputError: an image or a target that is not as above; the sentence names it.
        """
        check_images(images)
        if self.training:
            check_targets(images, targets, self.num_classes, len(self.skeleton))
        else:
            targets = None
        batch, moved = self.transform(images, targets, self.training, resize, self._memory_format())
        features = self.backbone(batch.tensor)
        levels = len(self.rpn.anchors.sizes)
        proposals, losses = self.rpn(batch, features[-levels:], moved)
        if moved is not None:
            return {**losses, **self.roi_heads.losses(features[:4], proposals, moved)}
        return self.transform.restore(self.roi_heads.detect(features[:4], proposals, batch, heatmaps), batch)

    def poses_in_boxes(
        self, images: Sequence[Tensor], boxes: Sequence[Tensor], resize: bool = True, heatmaps: bool = False
    ) -> list[dict[str, Any]]:
        """The joints in given boxes: the trunk and the keypoint branch alone.

        Args:
            images: as in `forward`.
            boxes: [n_i, 4] for each image, in its pixels.
            resize, heatmaps: as in `forward`.

        Returns:
            One dict per image: "keypoints" [n_i, K, 3] and "keypoint_scores" [n_i, K], in the order of the boxes.
        """
        check_images(images)
        check_boxes(images, boxes)
        batch, _ = self.transform(images, None, False, resize, self._memory_format())
        features = self.backbone(batch.tensor)[:4]
        moved = [
            move_boxes(image_boxes.to(batch.tensor), original, size)
            for image_boxes, original, size in zip(boxes, batch.original_sizes, batch.sizes, strict=True)
        ]
        return self.transform.restore(self.roi_heads.keypoints(features, moved, heatmaps), batch)

    def _memory_format(self) -> torch.memory_format:
        stem = next(parameter for parameter in self.backbone.parameters() if parameter.dim() == 4)
        channels_last = stem.is_contiguous(memory_format=torch.channels_last) and not stem.is_contiguous()
        return torch.channels_last if channels_last else torch.contiguous_format
