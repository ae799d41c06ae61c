"""heatmap_argmax of 17 joints. Peers: torch.max, and for DARK the published NumPy and OpenCV code on whole maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.ops.harness import Workload, main
from pyposeext import ops
from pyposeext.ops.heatmap_argmax import flip_average, reference

JOINTS = 17


def peaks(batch: int, height: int, width: int) -> Tensor:
    """Maps with one peak of sigma 2 each and a little noise."""
    x = torch.arange(width) - torch.rand(batch, JOINTS, 1) * (width - 1)
    y = torch.arange(height) - torch.rand(batch, JOINTS, 1) * (height - 1)
    maps = torch.exp(-(x[..., None, :] ** 2 + y[..., :, None] ** 2) / 8)
    return maps + 0.02 * torch.rand(maps.shape)


def torch_max(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    scores, index = heatmaps.flatten(2).max(dim=2)
    return torch.stack([index % heatmaps.shape[3], index // heatmaps.shape[3]], dim=2).to(scores.dtype), scores


def numpy_dark(heatmaps: Tensor) -> np.ndarray:
    """DARK as published: whole maps blurred, rescaled and logarithms taken, on the CPU."""
    maps = heatmaps.cpu().numpy()
    batch, joints, height, width = maps.shape
    result = np.zeros((batch, joints, 2), np.float32)
    for b in range(batch):
        for k in range(joints):
            y, x = np.unravel_index(maps[b, k].argmax(), (height, width))
            result[b, k] = x, y
            blurred = cv2.GaussianBlur(np.pad(maps[b, k], 5), (11, 11), 0)[5:-5, 5:-5]
            log = np.log(np.maximum(blurred * (maps[b, k].max() / (blurred.max() + 1e-12)), 1e-10))
            if not (1 < x < width - 2 and 1 < y < height - 2):
                continue
            w = log[y - 2 : y + 3, x - 2 : x + 3]
            gradient = np.array([w[2, 3] - w[2, 1], w[3, 2] - w[1, 2]]) / 2
            xx, yy = (w[2, 4] - 2 * w[2, 2] + w[2, 0]) / 4, (w[4, 2] - 2 * w[2, 2] + w[0, 2]) / 4
            xy = (w[3, 3] - w[1, 3] - w[3, 1] + w[1, 1]) / 4
            if xx * yy - xy * xy != 0:
                result[b, k] -= np.linalg.solve(np.array([[xx, xy], [xy, yy]]), gradient)
    return result


def soft_reference(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    return reference(heatmaps, "soft")


def soft_backward(function: Callable[[Tensor], tuple[Tensor, Tensor]], heatmaps: Tensor) -> None:
    heatmaps.grad = None
    coordinates, _ = function(heatmaps)
    coordinates.backward(coordinates.detach())


def workload(
    refine: str, batch: int, size: tuple[int, int], layout: torch.memory_format = torch.contiguous_format
) -> Workload:
    def make(device: str) -> tuple[Tensor]:
        return (peaks(batch, *size).to(device).contiguous(memory_format=layout),)

    peer = {"none": torch_max, "dark": numpy_dark, "soft": soft_reference}.get(refine)
    ours = partial(ops.heatmap_argmax, refine=refine)
    slow = batch * JOINTS > 2000 and refine not in ("none", "soft")  # the reference goes map by map
    return Workload(
        f"{refine} {batch}x{JOINTS}x{size[0]}x{size[1]} {str(layout)[6:]}",
        make,
        ours,
        None if slow else partial(reference, refine=refine),
        peer,
        batch * JOINTS * size[0] * size[1] * 4,
        reads_only=True,
        reference_repeats=1,
    )


def soft_training(batch: int, size: tuple[int, int], layout: torch.memory_format) -> Workload:
    def make(device: str) -> tuple[Tensor]:
        return (peaks(batch, *size).to(device).contiguous(memory_format=layout).requires_grad_(True),)

    return Workload(
        f"soft forward+backward {batch}x{JOINTS}x{size[0]}x{size[1]} {str(layout)[6:]}",
        make,
        partial(soft_backward, partial(ops.heatmap_argmax, refine="soft")),
        partial(soft_backward, soft_reference),
        None,
        3 * batch * JOINTS * size[0] * size[1] * 4,
    )


def flip_in_torch(heatmaps: Tensor, flipped: Tensor, permutation: Tensor) -> tuple[Tensor, Tensor]:
    """The flip test as it is written today: the average stored, then decoded."""
    return ops.heatmap_argmax(flip_average(heatmaps, flipped, permutation, 1), "dark")


def flip_workload(batch: int, size: tuple[int, int]) -> Workload:
    def make(device: str) -> tuple[Tensor, Tensor, Tensor]:
        maps = peaks(batch, *size).to(device)
        return maps, maps.flip(3), torch.arange(JOINTS, device=device)

    def ours(heatmaps: Tensor, flipped: Tensor, permutation: Tensor) -> tuple[Tensor, Tensor]:
        return ops.heatmap_argmax(heatmaps, "dark", flipped=flipped, flip_permutation=permutation, flip_shift=1)

    name = f"dark, flip test {batch}x{JOINTS}x{size[0]}x{size[1]}"
    size_in_bytes = 2 * batch * JOINTS * size[0] * size[1] * 4
    return Workload(name, make, ours, None, flip_in_torch, size_in_bytes, reads_only=True)


if __name__ == "__main__":
    main(
        "heatmap_argmax",
        [
            *(workload(refine, 256, (96, 72)) for refine in ("none", "quarter", "dark", "dark_udp", "soft")),
            flip_workload(256, (96, 72)),
            workload("none", 256, (96, 72), torch.channels_last),
            workload("dark", 64, (64, 48)),
            workload("dark", 1, (96, 72)),
            *(soft_training(256, (96, 72), layout) for layout in (torch.contiguous_format, torch.channels_last)),
        ],
        aims={
            "none 256x17x96x72 contiguous_format": "1.1 x",
            "dark 256x17x96x72 contiguous_format": "1.3 x",
            "soft 256x17x96x72 contiguous_format": "2.5 x",
        },
        headlines={
            "none 256x17x96x72 contiguous_format": "heatmap_argmax (torch.max)",
            "dark 256x17x96x72 contiguous_format": "heatmap_argmax, DARK (NumPy and OpenCV)",
            "soft 256x17x96x72 contiguous_format": "heatmap_argmax, soft (torch)",
        },
    )
