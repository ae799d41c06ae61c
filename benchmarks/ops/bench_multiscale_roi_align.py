"""multiscale_roi_align on the pyramid of an 800 x 1344 image: P2 to P5 with 256 channels."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from benchmarks.ops.harness import Workload, main, peer_of
from pyposeext import ops

module = importlib.import_module("pyposeext.ops.multiscale_roi_align")
pooler = peer_of("torchvision.ops", "MultiScaleRoIAlign")
HEIGHT, WIDTH, CHANNELS = 800, 1344, 256
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def workload(count: int, size: int, layout: str, backward: bool = False) -> Workload:
    def make(device: str) -> tuple[list[Tensor], Tensor]:
        side = 2 ** (4 + torch.rand(count, 1) * 4.6) * torch.tensor([[1.0, 1.4]])
        side = torch.minimum(side, torch.tensor([WIDTH - 1.0, HEIGHT - 1.0]))
        corner = torch.rand(count, 2) * (torch.tensor([WIDTH, HEIGHT]) - side)
        features = [torch.randn(1, CHANNELS, int(HEIGHT * s), int(WIDTH * s)).to(device) for s in SCALES]
        if layout == "channels_last":
            features = [map.contiguous(memory_format=torch.channels_last) for map in features]
        return [map.requires_grad_(backward) for map in features], torch.cat([corner, corner + side], dim=1).to(device)

    def run(function):
        def call(features: list[Tensor], boxes: Tensor) -> None:
            pooled = function(features, [boxes])
            if backward:
                for map in features:
                    map.grad = None
                pooled.backward(pooled.detach())

        return call

    def torchvision(features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        names = [str(level) for level in range(len(features))]
        return pooler(names, size, 2)(dict(zip(names, features, strict=True)), boxes, [(HEIGHT, WIDTH)])

    pixels = sum(int(HEIGHT * s) * int(WIDTH * s) for s in SCALES)
    name = f"{'forward+backward' if backward else 'forward'} {count}x{size}x{size} {layout}"
    return Workload(
        name,
        make,
        run(lambda features, boxes: ops.multiscale_roi_align(features, boxes, size, SCALES)),
        None if backward else run(lambda features, boxes: module.reference(features, boxes, size, SCALES)),
        run(torchvision) if pooler else None,
        (2 if backward else 1) * 4 * CHANNELS * (pixels + count * size * size),
        reference_repeats=1,
    )


if __name__ == "__main__":
    layouts = ("contiguous", "channels_last")
    shapes = ((512, 7), (1000, 7), (512, 14), (100, 14))
    main(
        "multiscale_roi_align",
        [
            *(workload(count, size, layout) for layout in layouts for count, size in shapes),
            *(workload(512, size, layout, backward=True) for layout in layouts for size in (7, 14)),
        ],
        aims={
            "forward 1000x7x7 channels_last": "5 x",
        },
        headlines={
            "forward 1000x7x7 channels_last": "multiscale_roi_align, channels_last",
            "forward+backward 512x7x7 channels_last": "multiscale_roi_align, forward and backward",
        },
    )
