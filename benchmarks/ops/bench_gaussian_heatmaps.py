"""gaussian_heatmaps of 64 people; the peers are the published loop over patches in NumPy and torch's outer product."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.ops.harness import Workload, main
from pyposeext import ops
from pyposeext.ops.gaussian_heatmaps import reference

JOINTS = 17


def numpy_patches(
    keypoints: Tensor, weights: Tensor, size: tuple[int, int], sigma: int
) -> tuple[np.ndarray, np.ndarray]:
    """HRNet's target, patch by patch, as data loaders compute it."""
    joints, visible = keypoints.cpu().numpy(), weights.cpu().numpy().copy()
    height, width = size
    reach = 3 * sigma
    target = np.zeros((*joints.shape[:2], height, width), np.float32)
    for b in range(joints.shape[0]):
        for k in range(joints.shape[1]):
            x, y = int(joints[b, k, 0] + 0.5), int(joints[b, k, 1] + 0.5)
            left, top, right, bottom = x - reach, y - reach, x + reach + 1, y + reach + 1
            if left >= width or top >= height or right < 0 or bottom < 0:
                visible[b, k] = 0
            if visible[b, k] <= 0.5:
                continue
            steps = np.arange(2 * reach + 1, dtype=np.float32)
            patch = np.exp(-((steps - reach) ** 2 + (steps[:, None] - reach) ** 2) / (2 * sigma**2))
            rows, columns = slice(max(0, top), min(bottom, height)), slice(max(0, left), min(right, width))
            inside = patch[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            target[b, k, rows, columns] = inside
    return target, visible


def torch_product(keypoints: Tensor, weights: Tensor, size: tuple[int, int], sigma: float, **options: Any) -> Tensor:
    """Whole maps as products of one exponential for each axis: without rounding, people or weights."""
    y, x = (torch.arange(length, device=keypoints.device) for length in size)
    along_x = torch.exp((x - keypoints[..., :1]) ** 2 * (-1 / (2 * sigma**2)))
    along_y = torch.exp((y - keypoints[..., 1:]) ** 2 * (-1 / (2 * sigma**2)))
    return along_y[..., :, None] * along_x[..., None, :]


def workload(
    mode: str, batch: int, size: tuple[int, int], *, peer: Any, people: int = 1, name: str = "", **options: Any
) -> Workload:
    def make(device: str) -> tuple[Any, ...]:
        shape = (batch, JOINTS, 2) if people == 1 else (batch, people, JOINTS, 2)
        keypoints = torch.rand(shape) * torch.tensor([size[1], size[0]])
        return keypoints.to(device), torch.ones(shape[:-1], device=device), size, 3 if size[0] == 96 else 2

    channels = JOINTS + (options.get("background", "none") != "none")
    item = torch.empty(0, dtype=options.get("dtype", torch.float32)).element_size()
    run = partial(ops.gaussian_heatmaps, mode=mode, **options)
    title = f"{mode} {batch}x{JOINTS}x{size[0]}x{size[1]}{name}"
    return Workload(
        title,
        make,
        run,
        partial(reference, mode=mode, **options),
        peer,
        batch * channels * size[0] * size[1] * item,
        dtype=options.get("dtype", torch.float32),
    )


if __name__ == "__main__":
    main(
        "gaussian_heatmaps",
        [
            workload("msra", 64, (96, 72), peer=numpy_patches, name=" (peer: NumPy)"),
            workload("msra", 64, (96, 72), peer=torch_product, name=" (peer: torch)"),
            workload("msra", 64, (96, 72), peer=None, name=" channels_last", channels_last=True),
            workload("msra", 64, (96, 72), peer=None, name=" bfloat16", dtype=torch.bfloat16),
            workload("msra", 64, (96, 72), peer=None, name=" 5 people", people=5),
            workload("msra", 64, (96, 72), peer=None, name=" background", background="last"),
            workload("unbiased", 64, (96, 72), peer=torch_product, name=" (peer: torch)"),
            workload("msra", 1, (64, 48), peer=numpy_patches, name=" (peer: NumPy)"),
        ],
        aims={
            "msra 64x17x96x72 (peer: NumPy)": "2.5 x",
        },
        headlines={
            "msra 64x17x96x72 (peer: NumPy)": "gaussian_heatmaps (NumPy)",
        },
    )
