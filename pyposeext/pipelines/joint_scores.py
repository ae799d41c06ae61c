"""How sure the model is of a joint: a probability from its heatmap."""

from __future__ import annotations

import torch
from torch import Tensor

# 3 cells of 56 are about 5 % of the box, the size of a joint.
_RADIUS = 3


def joint_scores(heatmaps: Tensor) -> Tensor:
    """The probability the model gives to the joint lying near the place it names, [N, K] in 0..1.

    The heatmap head of Mask R-CNN is trained as a softmax over the cells of the map (cross-entropy, section 3.1 of the
    paper), so that its softmax is a distribution over the joint's place. Its mass in the square of 7 x 7 cells around
    the maximum is the probability that the joint lies within about 5 % of the box of it, with nothing to calibrate.

    Args:
        heatmaps: [N, K, m, m] logits.
    """
    count, joints, height, width = heatmaps.shape
    mass = heatmaps.float().flatten(2).softmax(dim=-1)
    best = mass.argmax(dim=-1) if count else mass.new_zeros((0, joints), dtype=torch.int64)
    near_row = _near(torch.div(best, width, rounding_mode="floor"), height).to(mass)
    near_column = _near(best % width, width).to(mass)
    cells = mass.view(count, joints, height, width)
    return torch.einsum("nkhw,nkh,nkw->nk", cells, near_row, near_column).clamp(0, 1)


def _near(place: Tensor, size: int) -> Tensor:
    """[N, K, size], whether a row or column lies within the radius of the place [N, K]."""
    return (torch.arange(size, device=place.device) - place[..., None]).abs() <= _RADIUS
