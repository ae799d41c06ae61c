"""The second stage: what is in each proposal, where exactly, its outline and its joints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyposeext import ops
from pyposeext.layers.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes, not_smaller_than
from pyposeext.layers.matching import BELOW, match_boxes, sample_balanced
from pyposeext.models.mask_rcnn.keypoints import (
    KeypointScore,
    decode_keypoints,
    keypoint_loss,
    select_keypoint_rois,
)
from pyposeext.models.mask_rcnn.masks import (
    MaskRule,
    all_mask_targets,
    mask_loss,
    mask_probabilities,
    select_mask_rois,
)
from pyposeext.models.mask_rcnn.rpn import ignored
from pyposeext.models.mask_rcnn.transform import ImageBatch, Target

PYRAMID_SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@dataclass(frozen=True)
class DetectionSettings:
    """How proposals are sampled in training and detections chosen in evaluation.

    Attributes:
        foreground: overlap from which a proposal answers for a ground truth; below it is background.
        batch_size: proposals of an image that the losses look at.
        positive_fraction: the most of them that are foreground.
        score_threshold: detections must exceed it.
        nms_threshold: overlap above which the worse of two detections of one class goes.
        detections_per_image: the most that are kept.
        smallest_side: in pixels; detections with a shorter side go.
        box_beta: where the regression loss turns from a square to a line; 0 is all line.
        keypoint_rois_per_person: None, or see `select_keypoint_rois`.
        keypoint_rois_visible: see `select_keypoint_rois`.
        keypoint_score: "logit", or "softmax", detectron2's; see `pyposeext.ops.roi_heatmaps_to_keypoints`.
        mask_rule: how masks become targets, and are pasted; see `mask_targets` and `pyposeext.ops.paste_masks`.
    """

    foreground: float = 0.5
    batch_size: int = 512
    positive_fraction: float = 0.25
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections_per_image: int = 100
    smallest_side: float = 1e-2
    box_beta: float = 1 / 9
    keypoint_rois_per_person: int | None = None
    keypoint_rois_visible: bool = False
    keypoint_score: KeypointScore = "logit"
    mask_rule: MaskRule = "torchvision"


@dataclass(frozen=True)
class RoIPooler:
    """Pools RoIs out of P2..P5, each from the level that suits its size (FPN, equation 1).

    Attributes:
        output_size: cells along a side.
        sampling_ratio: samples along a side of a cell; 0 takes one per pixel of the map.
        canonical_size: side in pixels of the boxes pooled from P4.
        aligned: see `pyposeext.ops.roi_align`.
        scales: pixels of each map per pixel of the image.
        level_epsilon, epsilon_inside_log: see `pyposeext.ops.multiscale_roi_align`.
    """

    output_size: int
    sampling_ratio: int = 2
    canonical_size: int = 224
    aligned: bool = False
    scales: tuple[float, ...] = PYRAMID_SCALES
    level_epsilon: float = 1e-6
    epsilon_inside_log: bool = False

    def __call__(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Maps P2..P5 and the boxes [R_i, 4] of each image to [R, C, output_size, output_size]."""
        return ops.multiscale_roi_align(
            list(features),
            [image_boxes.float() for image_boxes in boxes],
            self.output_size,
            list(self.scales),
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            canonical_size=self.canonical_size,
            level_epsilon=self.level_epsilon,
            epsilon_inside_log=self.epsilon_inside_log,
        )


@dataclass(frozen=True)
class Branch:
    """What looks at RoIs for one purpose: boxes, masks or keypoints.

    Attributes:
        pool: from feature maps and boxes to features of each; None takes what the box head makes of them.
        head, predictor: from these to the outputs.
    """

    pool: RoIPooler | None
    head: nn.Module
    predictor: nn.Module


@dataclass
class Samples:
    """The proposals of one image that the losses look at: boxes [S, 4], labels [S] (0 background), matches [S]."""

    boxes: Tensor
    labels: Tensor
    matches: Tensor


class RoIHeads(nn.Module):
    """The box branch, and a mask branch, a keypoint branch, both or none.

    Args:
        box: its predictor gives class logits and box deltas.
        settings: counts, thresholds and rules.
        mask: its predictor gives logits [R, C or 1, m, m].
        keypoint: its predictor gives logits [R, K, m, m].
    """

    def __init__(
        self, box: Branch, settings: DetectionSettings, mask: Branch | None = None, keypoint: Branch | None = None
    ) -> None:
        super().__init__()
        assert box.pool is not None
        self.box_pool = box.pool
        self.box_head = box.head
        self.box_predictor = box.predictor
        self.has_masks = mask is not None
        if mask is not None:
            self.mask_pool = mask.pool
            self.mask_head = mask.head
            self.mask_predictor = mask.predictor
        self.has_keypoints = keypoint is not None
        if keypoint is not None:
            assert keypoint.pool is not None
            self.keypoint_pool = keypoint.pool
            self.keypoint_head = keypoint.head
            self.keypoint_predictor = keypoint.predictor
        self.settings = settings

    def losses(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """The losses of the second stage on proposals [P_i, 4] of each image."""
        samples = [self._sample(image, target) for image, target in zip(proposals, targets, strict=True)]
        pooled = self.box_head(self.box_pool(features, [sample.boxes for sample in samples]))
        logits, deltas = self.box_predictor(pooled)
        losses = _box_losses(logits, deltas, samples, targets, self.settings.box_beta)
        if self.has_masks:
            losses["loss_mask"] = self._mask_loss(features, pooled, samples, targets)
        if self.has_keypoints:
            losses["loss_keypoint"] = self._keypoint_loss(features, samples, targets)
        return losses

    def detect(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], batch: ImageBatch
    ) -> list[dict[str, Any]]:
        """boxes [D_i, 4] in the batch's pixels, labels [D_i] and scores [D_i] of each image, best first."""
        logits, deltas = self.box_predictor(self.box_head(self.box_pool(features, proposals)))
        counts = [len(boxes) for boxes in proposals]
        scores = logits.float().softmax(dim=-1).split(counts)
        boxes = decode_boxes(deltas, torch.cat(list(proposals)), _BOX_WEIGHTS).split(counts)
        return [
            self._choose(image_boxes, image_scores, size)
            for image_boxes, image_scores, size in zip(boxes, scores, batch.sizes, strict=True)
        ]

    def keypoints(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], heatmaps: bool = False
    ) -> list[dict[str, Any]]:
        """keypoints [R_i, K, 3], keypoint_scores [R_i, K], and on wish keypoint_heatmaps [R_i, K, m, m], per image."""
        logits = self.keypoint_predictor(self.keypoint_head(self.keypoint_pool(features, boxes)))
        points, scores = decode_keypoints(logits, torch.cat(list(boxes)), self.settings.keypoint_score)
        counts = [len(image_boxes) for image_boxes in boxes]
        parts = {"keypoints": points.split(counts), "keypoint_scores": scores.split(counts)}
        if heatmaps:
            parts["keypoint_heatmaps"] = logits.split(counts)
        return [{name: part[index] for name, part in parts.items()} for index in range(len(boxes))]

    def masks(self, features: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """The probabilities [R_i, m, m] inside the boxes [R_i, 4] of each image, of the classes [R_i]."""
        if self.mask_pool is None:
            pooled = self.box_head(self.box_pool(features, boxes))
        else:
            pooled = self.mask_pool(features, boxes)
        cells = mask_probabilities(self.mask_predictor(self.mask_head(pooled)), torch.cat(list(labels)))
        return list(cells.split([len(image_boxes) for image_boxes in boxes]))

    @torch.no_grad()
    def _sample(self, proposals: Tensor, target: Target) -> Samples:
        settings = self.settings
        boxes = torch.cat([proposals, target["boxes"]])
        matches = match_boxes(box_iou(target["boxes"], boxes), settings.foreground, settings.foreground)
        negative = (matches == BELOW) & ~ignored(boxes, target)
        positives, negatives = sample_balanced(matches >= 0, negative, settings.batch_size, settings.positive_fraction)
        kept = torch.cat([positives, negatives]).sort().values
        matches = matches[kept]
        labels = torch.zeros_like(matches)
        labels[matches >= 0] = target["labels"][matches[matches >= 0]]
        return Samples(boxes[kept], labels, matches)

    def _mask_loss(
        self, features: Sequence[Tensor], pooled: Tensor, samples: Sequence[Samples], targets: Sequence[Target]
    ) -> Tensor:
        """`pooled` is what the box head made of the samples, for a mask branch that shares it."""
        rows = [select_mask_rois(sample.labels, target) for sample, target in zip(samples, targets, strict=True)]
        boxes = [sample.boxes[chosen] for sample, chosen in zip(samples, rows, strict=True)]
        if self.mask_pool is None:
            counts = [len(sample.labels) for sample in samples]
            pooled = torch.cat([part[chosen] for part, chosen in zip(pooled.split(counts), rows, strict=True)])
        else:
            pooled = self.mask_pool(features, boxes)
        logits = self.mask_predictor(self.mask_head(pooled))
        matches = [sample.matches[chosen] for sample, chosen in zip(samples, rows, strict=True)]
        labels = torch.cat([sample.labels[chosen] for sample, chosen in zip(samples, rows, strict=True)])
        wanted = all_mask_targets(boxes, matches, targets, logits.shape[-1], self.settings.mask_rule)
        return mask_loss(logits, labels, wanted)

    def _keypoint_loss(
        self, features: Sequence[Tensor], samples: Sequence[Samples], targets: Sequence[Target]
    ) -> Tensor:
        boxes, people = [], []
        for sample, target in zip(samples, targets, strict=True):
            foreground = sample.labels > 0
            image_boxes, image_people = select_keypoint_rois(
                sample.boxes[foreground],
                sample.matches[foreground],
                target,
                self.settings.keypoint_rois_per_person,
                self.settings.keypoint_rois_visible,
            )
            boxes.append(image_boxes)
            people.append(image_people)
        logits = self.keypoint_predictor(self.keypoint_head(self.keypoint_pool(features, boxes)))
        return keypoint_loss(logits, boxes, people, targets)

    def _choose(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """Boxes [P, C, 4], or [P, 1, 4] for all classes, and scores [P, C] of one image to its detections."""
        classes = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        boxes = clip_boxes(boxes, size).expand(-1, scores.shape[1], 4)[:, 1:].reshape(-1, 4)
        scores, labels = scores[:, 1:].flatten(), classes[:, 1:].flatten()
        kept = torch.where(scores > self.settings.score_threshold)[0]
        kept = kept[not_smaller_than(boxes[kept], self.settings.smallest_side)]
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        kept = ops.batched_nms(boxes, scores, labels, self.settings.nms_threshold)
        kept = kept[: self.settings.detections_per_image]
        return {"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]}


def _box_losses(
    logits: Tensor, deltas: Tensor, samples: Sequence[Samples], targets: Sequence[Target], beta: float
) -> dict[str, Tensor]:
    labels = torch.cat([sample.labels for sample in samples])
    matched = torch.cat(
        [target["boxes"][sample.matches[sample.labels > 0]] for sample, target in zip(samples, targets, strict=True)]
    )
    foreground = torch.where(labels > 0)[0]
    boxes = torch.cat([sample.boxes for sample in samples])[foreground]
    by_class = deltas.float().view(len(deltas), deltas.shape[1] // 4, 4)
    predicted = by_class[foreground, labels[foreground] if by_class.shape[1] > 1 else 0]
    regression = F.smooth_l1_loss(predicted, encode_boxes(matched, boxes, _BOX_WEIGHTS), beta=beta, reduction="sum")
    count = max(len(labels), 1)
    classification = F.cross_entropy(logits.float(), labels, reduction="sum") / count
    return {"loss_classifier": classification, "loss_box_reg": regression / count}
