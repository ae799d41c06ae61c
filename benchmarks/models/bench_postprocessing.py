"""What Mask R-CNN does after its heads: heatmaps to keypoints and masks to the image, against torchvision's Python.

Where torchvision is not installed, the peer is the same procedure in plain PyTorch, as its file of the ops has it.

    python -m benchmarks.models.bench_postprocessing --json FILE
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.models.harness import medians, options, show, threads_of, write
from benchmarks.ops.bench_paste_masks import SIZE, paste_as_torchvision
from benchmarks.ops.bench_paste_masks import make as make_masks
from benchmarks.ops.harness import peer_of
from pyposeext import ops

decode_reference = importlib.import_module("pyposeext.ops.roi_heatmaps_to_keypoints").reference
torchvision_decode = peer_of("torchvision.models.detection.roi_heads", "heatmaps_to_keypoints")
torchvision_paste = peer_of("torchvision.models.detection.roi_heads", "paste_masks_in_image")


def paste_by_torchvision(masks: Tensor, boxes: Tensor) -> Tensor:
    """Soft masks in the image, then compared."""
    if torchvision_paste is None:
        return paste_as_torchvision(masks, boxes)
    return torchvision_paste(masks[:, None], boxes, SIZE)[:, 0] >= 0.5


def measure(device: str, people: int, repeats: int) -> list[dict[str, Any]]:
    """Rows: keypoints, masks and both, ours and the peer's."""
    torch.manual_seed(0)
    masks, boxes = make_masks(people, device)
    low = torch.randn(people, 17, 14, 14, device=device) * 3
    heatmaps = F.interpolate(low, scale_factor=4.0, mode="bilinear")
    decode = torchvision_decode or decode_reference
    calls = {
        "keypoints": lambda: ops.roi_heatmaps_to_keypoints(heatmaps, boxes),
        "keypoints, peer": lambda: decode(heatmaps, boxes),
        "masks": lambda: ops.paste_masks(masks, boxes, SIZE),
        "masks as RLE": lambda: ops.paste_masks_rle(masks, boxes, SIZE),
        "masks, peer": lambda: paste_by_torchvision(masks, boxes),
    }
    times = medians(calls, device, repeats)
    peer = "torchvision" if torchvision_decode else "plain PyTorch"
    pairs = [
        ("keypoints", times["keypoints"], times["keypoints, peer"]),
        ("masks", times["masks"], times["masks, peer"]),
        ("both", times["keypoints"] + times["masks"], times["keypoints, peer"] + times["masks, peer"]),
        (
            "both, masks as RLE",
            times["keypoints"] + times["masks as RLE"],
            times["keypoints, peer"] + times["masks, peer"],
        ),
    ]
    return [
        {"people": people, "what": what, "ms": ours, "peer": peer, "peer ms": theirs, "times faster": theirs / ours}
        for what, ours, theirs in pairs
    ]


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--people", type=int, nargs="+", default=[1, 10, 100])
    given = parser.parse_args()
    rows = []
    for threads in threads_of(given):
        torch.set_num_threads(threads)
        for people in given.people:
            found = measure(given.device, people, given.repeats)
            rows += [{"threads": threads, **row} for row in found]
            show(rows[-len(found) :])
    write(given.json, "postprocessing", given.device, rows)


if __name__ == "__main__":
    main()
