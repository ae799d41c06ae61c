"""gaussian_mse_loss of 64 people's heatmaps; the peers build the target, each time or once before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.ops.bench_gaussian_heatmaps import torch_product
from benchmarks.ops.harness import Workload, main
from pyposeext import ops
from pyposeext.ops.gaussian_mse_loss import reference

JOINTS, SIGMA = 17, 3.0


def with_target(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    weight = weights[..., None, None]
    return 0.5 * F.mse_loss(prediction * weight, target * weight)


def building(prediction: Tensor, keypoints: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    built = torch_product(keypoints, weights, (prediction.shape[2], prediction.shape[3]), SIGMA)
    return with_target(prediction, built.to(prediction.dtype), weights)


def ready(prediction: Tensor, keypoints: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    return with_target(prediction, target, weights)


def ours(prediction: Tensor, keypoints: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    return ops.gaussian_mse_loss(prediction, keypoints, weights, SIGMA)


def by_reference(prediction: Tensor, keypoints: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    return reference(prediction, keypoints, weights, SIGMA)


def workload(
    peer: Callable[..., Tensor],
    backward: bool,
    name: str = "",
    layout: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
    size: tuple[int, int] = (96, 72),
    batch: int = 64,
) -> Workload:
    def make(device: str) -> tuple[Any, ...]:
        keypoints = (torch.rand(batch, JOINTS, 2) * torch.tensor([size[1], size[0]])).to(device)
        weights = torch.ones(batch, JOINTS, device=device)
        maps = torch.rand(batch, JOINTS, *size).to(device, dtype).contiguous(memory_format=layout)
        target = ops.gaussian_heatmaps(keypoints, weights, size, SIGMA)[0].to(dtype).contiguous(memory_format=layout)
        return maps.requires_grad_(backward), keypoints, weights, target

    def run(function: Callable[..., Tensor]) -> Callable[..., None]:
        def call(prediction: Tensor, *others: Tensor) -> None:
            result = function(prediction, *others)
            if backward:
                prediction.grad = None
                result.backward()

        return call

    # Forward: the prediction is read. Backward: it is read again and its gradient written.
    passes = 3 if backward else 1
    bytes = passes * batch * JOINTS * size[0] * size[1] * torch.empty(0, dtype=dtype).element_size()
    title = f"{'forward+backward' if backward else 'forward'} {batch}x{JOINTS}x{size[0]}x{size[1]}{name}"
    return Workload(
        title,
        make,
        run(ours),
        run(by_reference),
        run(peer),
        bytes,
        reads_only=not backward,
        dtype=dtype,
    )


if __name__ == "__main__":
    main(
        "gaussian_mse_loss",
        [
            workload(building, False, " (peer builds)"),
            workload(ready, False, " (peer has the target)"),
            workload(ready, False, " channels_last", torch.channels_last),
            workload(ready, False, " bfloat16", dtype=torch.bfloat16),
            workload(building, True, " (peer builds)"),
            workload(ready, True, " (peer has the target)"),
            workload(ready, True, " channels_last", torch.channels_last),
            workload(ready, True, " bfloat16", dtype=torch.bfloat16),
            workload(ready, True, " small", size=(64, 48), batch=1),
        ],
        headlines={
            "forward+backward 64x17x96x72 (peer builds)": "gaussian_mse_loss, forward and backward",
        },
    )
