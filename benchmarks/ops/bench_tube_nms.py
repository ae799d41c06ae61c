"""tube_nms on proposals of one clip, against the greedy loop of Detect-and-Track's released code in NumPy."""

from __future__ import annotations

import importlib

import numpy as np
import torch
from torch import Tensor

from benchmarks.ops.harness import Workload, main
from pyposeext import ops

module = importlib.import_module("pyposeext.ops.tube_nms")
THRESHOLD = 0.7


def make(count: int, frames: int):
    def tubes(device: str) -> tuple[Tensor, Tensor]:
        centre = torch.rand(count // 20 + 1, 1, 2).repeat_interleave(20, 0)[:count] * 800
        centre = centre + torch.randn(count, 1, 2) * 12 + torch.randn(count, frames, 2) * 3
        side = 40 + torch.rand(count, 1, 2) * 120
        corners = torch.cat([centre - side / 2, centre + side / 2], dim=2)
        return corners.to(device), torch.rand(count).to(device)

    return tubes


def numpy_loop(tubes: Tensor, scores: Tensor) -> list[int]:
    boxes, frames = tubes.numpy(), tubes.shape[1]
    area = (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)
    order, kept = scores.numpy().argsort()[::-1], []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        overlap = np.zeros(len(rest))
        for t in range(frames):
            corner = np.maximum(boxes[best, t, :2], boxes[rest, t, :2])
            side = np.maximum(0.0, np.minimum(boxes[best, t, 2:], boxes[rest, t, 2:]) - corner + 1)
            shared = side[:, 0] * side[:, 1]
            overlap += shared / (area[best, t] + area[rest, t] - shared)
        order = rest[overlap / frames <= THRESHOLD]
    return kept


def workload(count: int, frames: int) -> Workload:
    return Workload(
        f"{count} tubes of {frames} frames",
        make(count, frames),
        lambda tubes, scores: ops.tube_nms(tubes, scores, THRESHOLD),
        lambda tubes, scores: module.reference(tubes, scores, THRESHOLD),
        numpy_loop,
        count * (frames * 16 + 4) + count * 8,
        operations=count * (count - 1) // 2 * frames * 17,  # every frame of every pair
        reference_repeats=1,
    )


if __name__ == "__main__":
    main(
        "tube_nms",
        [workload(1000, 3), workload(1000, 8)],
        headlines={
            "1000 tubes of 3 frames": "tube_nms (NumPy)",
        },
    )
