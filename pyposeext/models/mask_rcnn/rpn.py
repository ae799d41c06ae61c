"""The region proposal network: where something may be (Ren et al., "Faster R-CNN", NeurIPS 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyposeext import ops
from pyposeext.layers.anchors import AnchorGenerator
from pyposeext.layers.boxes import (
    box_area,
    box_intersection,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    not_smaller_than,
)
from pyposeext.layers.matching import BELOW, match_boxes, sample_balanced
from pyposeext.models.mask_rcnn.transform import ImageBatch, Target


@dataclass(frozen=True)
class ProposalSettings:
    """How proposals are chosen and how the network is trained; pairs are (training, evaluation).

    Attributes:
        before_nms: best anchors kept on each level.
        after_nms: best proposals kept of an image.
        nms_threshold: overlap above which the worse of two proposals of one level goes.
        foreground, background: overlaps from which and below which an anchor is positive or negative.
        batch_size: anchors of an image that the loss looks at.
        positive_fraction: the most of them that are positive.
        smallest_side: in pixels; proposals with a shorter side go.
        beta: where the regression loss turns from a square to a line; 0 is all line.
        full_count: divide the losses by `batch_size` for each image, detectron2's rule, not by the anchors that there
            were to choose.
    """

    before_nms: tuple[int, int] = (2000, 1000)
    after_nms: tuple[int, int] = (2000, 1000)
    nms_threshold: float = 0.7
    foreground: float = 0.7
    background: float = 0.3
    batch_size: int = 256
    positive_fraction: float = 0.5
    smallest_side: float = 1e-3
    beta: float = 1 / 9
    full_count: bool = False


class ProposalHead(nn.Module):
    """3x3 convolutions, then 1x1 for one logit and four deltas per anchor; shared by the levels."""

    def __init__(self, channels: int = 256, anchors: int = 3, depth: int = 1) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)) for _ in range(depth))
        )
        self.cls_logits = nn.Conv2d(channels, anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * anchors, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps [N, C, H_l, W_l] to logits [N, A, H_l, W_l] and deltas [N, 4 * A, H_l, W_l] per level."""
        hidden = [self.conv(feature) for feature in features]
        return [self.cls_logits(map) for map in hidden], [self.bbox_pred(map) for map in hidden]


class LightProposalHead(ProposalHead):
    """As `ProposalHead` with a depthwise separable convolution.

    There is no norm: the levels share the head, and one set of running statistics would not fit them all.
    """

    def __init__(self, channels: int = 96, anchors: int = 3) -> None:
        super().__init__(channels, anchors)
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.Conv2d(channels, channels, 1),
            nn.ReLU(inplace=True),
        )


class RegionProposalNetwork(nn.Module):
    """The head, its anchors, the choice of proposals and the losses.

    Args:
        head: maps to (logits, deltas) per level.
        anchors: of the same levels.
        settings: counts and thresholds.
    """

    def __init__(self, head: nn.Module, anchors: AnchorGenerator, settings: ProposalSettings) -> None:
        super().__init__()
        self.head = head
        self.anchors = anchors
        self.settings = settings

    def forward(
        self, batch: ImageBatch, features: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals [P_i, 4] of each image in the batch's pixels, without gradient; in training the two losses too."""
        logits, deltas = self.head(features)
        height, width = batch.tensor.shape[-2:]
        map_sizes = [(map.shape[-2], map.shape[-1]) for map in features]
        level_anchors = self.anchors((height, width), map_sizes, features[0].device)
        # Channel a of the logits and a*4+k of the deltas belong to anchor a; anchors run row, column, a.
        level_logits = [map.permute(0, 2, 3, 1).flatten(1).float() for map in logits]
        level_deltas = [map.permute(0, 2, 3, 1).reshape(len(map), -1, 4).float() for map in deltas]
        proposals = self._choose(batch, level_anchors, level_logits, level_deltas)
        if targets is None:
            return proposals, {}
        losses = self._losses(torch.cat(level_anchors), torch.cat(level_logits, 1), torch.cat(level_deltas, 1), targets)
        return proposals, losses

    @torch.no_grad()
    def _choose(
        self, batch: ImageBatch, anchors: list[Tensor], logits: list[Tensor], deltas: list[Tensor]
    ) -> list[Tensor]:
        mode = 0 if self.training else 1
        boxes, scores, levels = [], [], []
        for level, (level_anchors, level_logits, level_deltas) in enumerate(zip(anchors, logits, deltas, strict=True)):
            count = min(self.settings.before_nms[mode], len(level_anchors))
            best, index = level_logits.topk(count, dim=1)
            chosen = level_deltas.gather(1, index[..., None].expand(-1, -1, 4)).reshape(-1, 4)
            boxes.append(decode_boxes(chosen, level_anchors[index].view(-1, 4)).view(len(index), count, 4))
            scores.append(best.sigmoid())
            levels.append(torch.full((count,), level, dtype=torch.int64, device=best.device))
        all_boxes, all_scores, all_levels = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(levels)
        proposals = []
        for image_boxes, image_scores, size in zip(all_boxes, all_scores, batch.sizes, strict=True):
            clipped = clip_boxes(image_boxes, size)
            kept = not_smaller_than(clipped, self.settings.smallest_side)
            clipped = clipped[kept]
            best = ops.batched_nms(clipped, image_scores[kept], all_levels[kept], self.settings.nms_threshold)
            proposals.append(clipped[best[: self.settings.after_nms[mode]]])
        return proposals

    def _losses(self, anchors: Tensor, logits: Tensor, deltas: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        sampled, sampled_labels, regressed, regression_targets = [], [], [], []
        for image_logits, image_deltas, target in zip(logits, deltas, targets, strict=True):
            matches = match_boxes(
                box_iou(target["boxes"], anchors), self.settings.foreground, self.settings.background, keep_best=True
            )
            negative = (matches == BELOW) & ~ignored(anchors, target)
            positives, negatives = sample_balanced(
                matches >= 0, negative, self.settings.batch_size, self.settings.positive_fraction
            )
            sampled.append(image_logits[torch.cat([positives, negatives])])
            sampled_labels += [torch.ones_like(positives), torch.zeros_like(negatives)]
            regressed.append(image_deltas[positives])
            regression_targets.append(encode_boxes(target["boxes"][matches[positives]], anchors[positives]))
        chosen = torch.cat(sampled)
        count = self.settings.batch_size * len(targets) if self.settings.full_count else max(len(chosen), 1)
        objectness = F.binary_cross_entropy_with_logits(chosen, torch.cat(sampled_labels).float(), reduction="sum")
        regression = F.smooth_l1_loss(
            torch.cat(regressed), torch.cat(regression_targets), beta=self.settings.beta, reduction="sum"
        )
        return {"loss_objectness": objectness / count, "loss_rpn_box_reg": regression / count}


def ignored(boxes: Tensor, target: Target) -> Tensor:
    """Which boxes [N, 4] lie by more than half inside one of the regions `target["ignore"]` [M, 4]."""
    regions = target.get("ignore")
    if regions is None or len(regions) == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    return (box_intersection(boxes, regions) > 0.5 * box_area(boxes)[:, None]).any(dim=1)
