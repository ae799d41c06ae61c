"""roi_align on one level of a feature pyramid: 512 boxes on [1, 256, 100, 168], the standard shapes of Mask R-CNN."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from benchmarks.ops.harness import Workload, main, peer_of
from pyposeext import ops

module = importlib.import_module("pyposeext.ops.roi_align")
torchvision_roi_align = peer_of("torchvision.ops", "roi_align")
CHANNELS, HEIGHT, WIDTH, STRIDE = 256, 100, 168, 8


def rois(count: int, device: str) -> Tensor:
    """Boxes of 40 to 300 image pixels that lie on the map."""
    size = 40 + torch.rand(count, 2) * 260
    corner = torch.rand(count, 2) * (torch.tensor([WIDTH, HEIGHT]) * STRIDE - size)
    return torch.cat([torch.zeros(count, 1), corner, corner + size], dim=1).to(device)


def workload(
    size: int, ratio: int, layout: str, backward: bool = False, dtype: torch.dtype = torch.float32
) -> Workload:
    def make(device: str) -> tuple[Tensor, Tensor]:
        input = torch.randn(1, CHANNELS, HEIGHT, WIDTH).to(device, dtype)
        if layout == "channels_last":
            input = input.contiguous(memory_format=torch.channels_last)
        return input.requires_grad_(backward), rois(512, device).to(dtype)

    def run(function):
        def call(input: Tensor, boxes: Tensor) -> None:
            pooled = function(input, boxes, size, 1 / STRIDE, ratio)
            if backward:
                input.grad = None
                pooled.backward(pooled.detach())

        return call if function else None

    passes = 2 if backward else 1
    elements = passes * (CHANNELS * HEIGHT * WIDTH + 512 * CHANNELS * size * size)
    name = (
        f"{'forward+backward' if backward else 'forward'} 512x{size}x{size} sampling {ratio} {layout} {str(dtype)[6:]}"
    )
    item = torch.empty(0, dtype=dtype).element_size()
    reference = None if backward else run(module.reference)
    return Workload(
        name, make, run(ops.roi_align), reference, run(torchvision_roi_align), elements * item, reference_repeats=1
    )


if __name__ == "__main__":
    main(
        "roi_align",
        [
            *(workload(size, 2, layout) for layout in ("contiguous", "channels_last") for size in (7, 14)),
            *(workload(7, 0, layout) for layout in ("contiguous", "channels_last")),
            workload(7, 2, "channels_last", dtype=torch.bfloat16),
            *(workload(7, 2, layout, backward=True) for layout in ("contiguous", "channels_last")),
        ],
    )
