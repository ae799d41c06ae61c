"""oks_nms on poses of one image and of many, against the greedy loop of HRNet's released code in NumPy."""

from __future__ import annotations

import importlib

import numpy as np
import torch
from torch import Tensor

from benchmarks.ops.harness import Workload, main
from pyposeext import ops
from pyposeext.skeletons import COCO17

module = importlib.import_module("pyposeext.ops.oks_nms")
SIGMAS = list(COCO17.sigmas)
THRESHOLD = 0.9


def make(count: int, images: int):
    def poses(device: str) -> tuple[Tensor, ...]:
        people = (
            torch.rand(count // 3 + 1, 17, 2).repeat_interleave(3, 0)[:count] * 150
        )  # three findings of each person
        points = people + torch.randn(count, 17, 2) * 3
        keypoints = torch.cat([points, torch.rand(count, 17, 1)], dim=2)
        areas, image = torch.rand(count) * 20000 + 5000, torch.arange(count) % images
        return tuple(tensor.to(device) for tensor in (keypoints, torch.rand(count), areas, image, torch.tensor(SIGMAS)))

    return poses


def numpy_loop(keypoints: Tensor, scores: Tensor, areas: Tensor, image: Tensor, sigmas: Tensor) -> list[int]:
    """One pose against all that are left, one by one, as released."""
    poses, score, area = keypoints.double().numpy(), scores.numpy(), areas.double().numpy()
    variance = (sigmas.double().numpy() * 2) ** 2
    order, kept = score.argsort()[::-1], []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        similarity = np.zeros(len(rest))
        for n, other in enumerate(rest):
            offset = poses[other, :, :2] - poses[best, :, :2]
            exponent = (offset**2).sum(1) / variance / ((area[best] + area[other]) / 2 + np.spacing(1)) / 2
            similarity[n] = np.exp(-exponent).sum() / len(exponent)
        order = rest[similarity <= THRESHOLD]
    return kept


def workload(count: int, images: int = 1) -> Workload:
    pairs = images * (count / images) * (count / images - 1) / 2
    return Workload(
        f"{count} poses" + (f" of {images} images" if images > 1 else ""),
        make(count, images),
        lambda keypoints, scores, areas, image, sigmas: ops.oks_nms(
            keypoints, scores, areas, THRESHOLD, sigmas, image if images > 1 else None
        ),
        lambda keypoints, scores, areas, image, sigmas: module.reference(
            keypoints, scores, areas, THRESHOLD, sigmas, image if images > 1 else None
        ),
        numpy_loop if images == 1 else None,
        count * (17 * 3 + 2) * 4 + count * 8,
        operations=int(pairs * 17 * 24),  # every joint of every pair: distance, two divisions, exponential
        reference_repeats=1,
    )


if __name__ == "__main__":
    main(
        "oks_nms",
        [workload(30), workload(200), workload(3000, 100)],
        headlines={
            "200 poses": "oks_nms (NumPy)",
        },
    )
