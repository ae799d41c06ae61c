"""flow_warp_pool of 31 frames; grid_sample of every frame and the weighted sum of the result is the peer.

In one workload our own flow_warp of the same frames, without any sum, stands in the peer's place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.ops.bench_flow_warp import SIDE, grid_sample, smooth_flow
from benchmarks.ops.harness import Workload, main
from pyposeext import ops
from pyposeext.ops.flow_warp_pool import reference

STEPS = 31


def warp_then_sum(heatmaps: Tensor, flow: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same as it is written today: all warped frames, then the sum over them."""
    warped = grid_sample(heatmaps.flatten(0, 1), flow.flatten(0, 1)).reshape(heatmaps.shape)
    return torch.einsum("bskhw,sk->bkhw", warped, weight) + bias[:, None, None]


def warp_alone(heatmaps: Tensor, flow: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.flow_warp(heatmaps.flatten(0, 1), flow.flatten(0, 1))


def workload(
    joints: int,
    batch: int = 1,
    channels_last: bool = False,
    backward: bool = False,
    peer: Callable[..., Tensor] = warp_then_sum,
) -> Workload:
    def make(device: str) -> tuple[Tensor, ...]:
        frames = torch.randn(batch * STEPS, joints, SIDE, SIDE).to(device)
        if channels_last:
            frames = frames.contiguous(memory_format=torch.channels_last)
        heatmaps = frames.unflatten(0, (batch, STEPS))
        flow = smooth_flow(batch * STEPS).to(device).unflatten(0, (batch, STEPS))
        weight, bias = torch.randn(STEPS, joints, device=device), torch.randn(joints, device=device)
        return tuple(value.requires_grad_(backward) for value in (heatmaps, flow, weight, bias))

    def run(function):
        def call(*arguments: Tensor) -> None:
            pooled = function(*arguments)
            if backward:
                torch.autograd.grad(pooled, arguments, pooled.detach())

        return call

    maps, frames = batch * SIDE * SIDE * 4, STEPS
    # Forward: frames and flow in, one map per joint out. Backward: frames, flow and the maps' gradient in, the
    # gradients of frames and flow out.
    size = maps * (frames * (joints + 2) + joints)
    if backward:
        size += maps * (frames * (2 * joints + 4) + joints)
    name = f"{'forward+backward' if backward else 'forward'} {batch}x{STEPS}x{joints}x{SIDE}x{SIDE}"
    layout = "channels_last" if channels_last else "contiguous"
    against = "" if peer is warp_then_sum else " (peer: our flow_warp)"
    return Workload(f"{name} {layout}{against}", make, run(ops.flow_warp_pool), run(reference), run(peer), size)


if __name__ == "__main__":
    main(
        "flow_warp_pool",
        [
            *(workload(joints) for joints in (7, 17)),
            workload(17, channels_last=True),
            *(workload(joints, peer=warp_alone) for joints in (7, 17)),
            *([workload(17, batch=64)] if torch.cuda.is_available() else []),
            *(workload(joints, backward=True) for joints in (7, 17)),
        ],
        headlines={
            "forward 1x31x17x64x64 contiguous": "flow_warp_pool, 31 frames (grid_sample and sum)",
        },
    )
