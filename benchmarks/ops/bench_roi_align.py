"""roi_align on one level of a feature pyramid: 512 boxes on [1, 256, 100, 168], the standard shapes of Mask R-CNN."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from benchmarks.ops.harness import Workload, main, peer_of
from pyposeext import ops

module = importlib.import_module("pyposeext.ops.roi_align")
torchvision_roi_align = peer_of("torchvision.ops", "roi_align")
CHANNELS, HEIGHT, WIDTH, STRIDE, COUNT = 256, 100, 168, 8, 512


def rois(count: int, device: str) -> Tensor:
    """Boxes of 40 to 300 image pixels that lie on the map."""
    size = 40 + torch.rand(count, 2) * 260
    corner = torch.rand(count, 2) * (torch.tensor([WIDTH, HEIGHT]) * STRIDE - size)
    return torch.cat([torch.zeros(count, 1), corner, corner + size], dim=1).to(device)


def maps(dtype: torch.dtype, layout: str, device: str) -> Tensor:
    input = torch.randn(1, CHANNELS, HEIGHT, WIDTH).to(device, dtype)
    return input.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else input


def floor(size: int, dtype: torch.dtype) -> int:
    """Bytes of one pass: each pixel of the map once, each pooled value once."""
    return (CHANNELS * HEIGHT * WIDTH + COUNT * CHANNELS * size * size) * torch.empty(0, dtype=dtype).element_size()


def forward(size: int, ratio: int, layout: str, dtype: torch.dtype = torch.float32) -> Workload:
    def make(device: str) -> tuple[Tensor, Tensor]:
        return maps(dtype, layout, device), rois(COUNT, device)

    def run(function, boxes_dtype: torch.dtype = torch.float32):
        return lambda input, boxes: function(input, boxes.to(boxes_dtype), size, 1 / STRIDE, ratio)

    sampling = "adaptive" if ratio <= 0 else f"sampling {ratio}"
    return Workload(
        f"forward {COUNT}x{size}x{size} {sampling} {layout} {str(dtype)[6:]}",
        make,
        run(ops.roi_align),
        run(module.reference),
        run(torchvision_roi_align, dtype) if torchvision_roi_align and dtype != torch.bfloat16 else None,
        floor(size, dtype),
        reference_repeats=1,
    )


def backward(size: int, layout: str, with_forward: bool, dtype: torch.dtype = torch.float32) -> Workload:
    """The backward alone runs over a graph that the forward left; the peer's is run alike. It has no bfloat16."""
    peer = None if dtype == torch.bfloat16 else torchvision_roi_align

    def make(device: str) -> tuple[Tensor, ...]:
        input, boxes = maps(dtype, layout, device).requires_grad_(True), rois(COUNT, device)
        pooled = [function(input, boxes, size, 1 / STRIDE, 2) for function in [ops.roi_align, peer] if function]
        return input, boxes, torch.randn_like(pooled[0]), *pooled

    def run(function, place: int):
        def call(input: Tensor, boxes: Tensor, gradient: Tensor, *pooled: Tensor) -> None:
            result = function(input, boxes, size, 1 / STRIDE, 2) if with_forward else pooled[place]
            torch.autograd.grad(result, input, gradient, retain_graph=not with_forward)

        return call if function else None

    return Workload(
        f"{'forward+' if with_forward else ''}backward {COUNT}x{size}x{size} sampling 2 {layout} {str(dtype)[6:]}",
        make,
        run(ops.roi_align, 0),
        None,
        run(peer, 1),
        (2 if with_forward else 1) * floor(size, dtype),
    )


if __name__ == "__main__":
    layouts = ("contiguous", "channels_last")
    main(
        "roi_align",
        [
            *(forward(size, 2, layout) for layout in layouts for size in (7, 14)),
            *(forward(7, 0, layout) for layout in layouts),
            *(forward(7, 2, layout, dtype) for dtype in (torch.float16, torch.bfloat16) for layout in layouts),
            *(backward(size, layout, with_forward=False) for layout in layouts for size in (7, 14)),
            *(backward(7, layout, with_forward=True) for layout in layouts),
            backward(7, "channels_last", with_forward=False, dtype=torch.bfloat16),
        ],
        aims={
            "forward 512x7x7 sampling 2 contiguous float32": "9 x",
            "forward 512x7x7 sampling 2 channels_last float32": "4.5 x",
            "forward 512x14x14 sampling 2 contiguous float32": "7 x",
            "forward 512x14x14 sampling 2 channels_last float32": "3 x",
            "backward 512x7x7 sampling 2 channels_last float32": "9 x",
        },
        headlines={
            "forward 512x7x7 sampling 2 contiguous float32": "roi_align",
            "forward 512x7x7 sampling 2 channels_last float32": "roi_align, channels_last",
            "forward 512x7x7 sampling 2 channels_last float16": "roi_align, half",
            "backward 512x7x7 sampling 2 channels_last float32": "roi_align, backward",
        },
    )
