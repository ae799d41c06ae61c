"""The second stage: what is in each proposal, where exactly, and where its joints are."""

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
from pyposeext.models.mask_rcnn.keypoints import decode_keypoints, keypoint_loss, select_keypoint_rois
from pyposeext.models.mask_rcnn.rpn import ignored
from pyposeext.models.mask_rcnn.transform import ImageBatch, Target

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
        keypoint_rois_per_person: None, or see `select_keypoint_rois`.
    """

    foreground: float = 0.5
    batch_size: int = 512
    positive_fraction: float = 0.25
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections_per_image: int = 100
    keypoint_rois_per_person: int | None = None


@dataclass(frozen=True)
class RoIPooler:
    """Pools RoIs out of P2..P5, each from the level that suits its size (FPN, equation 1).

    Attributes:
        output_size: cells along a side.
        sampling_ratio: samples along a side of a cell.
        canonical_size: side in pixels of the boxes pooled from P4.
        aligned: see `pyposeext.ops.roi_align`.
    """

    output_size: int
    sampling_ratio: int = 2
    canonical_size: int = 224
    aligned: bool = False

    def __call__(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Maps P2..P5 and the boxes [R_i, 4] of each image to [R, C, output_size, output_size]."""
        return ops.multiscale_roi_align(
            list(features),
            [image_boxes.float() for image_boxes in boxes],
            self.output_size,
            [1 / 4, 1 / 8, 1 / 16, 1 / 32],
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            canonical_size=self.canonical_size,
        )


class TwoLayerHead(nn.Module):
    """Two fully connected layers with ReLU: [R, C, p, p] to [R, width]."""

    def __init__(self, in_features: int, width: int = 1024) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_features, width)
        self.fc7 = nn.Linear(width, width)

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(self.fc7(F.relu(self.fc6(input.flatten(1)))))


class BoxPredictor(nn.Module):
    """Class logits [R, C] (background first) and deltas of every class [R, 4 * C]."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes)
        self.bbox_pred = nn.Linear(in_features, 4 * num_classes)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(input), self.bbox_pred(input)


@dataclass
class Samples:
    """The proposals of one image that the losses look at: boxes [S, 4], labels [S] (0 background), matches [S]."""

    boxes: Tensor
    labels: Tensor
    matches: Tensor


class RoIHeads(nn.Module):
    """The box branch and the keypoint branch.

    Args:
        box_pool, box_head, box_predictor: the box branch.
        keypoint_pool, keypoint_head, keypoint_predictor: the keypoint branch.
        settings: counts and thresholds.
    """

    def __init__(
        self,
        box_pool: RoIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        keypoint_pool: RoIPooler,
        keypoint_head: nn.Module,
        keypoint_predictor: nn.Module,
        settings: DetectionSettings,
    ) -> None:
        super().__init__()
        self.box_pool = box_pool
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.keypoint_pool = keypoint_pool
        self.keypoint_head = keypoint_head
        self.keypoint_predictor = keypoint_predictor
        self.settings = settings

    def losses(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """The losses of the second stage on proposals [P_i, 4] of each image."""
        samples = [self._sample(image, target) for image, target in zip(proposals, targets, strict=True)]
        logits, deltas = self.box_predictor(self.box_head(self.box_pool(features, [s.boxes for s in samples])))
        return {**_box_losses(logits, deltas, samples, targets), **self._keypoint_losses(features, samples, targets)}

    def detect(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], batch: ImageBatch, heatmaps: bool = False
    ) -> list[dict[str, Any]]:
        """Detections of each image in the batch's pixels, best first; see `MaskRCNN.forward`."""
        logits, deltas = self.box_predictor(self.box_head(self.box_pool(features, proposals)))
        counts = [len(boxes) for boxes in proposals]
        scores = logits.float().softmax(dim=-1).split(counts)
        boxes = decode_boxes(deltas, torch.cat(list(proposals)), _BOX_WEIGHTS).split(counts)
        detections = [
            self._choose(image_boxes, image_scores, size)
            for image_boxes, image_scores, size in zip(boxes, scores, batch.sizes, strict=True)
        ]
        keypoints = self.keypoints(features, [detection["boxes"] for detection in detections], heatmaps)
        return [{**detection, **found} for detection, found in zip(detections, keypoints, strict=True)]

    def keypoints(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], heatmaps: bool = False
    ) -> list[dict[str, Any]]:
        """keypoints [R_i, K, 3], keypoint_scores [R_i, K], and on wish keypoint_heatmaps [R_i, K, m, m], per image."""
        logits = self.keypoint_predictor(self.keypoint_head(self.keypoint_pool(features, boxes)))
        points, scores = decode_keypoints(logits, torch.cat(list(boxes)))
        counts = [len(image_boxes) for image_boxes in boxes]
        parts = {"keypoints": points.split(counts), "keypoint_scores": scores.split(counts)}
        if heatmaps:
            parts["keypoint_heatmaps"] = logits.split(counts)
        return [{name: part[index] for name, part in parts.items()} for index in range(len(boxes))]

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

    def _keypoint_losses(
        self, features: Sequence[Tensor], samples: Sequence[Samples], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        boxes, people = [], []
        for sample, target in zip(samples, targets, strict=True):
            foreground = sample.labels > 0
            image_boxes, image_people = select_keypoint_rois(
                sample.boxes[foreground], sample.matches[foreground], target, self.settings.keypoint_rois_per_person
            )
            boxes.append(image_boxes)
            people.append(image_people)
        logits = self.keypoint_predictor(self.keypoint_head(self.keypoint_pool(features, boxes)))
        return {"loss_keypoint": keypoint_loss(logits, boxes, people, targets)}

    def _choose(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Boxes [P, C, 4] and scores [P, C] of one image to its detections."""
        classes = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        boxes = clip_boxes(boxes, size)[:, 1:].reshape(-1, 4)
        scores, labels = scores[:, 1:].flatten(), classes[:, 1:].flatten()
        kept = torch.where(scores > self.settings.score_threshold)[0]
        kept = kept[not_smaller_than(boxes[kept], 1e-2)]
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        kept = ops.batched_nms(boxes, scores, labels, self.settings.nms_threshold)
        kept = kept[: self.settings.detections_per_image]
        return {"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]}


def _box_losses(
    logits: Tensor, deltas: Tensor, samples: Sequence[Samples], targets: Sequence[Target]
) -> dict[str, Tensor]:
    labels = torch.cat([sample.labels for sample in samples])
    matched = torch.cat(
        [target["boxes"][sample.matches[sample.labels > 0]] for sample, target in zip(samples, targets, strict=True)]
    )
    foreground = torch.where(labels > 0)[0]
    boxes = torch.cat([sample.boxes for sample in samples])[foreground]
    predicted = deltas.float().view(len(deltas), deltas.shape[1] // 4, 4)[foreground, labels[foreground]]
    regression = F.smooth_l1_loss(predicted, encode_boxes(matched, boxes, _BOX_WEIGHTS), beta=1 / 9, reduction="sum")
    count = max(len(labels), 1)
    classification = F.cross_entropy(logits.float(), labels, reduction="sum") / count
    return {"loss_classifier": classification, "loss_box_reg": regression / count}
