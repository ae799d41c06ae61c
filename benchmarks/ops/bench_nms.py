"""nms, batched_nms and nms_padded on clustered boxes, as a region proposal network gives them."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from benchmarks.ops.harness import Workload, main, peer_of
from pyposeext import ops

module = importlib.import_module("pyposeext.ops.nms")


def make(count: int, groups: int):
    def boxes(device: str) -> tuple[Tensor, Tensor, Tensor]:
        centre = torch.rand(max(count // 20, 1), 2).repeat_interleave(20, 0)[:count] * 800 + torch.randn(count, 2) * 12
        side = 40 + torch.rand(count, 2) * 120
        corners = torch.cat([centre - side / 2, centre + side / 2], dim=1)
        return corners.to(device), torch.rand(count).to(device), torch.randint(groups, (count,)).to(device)

    return boxes


def workload(op: str, count: int, groups: int = 1) -> Workload:
    contestants = {
        "nms": lambda function: lambda boxes, scores, index: function(boxes, scores, 0.7),
        "batched_nms": lambda function: lambda boxes, scores, index: function(boxes, scores, index, 0.7),
        "nms_padded": lambda function: lambda boxes, scores, index: function(boxes, scores, 0.7),
    }
    peer = peer_of("torchvision.ops", "nms" if op == "nms_padded" else op)
    per_group = count / groups
    return Workload(
        f"{op} {count}" + (f" in {groups} groups" if groups > 1 else ""),
        make(count, groups),
        contestants[op](getattr(ops, op)),
        lambda boxes, scores, index: module.reference(boxes, scores, 0.7, index if groups > 1 else None),
        contestants[op](peer) if peer else None,
        count * 20 + count * 8,
        operations=int(groups * per_group * (per_group - 1) / 2 * 14),  # every pair, about 14 operations each
        reference_repeats=1,
    )


if __name__ == "__main__":
    sizes = (1000, 4500, 10000)
    main(
        "nms",
        [
            *(workload("nms", n) for n in sizes),
            workload("batched_nms", 4500, 5),
            *(workload("nms_padded", n) for n in sizes),
        ],
        aims={
            "nms 4500": "4 x",
        },
        headlines={
            "nms 4500": "nms",
            "batched_nms 4500 in 5 groups": "batched_nms",
        },
    )
