"""crop_affine of 16 people of 256x192 from one frame of 1920x1080; peers are cv2 with NumPy and grid_sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.ops.harness import Workload, main, peer_of
from pyposeext import ops
from pyposeext.ops.crop_affine import IMAGENET_MEAN, IMAGENET_STD, reference

FRAME = (1080, 1920)
SIZE = (256, 192)
warp_affine = peer_of("cv2", "warpAffine")


def crop_with_cv2(frame: Tensor, matrices: Tensor) -> Tensor:
    """Warp, normalise and transpose crop by crop, then stack."""
    pixels, crops = frame.numpy(), []
    mean, std = np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD)
    for matrix in matrices.numpy():
        crop = warp_affine(pixels, matrix, SIZE[::-1], flags=1)  # cv2.INTER_LINEAR
        crop = (crop.astype(np.float32) / 255 - mean) / std
        crops.append(np.ascontiguousarray(crop.transpose(2, 0, 1)))
    return torch.from_numpy(np.stack(crops))


def crop_with_grid_sample(frame: Tensor, matrices: Tensor) -> Tensor:
    """The whole frame to float, then grid_sample for all crops."""
    height, width = FRAME
    image = frame.permute(2, 0, 1)[None].float() / 255
    full = torch.cat([matrices, matrices.new_tensor([[[0, 0, 1]]]).expand(len(matrices), 1, 3)], dim=1)
    inverse = torch.linalg.inv(full)[:, :2].float()
    rows, columns = torch.arange(SIZE[0], device=frame.device), torch.arange(SIZE[1], device=frame.device)
    y, x = torch.meshgrid(rows.float(), columns.float(), indexing="ij")
    grid = torch.stack([x, y, torch.ones_like(x)], dim=2) @ inverse.transpose(1, 2)[:, None]
    grid = grid * grid.new_tensor([2 / (width - 1), 2 / (height - 1)]) - 1
    crops = F.grid_sample(image.expand(len(matrices), -1, -1, -1), grid, align_corners=True)
    mean, std = crops.new_tensor(IMAGENET_MEAN), crops.new_tensor(IMAGENET_STD)
    return (crops - mean[:, None, None]) / std[:, None, None]


def make(count: int, rotated: bool, device: str) -> tuple[Tensor, Tensor]:
    """People of 250 to 900 pixels height, whole in a smooth picture."""
    noise = torch.rand(1, 3, 68, 120) * 255
    frame = F.interpolate(noise, size=FRAME, mode="bilinear")[0].permute(1, 2, 0).round().byte().contiguous()
    height = 250 + 650 * torch.rand(count, dtype=torch.float64)
    scale = SIZE[0] / height
    half = torch.stack([height * 0.375, height * 0.5], dim=1)
    centre = half + torch.rand(count, 2, dtype=torch.float64) * (torch.tensor(FRAME[::-1]) - 2 * half)
    angle = (torch.rand(count, dtype=torch.float64) - 0.5) * (0.8 if rotated else 0.0)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([cosine, sine, -sine, cosine], dim=1).reshape(count, 2, 2)
    shift = torch.tensor(SIZE[::-1], dtype=torch.float64)[:, None] / 2 - linear @ centre[:, :, None]
    return frame.to(device), torch.cat([linear, shift], dim=2).to(device)


def workload(
    name: str, count: int = 16, rotated: bool = False, peer: Callable[..., Tensor] | None = None, **options
) -> Workload:
    item = torch.empty(0, dtype=options.get("dtype", torch.float32)).element_size()
    # Each crop pixel reads at least three bytes and writes three numbers.
    pixels = count * SIZE[0] * SIZE[1]
    return Workload(
        f"{name} {count} x {SIZE[0]}x{SIZE[1]} from {FRAME[1]}x{FRAME[0]}",
        partial(make, count, rotated),
        partial(ops.crop_affine, size=SIZE, **options),
        partial(reference, size=SIZE),
        peer,
        pixels * 3 * (1 + item),
    )


if __name__ == "__main__":
    cv2_peer = crop_with_cv2 if warp_affine else None
    main(
        "crop_affine",
        [
            workload("float32 against cv2", peer=cv2_peer),
            workload("float32 against grid_sample", peer=crop_with_grid_sample),
            workload("float32 rotated", rotated=True, peer=cv2_peer),
            workload("float32 channels_last", channels_last=True, peer=cv2_peer),
            workload("bfloat16", dtype=torch.bfloat16, peer=cv2_peer),
            workload("float32", count=1, peer=cv2_peer),
        ],
        aims={
            "float32 against cv2 16 x 256x192 from 1920x1080": "3 ms",
        },
        headlines={
            "float32 against cv2 16 x 256x192 from 1920x1080": "crop_affine, 16 people (cv2)",
        },
    )
