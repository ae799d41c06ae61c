"""Arithmetic on boxes x1, y1, x2, y2: continuous coordinates, no "+1" anywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A box may grow at most 62.5-fold in one step, so that an untrained network's exp() cannot overflow.
LARGEST_LOG_SCALE = math.log(1000 / 16)


def encode_boxes(targets: Tensor, boxes: Tensor, weights: tuple[float, float, float, float] = (1, 1, 1, 1)) -> Tensor:
    """What a network must predict at `boxes` [N, 4] to yield `targets` [N, 4]: (dx, dy, dw, dh) [N, 4].

    R-CNN's parametrisation (Girshick et al., CVPR 2014, appendix C), multiplied by `weights`.
    """
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    target_width, target_height = targets[:, 2] - targets[:, 0], targets[:, 3] - targets[:, 1]
    x, y = boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height
    target_x, target_y = targets[:, 0] + 0.5 * target_width, targets[:, 1] + 0.5 * target_height
    wx, wy, ww, wh = weights
    return torch.stack(
        [
            wx * (target_x - x) / width,
            wy * (target_y - y) / height,
            ww * torch.log(target_width / width),
            wh * torch.log(target_height / height),
        ],
        dim=1,
    )


def decode_boxes(deltas: Tensor, boxes: Tensor, weights: tuple[float, float, float, float] = (1, 1, 1, 1)) -> Tensor:
    """The inverse of `encode_boxes`, in float32: deltas [N, 4 * C] at boxes [N, 4] to boxes [N, C, 4].

    The logarithms of the scales are bounded from above by log(1000 / 16).
    """
    deltas = deltas.float().reshape(len(boxes), deltas.shape[1] // 4, 4)
    boxes = boxes.float().unsqueeze(1)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    x, y = boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height
    wx, wy, ww, wh = weights
    x = deltas[..., 0] / wx * width + x
    y = deltas[..., 1] / wy * height + y
    half_width = 0.5 * (torch.exp((deltas[..., 2] / ww).clamp(max=LARGEST_LOG_SCALE)) * width)
    half_height = 0.5 * (torch.exp((deltas[..., 3] / wh).clamp(max=LARGEST_LOG_SCALE)) * height)
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] cut to an image of `size` (height, width): x in [0, width], y in [0, height]."""
    height, width = size
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Areas [N] of boxes [N, 4] in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_intersection(first: Tensor, second: Tensor) -> Tensor:
    """The area that each of `first` [N, 4] shares with each of `second` [M, 4]: [N, M]."""
    low = torch.max(first[:, None, :2], second[:, :2])
    high = torch.min(first[:, None, 2:], second[:, 2:])
    sides = (high - low).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union [N, M], in 0..1, of boxes [N, 4] and [M, 4]."""
    shared = box_intersection(first, second)
    return shared / (box_area(first)[:, None] + box_area(second) - shared)


def not_smaller_than(boxes: Tensor, side: float) -> Tensor:
    """Indices of the boxes [N, 4] whose width and height are both at least `side` pixels."""
    wide = boxes[:, 2] - boxes[:, 0] >= side
    high = boxes[:, 3] - boxes[:, 1] >= side
    return torch.where(wide & high)[0]
