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


def boxes_of_tubes(frames: int, count: int, height: int, width: int, sides: Tensor, device: str) -> Tensor:
    """The same box in every frame, somewhere on an image of this size."""
    sides = torch.minimum(sides, torch.tensor([width - 1.0, height - 1.0]))
    corner = torch.rand(count, 1, 2) * (torch.tensor([width, height]) - sides)
    return torch.cat([corner, corner + sides], dim=2).expand(count, frames, 4).contiguous().to(device)


def clip(frames: int, height: int, width: int, layout: str, device: str) -> Tensor:
    input = torch.randn(1, CHANNELS, frames, height, width).to(device)
    return input.contiguous(memory_format=torch.channels_last_3d) if layout == "channels_last" else input


def with_backward(function):
    def call(input: Tensor | list[Tensor], *arguments: object) -> None:
        pooled = function(input, *arguments)
        torch.autograd.grad(pooled, input, pooled.detach())

    return call


def workload(frames: int, count: int, size: int, layout: str, backward: bool = False) -> Workload:
    def make(device: str) -> tuple[Tensor, Tensor, Tensor, int, float, int]:
        input = clip(frames, HEIGHT, WIDTH, layout, device).requires_grad_(backward)
        sides = 40 + torch.rand(count, 1, 2) * 260
        tubes = boxes_of_tubes(frames, count, HEIGHT * STRIDE, WIDTH * STRIDE, sides, device)
        return input, tubes, torch.zeros(count, dtype=torch.long, device=device), size, 1 / STRIDE, 2

    elements = frames * CHANNELS * (HEIGHT * WIDTH + count * size * size)
    peer = permute_and_pool if torchvision_roi_align else None
    return Workload(
        f"{'forward+backward' if backward else 'forward'} T{frames} {count}x{size}x{size} {layout}",
        make,
        with_backward(ops.tube_roi_align) if backward else ops.tube_roi_align,
        None if backward else module.reference,
        with_backward(peer) if backward and peer else peer,
        (2 if backward else 1) * 4 * elements,
        reference_repeats=1,
    )


def levels(frames: int, count: int, size: int, layout: str) -> Workload:
    """The pyramid of an 800 x 1344 clip, P2 to P5. No peer has it in one call."""
    strides = [4, 8, 16, 32]

    def make(device: str) -> tuple[list[Tensor], Tensor, Tensor, int, list[float], int]:
        maps = [clip(frames, 800 // stride, 1344 // stride, layout, device) for stride in strides]
        sides = 2 ** (4 + torch.rand(count, 1, 1) * 4.6) * torch.tensor([1.0, 1.4])
        tubes = boxes_of_tubes(frames, count, 800, 1344, sides, device)
        index = torch.zeros(count, dtype=torch.long, device=device)
        return maps, tubes, index, size, [1 / stride for stride in strides], 2

    pixels = sum((800 // stride) * (1344 // stride) for stride in strides)
    return Workload(
        f"forward T{frames} {count}x{size}x{size} on 4 levels {layout}",
        make,
        ops.tube_roi_align,
        module.reference,
        None,
        4 * frames * CHANNELS * (pixels + count * size * size),
        reference_repeats=1,
    )


if __name__ == "__main__":
    layouts = ("contiguous", "channels_last")
    shapes = ((3, 512, 7), (8, 128, 14))
    main(
        "tube_roi_align",
        [
            *(workload(*shape, layout) for layout in layouts for shape in shapes),
            *(workload(3, 512, 7, layout, backward=True) for layout in layouts),
            levels(3, 512, 7, "channels_last"),
        ],
        aims={
            "forward T3 512x7x7 channels_last": "5 x",
        },
        headlines={
            "forward T3 512x7x7 channels_last": "tube_roi_align, channels_last",
        },
    )
