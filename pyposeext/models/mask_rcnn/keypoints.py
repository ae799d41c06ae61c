"""The keypoint branch of Mask R-CNN (He et al., ICCV 2017, section 5): heads, targets, loss and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyposeext import ops
from pyposeext.layers.normalization import ConvNorm, Norm
from pyposeext.models.mask_rcnn.transform import Target

KeypointScore = Literal["logit", "softmax"]


def initialise(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """He's normal initialisation by outputs, zero bias."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class KeypointHead(nn.Sequential):
    """Eight 3x3 convolutions to 512 channels, each with a ReLU: [R, 256, 14, 14] to [R, 512, 14, 14]."""

    def __init__(self, in_channels: int = 256, channels: int = 512, depth: int = 8) -> None:
        parts: list[nn.Module] = []
        for index in range(depth):
            parts += [nn.Conv2d(in_channels if index == 0 else channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
        super().__init__(*parts)
        for module in self:
            if isinstance(module, nn.Conv2d):
                initialise(module)


class SeparableBlock(nn.Module):
    """Depthwise 5x5 and pointwise convolution, each with norm and ReLU, added to the input."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.depthwise = ConvNorm(channels, channels, 5, groups=channels, norm=norm)
        self.pointwise = ConvNorm(channels, channels, norm=norm, activation=None)

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input + self.pointwise(self.depthwise(input)))


class LightKeypointHead(nn.Sequential):
    """A pointwise convolution and residual depthwise separable blocks.

    From [R, in_channels, 14, 14] to [R, channels, 14, 14]. Four 5x5 blocks see the whole RoI, which telling left from
    right needs.
    """

    def __init__(self, in_channels: int = 96, channels: int = 176, depth: int = 4, norm: Norm = nn.BatchNorm2d) -> None:
        blocks = [SeparableBlock(channels, norm) for _ in range(depth)]
        super().__init__(ConvNorm(in_channels, channels, norm=norm), *blocks)


class KeypointPredictor(nn.Module):
    """A 4x4 transposed convolution of stride 2 to one map per joint, then twice the size bilinearly."""

    def __init__(self, in_channels: int, num_joints: int) -> None:
        super().__init__()
        self.kps_score_lowres = nn.ConvTranspose2d(in_channels, num_joints, 4, 2, 1)
        initialise(self.kps_score_lowres)

    def forward(self, input: Tensor) -> Tensor:
        """[R, C, h, w] to logits [R, K, 4 * h, 4 * w]."""
        low = self.kps_score_lowres(input)
        return F.interpolate(low, scale_factor=2.0, mode="bilinear", align_corners=False, recompute_scale_factor=False)


def keypoint_targets(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The cell of each keypoint in its box's heatmap.

    Args:
        keypoints: [R, K, 3], x, y and visibility; v of 1 and 2 count alike.
        boxes: [R, 4], the RoIs, in the same pixels.
        size: cells along a side of the heatmap.

    Returns:
        int64 [R, K], row * size + column, 0 where invalid; bool [R, K], true where v > 0 and the point is in the box.
    """
    corner, side = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    points = keypoints[..., :2]
    cells = ((points - corner) * (size / side)).floor().long()
    # A point exactly on the right or lower edge belongs to the last cell.
    cells = torch.where(points == boxes[:, None, 2:], size - 1, cells)
    valid = ((cells >= 0) & (cells < size)).all(dim=-1) & (keypoints[..., 2] > 0)
    return (cells[..., 1] * size + cells[..., 0]) * valid, valid


def select_keypoint_rois(
    proposals: Tensor, matches: Tensor, target: Target, per_person: int | None, visible: bool = False
) -> tuple[Tensor, Tensor]:
    """On which boxes the keypoint loss of one image is computed.

    Args:
        proposals: [F, 4], the sampled foreground proposals; matches: [F], the person each answers for.
        target: of the image; without "keypoints" nothing is selected, and people without a visible joint are skipped.
        per_person: None for every foreground proposal, as published; else for each person its own box and at most this
            many proposals, drawn at random.
        visible: of every foreground proposal only those with a visible joint of their person inside, detectron2's rule.

    Returns:
        boxes [R, 4] and the person of each, int64 [R].
    """
    if "keypoints" not in target:
        return proposals[:0], matches[:0]
    if per_person is None and not visible:
        return proposals, matches
    if per_person is None:
        joints = target["keypoints"][matches]
        points, low, high = joints[..., :2], proposals[:, None, :2], proposals[:, None, 2:]
        inside = ((points >= low) & (points <= high)).all(dim=-1) & (joints[..., 2] > 0)
        shown = inside.any(dim=1)
        return proposals[shown], matches[shown]
    labelled = torch.where((target["keypoints"][..., 2] > 0).any(dim=1))[0]
    boxes, people = [target["boxes"][labelled]], [labelled]
    for person in labelled.tolist():
        candidates = torch.where(matches == person)[0]
        chosen = candidates[torch.randperm(len(candidates), device=candidates.device)[:per_person]]
        boxes.append(proposals[chosen])
        people.append(matches[chosen])
    return torch.cat(boxes), torch.cat(people)


def keypoint_loss(
    logits: Tensor, boxes: Sequence[Tensor], people: Sequence[Tensor], targets: Sequence[Target]
) -> Tensor:
    """Cross-entropy over the cells of the heatmap, mean over the valid (RoI, joint) pairs of the batch; a scalar.

    Args:
        logits: [R, K, m, m] of all RoIs, image after image.
        boxes: [R_i, 4] of each image; people: [R_i], the row of the target each answers for.
        targets: with "keypoints" [n, K, 3] and optionally "keypoint_weights" [n, K], not negative, by which the mean is
            weighted.
    """
    size = logits.shape[-1]
    cells, weights = [], []
    for image_boxes, image_people, target in zip(boxes, people, targets, strict=True):
        if "keypoints" not in target:
            continue
        cell, valid = keypoint_targets(target["keypoints"][image_people], image_boxes, size)
        weight = valid.float()
        if "keypoint_weights" in target:
            weight = weight * target["keypoint_weights"][image_people]
        cells.append(cell.flatten())
        weights.append(weight.flatten())
    weight = torch.cat(weights) if weights else logits.new_zeros(0)
    chosen = torch.where(weight > 0)[0]
    if len(chosen) == 0:
        return 0 * logits.float().sum()
    losses = F.cross_entropy(
        logits.flatten(0, 1).flatten(1)[chosen].float(), torch.cat(cells)[chosen], reduction="none"
    )
    return (losses * weight[chosen]).sum() / weight[chosen].sum()


def decode_keypoints(logits: Tensor, boxes: Tensor, score: KeypointScore = "logit") -> tuple[Tensor, Tensor]:
    """Heatmap logits [R, K, m, m] of boxes [R, 4] to keypoints [R, K, 3] (x, y, 1) and their scores [R, K].

    A score is the bicubic logit at the maximum, about -5 to 25: not a probability. With "softmax" it is detectron2's,
    which is about the probability of that place and can exceed 1.
    """
    points, scores = ops.roi_heatmaps_to_keypoints(logits.float(), boxes.float(), score=score)
    return torch.cat([points, torch.ones_like(points[..., :1])], dim=-1), scores
