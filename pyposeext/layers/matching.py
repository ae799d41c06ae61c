"""Which ground truth a box answers for, and which boxes a loss is computed on (Faster R-CNN, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

BELOW = -1
BETWEEN = -2


def match_boxes(iou: Tensor, high: float, low: float, keep_best: bool = False) -> Tensor:
    """The ground truth of each box.

    Args:
        iou: [G, N], the overlap of G ground truths with N boxes.
        high: from this overlap on, a box answers for the ground truth it overlaps most.
        low: below this overlap a box is background.
        keep_best: a box that no other exceeds on some ground truth answers for its own best one, below `high` too.

    Returns:
        int64 [N]: an index into G, `BELOW` (background) or `BETWEEN` (counts for nothing). All `BELOW` where G is 0.
    """
    if iou.shape[0] == 0:
        return torch.full((iou.shape[1],), BELOW, dtype=torch.int64, device=iou.device)
    best, best_truth = iou.max(dim=0)
    matches = best_truth.clone()
    matches[best < low] = BELOW
    matches[(best >= low) & (best < high)] = BETWEEN
    if keep_best:
        # The ground truth given back is the box's own best, which need not be the one it is the best box of.
        boxes = torch.where(iou == iou.max(dim=1, keepdim=True).values)[1]
        matches[boxes] = best_truth[boxes]
    return matches


def sample_balanced(positive: Tensor, negative: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """A random choice of `count` boxes, at most `positive_fraction` of them positive, uniform without replacement.

    Draws one permutation of the positives, then one of the negatives, from torch's generator of their device.

    Args:
        positive, negative: bool [N].

    Returns:
        int64 indices of the chosen positives and negatives; fewer than `count` where there are not enough.
    """
    positive, negative = torch.where(positive)[0], torch.where(negative)[0]
    positives = min(len(positive), int(count * positive_fraction))
    negatives = min(len(negative), count - positives)
    chosen_positive = torch.randperm(len(positive), device=positive.device)[:positives]
    chosen_negative = torch.randperm(len(negative), device=negative.device)[:negatives]
    return positive[chosen_positive], negative[chosen_negative]
