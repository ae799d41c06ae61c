"""flow_warp of 17 heatmaps from neighbouring frames, and of one image; grid_sample with its grid is the peer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.ops.harness import Workload, main
from pyposeext import ops
from pyposeext.ops.flow_warp import reference

JOINTS, SIDE = 17, 64


def grid_sample(input: Tensor, flow: Tensor) -> Tensor:
    """The same warp as it is written today: a grid in -1..1, then grid_sample."""
    steps = torch.arange(SIDE, device=flow.device, dtype=flow.dtype)
    grid = torch.stack([flow[:, 0] + steps, flow[:, 1] + steps[:, None]], dim=3) * (2 / (SIDE - 1)) - 1
    return F.grid_sample(input, grid.to(input.dtype), align_corners=True)


def smooth_flow(batch: int) -> Tensor:
    """Flow of a few pixels that changes slowly, as it does between frames."""
    return F.interpolate(torch.randn(batch, 2, 5, 5) * 4, size=(SIDE, SIDE), mode="bilinear", align_corners=True)


def workload(
    batch: int,
    layout: torch.memory_format = torch.contiguous_format,
    backward: bool = False,
    dtype: torch.dtype = torch.float32,
    channels: int = JOINTS,
) -> Workload:
    def make(device: str) -> tuple[Tensor, Tensor]:
        input = torch.randn(batch, channels, SIDE, SIDE).to(device, dtype).contiguous(memory_format=layout)
        return input.requires_grad_(backward), smooth_flow(batch).to(device).requires_grad_(backward)

    def run(function):
        def call(input: Tensor, flow: Tensor) -> None:
            warped = function(input, flow)
            if backward:
                input.grad = flow.grad = None
                warped.backward(warped.detach())

        return call

    maps, item = batch * SIDE * SIDE, torch.empty(0, dtype=dtype).element_size()
    # Forward: maps in, flow in, maps out. Backward: the output's gradient, maps and flow in, both gradients out.
    size = maps * (2 * channels * item + 2 * 4) + (maps * (3 * channels * item + 4 * 4) if backward else 0)
    name = f"{'forward+backward' if backward else 'forward'} {batch}x{channels}x{SIDE}x{SIDE}"
    return Workload(
        f"{name} {str(layout)[6:]} {str(dtype)[6:]}",
        make,
        run(ops.flow_warp),
        run(reference),
        run(grid_sample),
        size,
    )


if __name__ == "__main__":
    layouts = (torch.contiguous_format, torch.channels_last)
    main(
        "flow_warp",
        [
            # 1920 images are half a gigabyte each way: only where there is a GPU.
            *(workload(batch) for batch in (30, 240, *([1920] if torch.cuda.is_available() else []))),
            workload(30, torch.channels_last),
            workload(30, dtype=torch.bfloat16),
            workload(1, channels=256),
            *(workload(30, layout, backward=True) for layout in layouts),
        ],
        aims={
            "forward 30x17x64x64 contiguous_format float32": "3 x",
            "forward+backward 30x17x64x64 contiguous_format float32": "4 x",
        },
        headlines={
            "forward 30x17x64x64 contiguous_format float32": "flow_warp (grid_sample)",
            "forward+backward 30x17x64x64 contiguous_format float32": "flow_warp, forward and backward (grid_sample)",
        },
    )
