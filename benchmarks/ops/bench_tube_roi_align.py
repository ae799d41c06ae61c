"""tube_roi_align against what is written without it: time moved to the batch, roi_align, and moved back."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from benchmarks.ops.harness import Workload, main, peer_of
from pyposeext import ops

module = importlib.import_module("pyposeext.ops.tube_roi_align")
torchvision_roi_align = peer_of("torchvision.ops", "roi_align")
CHANNELS, HEIGHT, WIDTH, STRIDE = 256, 50, 84, 16


def permute_and_pool(input: Tensor, tubes: Tensor, index: Tensor, size: int, scale: float, ratio: int) -> Tensor:
    batch, channels, frames = input.shape[:3]
    count = len(tubes)
    flat = input.permute(0, 2, 1, 3, 4).reshape(batch * frames, channels, *input.shape[3:]).contiguous()
    images = (index[:, None] * frames + torch.arange(frames, device=index.device)).reshape(-1, 1).to(tubes)
    pooled = torchvision_roi_align(flat, torch.cat([images, tubes.reshape(-1, 4)], dim=1), size, scale, ratio)
    return pooled.reshape(count, frames, channels, size, size).permute(0, 2, 1, 3, 4).contiguous()


def workload(frames: int, count: int, size: int, layout: str) -> Workload:
    def make(device: str) -> tuple[Tensor, Tensor, Tensor, int, float, int]:
        input = torch.randn(1, CHANNELS, frames, HEIGHT, WIDTH).to(device)
        if layout == "channels_last":
            input = input.contiguous(memory_format=torch.channels_last_3d)
        side = 40 + torch.rand(count, 1, 2) * 260
        corner = torch.rand(count, 1, 2) * (torch.tensor([WIDTH, HEIGHT]) * STRIDE - side)
        tubes = torch.cat([corner, corner + side], dim=2).expand(count, frames, 4).contiguous()
        return input, tubes.to(device), torch.zeros(count, dtype=torch.long, device=device), size, 1 / STRIDE, 2

    elements = frames * CHANNELS * (HEIGHT * WIDTH + count * size * size)
    peer = permute_and_pool if torchvision_roi_align else None
    name = f"forward T{frames} {count}x{size}x{size} {layout}"
    return Workload(name, make, ops.tube_roi_align, module.reference, peer, 4 * elements, reference_repeats=1)


if __name__ == "__main__":
    layouts = ("contiguous", "channels_last")
    main("tube_roi_align", [workload(*shape, layout) for layout in layouts for shape in ((3, 512, 7), (8, 128, 14))])
