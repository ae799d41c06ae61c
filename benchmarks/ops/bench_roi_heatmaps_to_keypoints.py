"""Mask R-CNN's keypoint decoding of 100 people, 17 maps of 56 x 56 each."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.ops.harness import Workload, main, peer_of
from pyposeext import ops

module = importlib.import_module("pyposeext.ops.roi_heatmaps_to_keypoints")
torchvision_decode = peer_of("torchvision.models.detection.roi_heads", "heatmaps_to_keypoints")


def workload(count: int, dtype: torch.dtype) -> Workload:
    def make(device: str) -> tuple[Tensor, Tensor]:
        maps = F.interpolate(torch.randn(count, 17, 14, 14) * 3, scale_factor=4.0, mode="bilinear").to(device, dtype)
        corner, side = torch.rand(count, 2) * 400, 60 + torch.rand(count, 2) * 300
        return maps, torch.cat([corner, corner + side], dim=1).to(device)

    item = torch.empty(0, dtype=dtype).element_size()
    return Workload(
        f"decode {count}x17x56x56 {str(dtype)[6:]}",
        make,
        ops.roi_heatmaps_to_keypoints,
        module.reference,
        torchvision_decode,
        count * 17 * 56 * 56 * item,
        reference_repeats=1,
    )


if __name__ == "__main__":
    main(
        "roi_heatmaps_to_keypoints",
        [workload(100, torch.float32), workload(1, torch.float32)],
        aims={
            "decode 100x17x56x56 float32": "40 ms",
        },
        headlines={
            "decode 100x17x56x56 float32": "roi_heatmaps_to_keypoints",
        },
    )
