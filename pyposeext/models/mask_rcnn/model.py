"""Mask R-CNN: boxes, and in each box the outline of what it shows and its joints.

He, Gkioxari, Dollar and Girshick, "Mask R-CNN", ICCV 2017, as torchvision computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyposeext.errors import InputError
from pyposeext.models.mask_rcnn.checks import check_boxes, check_images, check_targets
from pyposeext.models.mask_rcnn.masks import MaskForm, MaskRule, checked_form, masks_in_image
from pyposeext.models.mask_rcnn.roi_heads import RoIHeads
from pyposeext.models.mask_rcnn.rpn import RegionProposalNetwork
from pyposeext.models.mask_rcnn.transform import ImageBatch, ImageTransform, Target, move_boxes
from pyposeext.structures import Skeleton

_KEYPOINT_KEYS = ("keypoints", "keypoint_weights")


class PyramidBackbone(nn.Module):
    """A trunk and a feature pyramid on it: [N, 3, H, W] to the maps P2..P6."""

    def __init__(self, body: nn.Module, fpn: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn

    def forward(self, input: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.fpn(self.body(input))
        return features


class SingleMapBackbone(nn.Module):
    """A trunk alone: [N, 3, H, W] to its last map, in a list."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.body(input)
        return features[-1:]


class MaskRCNN(nn.Module):
    """The detector.

    Args:
        backbone: [N, 3, H, W] to P2..P6 at strides 4 to 64, or to C4 alone.
        rpn: proposals from the coarsest of these maps, as many as it has anchor levels.
        roi_heads: boxes, masks and joints from P2..P5, or from C4.
        transform: from images to a batch and back.
        skeleton: what the joints are; `NO_JOINTS` without a keypoint branch.
        num_classes: with background, class 0; class 1 is a person.

    Attributes:
        skeleton, num_classes, transform: as given.
        has_masks, has_keypoints: which branches there are beside the box branch.
        mask_rule: how masks are laid into the image; see `pyposeext.ops.paste_masks`.
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
        self.has_masks = roi_heads.has_masks
        self.has_keypoints = roi_heads.has_keypoints
        self.mask_rule: MaskRule = roi_heads.settings.mask_rule

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        resize: bool = True,
        heatmaps: bool = False,
        masks: MaskForm = "soft",
    ) -> Any:
        """Losses in training, detections in evaluation.

        Args:
            images: float RGB in 0..1, each [3, h, w], of any sizes.
            targets: in training one dict per image, in its pixels: "boxes" float [n, 4] (x1, y1, x2, y2), "labels"
                int64 [n] in 1..num_classes-1, "keypoints" float [n, K, 3] (x, y, visibility; 0 is not labelled),
                "masks" uint8 or bool [n, h, w] of 0 and 1. "keypoints" and "masks" may be missing: then the image
                trains the other branches. Optional are "keypoint_weights" [n, K], and "ignore" [m, 4], regions with
                unlabelled people, which count neither for nor against.
            resize: False takes the images at the size they have.
            heatmaps: also give the heatmaps in evaluation.
            masks: in evaluation "soft": float [D, 1, h, w] in 0..1, torchvision's; "binary": bool [D, h, w], set where
                that is at least 0.5; "rle": a list of D {"size": [h, w], "counts": bytes}, the same in COCO's encoding;
                "cells": probabilities [D, m, m] inside the boxes.

        Returns:
            In training a dict of scalars, whose sum is the loss: loss_objectness, loss_rpn_box_reg, loss_classifier,
            loss_box_reg, and of the branches that there are loss_mask and loss_keypoint. In evaluation one dict per
            image, best detection first, in the image's pixels: "boxes" [D, 4], "labels" [D], "scores" [D] in 0..1; with
            a keypoint branch "keypoints" [D, K, 3] (x, y, 1), "keypoint_scores" [D, K], raw logits in models that
            follow torchvision, and on wish "keypoint_heatmaps" [D, K, 56, 56] in its box; with a mask branch "masks".

        Raises:
            InputError: an image or a target that is not as above; the sentence names it.
        """
        form = checked_form(masks)
        check_images(images)
        if self.training:
            check_targets(images, targets, self.num_classes, len(self.skeleton), self.has_masks)
            assert targets is not None
            targets = [self._without_unused(target) for target in targets]
        else:
            targets = None
        batch, moved = self.transform(images, targets, self.training, resize, self._memory_format())
        features, proposals, losses = self._propose(batch, moved)
        if moved is not None:
            return {**losses, **self.roi_heads.losses(features, proposals, moved)}
        detections = self.roi_heads.detect(features, proposals, batch)
        boxes = [detection["boxes"] for detection in detections]
        if self.has_keypoints:
            for detection, found in zip(detections, self.roi_heads.keypoints(features, boxes, heatmaps), strict=True):
                detection.update(found)
        if self.has_masks:
            labels = [detection["labels"] for detection in detections]
            for detection, cells in zip(detections, self.roi_heads.masks(features, boxes, labels), strict=True):
                detection["masks"] = cells
        detections = self.transform.restore(detections, batch)
        if self.has_masks:
            # Masks are laid into the images as they were given, not into the batch's.
            for detection, size in zip(detections, batch.original_sizes, strict=True):
                cells, found_boxes = detection["masks"], detection["boxes"]
                detection["masks"] = masks_in_image(cells, found_boxes, size, form, self.mask_rule)
        return detections

    def detect_boxes(self, images: Sequence[Tensor], resize: bool = True) -> list[dict[str, Any]]:
        """Detections without masks and joints: "boxes" [D, 4], "labels" [D] and "scores" [D] as `forward` gives them.

        Args:
            images, resize: as in `forward`.
        """
        check_images(images)
        batch, _ = self.transform(images, None, False, resize, self._memory_format())
        features, proposals, _ = self._propose(batch, None)
        return self.transform.restore(self.roi_heads.detect(features, proposals, batch), batch)

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

        Raises:
            InputError: wrong images or boxes, or a model without a keypoint branch.
        """
        if not self.has_keypoints:
            name = getattr(self, "model_name", "this model")
            raise InputError(f"poses_in_boxes needs a model with a keypoint branch, but {name} was built without one")
        check_images(images)
        check_boxes(images, boxes)
        batch, _ = self.transform(images, None, False, resize, self._memory_format())
        features = self._features(batch)[:4]
        moved = [
            move_boxes(image_boxes.to(batch.tensor), original, size)
            for image_boxes, original, size in zip(boxes, batch.original_sizes, batch.sizes, strict=True)
        ]
        return self.transform.restore(self.roi_heads.keypoints(features, moved, heatmaps), batch)

    def _propose(
        self, batch: ImageBatch, targets: Sequence[Target] | None
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """The maps that RoIs are pooled from, the proposals of each image, and in training the losses of these."""
        features = self._features(batch)
        proposals, losses = self.rpn(batch, features[-self.rpn.anchors.levels :], targets)
        return features[:4], proposals, losses

    def _without_unused(self, target: Target) -> Target:
        unused = (*(() if self.has_masks else ("masks",)), *(() if self.has_keypoints else _KEYPOINT_KEYS))
        return {key: value for key, value in target.items() if key not in unused}

    def _features(self, batch: ImageBatch) -> list[Tensor]:
        """The maps of the pyramid, in the dtype of the weights."""
        features: list[Tensor] = self.backbone(batch.tensor.to(self._stem().dtype))
        return features

    def _stem(self) -> Tensor:
        return next(parameter for parameter in self.backbone.parameters() if parameter.dim() == 4)

    def _memory_format(self) -> torch.memory_format:
        stem = self._stem()
        channels_last = stem.is_contiguous(memory_format=torch.channels_last) and not stem.is_contiguous()
        return torch.channels_last if channels_last else torch.contiguous_format
