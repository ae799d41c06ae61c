"""paste_masks of 100 masks into an image of 800 x 1333; peers are torchvision's and detectron2's ways, in torch."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.ops.harness import Workload, main, peer_of
from pyposeext import ops
from pyposeext.ops.paste_masks import reference

HEIGHT, WIDTH, SIDE = 800, 1333, 28
SIZE = (HEIGHT, WIDTH)


def paste_as_torchvision(masks: Tensor, boxes: Tensor) -> Tensor:
    """One full float image for each mask, stacked, then compared."""
    centre, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((SIDE + 2) / SIDE)
    corners = torch.cat([centre - half, centre + half], dim=1).long()
    images = []
    for mask, (x1, y1, x2, y2) in zip(F.pad(masks, (1, 1, 1, 1)), corners.tolist(), strict=True):
        shape = (max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1))
        resized = F.interpolate(mask[None, None], size=shape, mode="bilinear", align_corners=False)[0, 0]
        image = masks.new_zeros(SIZE)
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, WIDTH), min(y2 + 1, HEIGHT)
        image[top:bottom, left:right] = resized[top - y1 : bottom - y1, left - x1 : right - x1]
        images.append(image)
    return torch.stack(images) >= 0.5


def paste_as_detectron2(masks: Tensor, boxes: Tensor) -> Tensor:
    """grid_sample: mask by mask around its box on the CPU, the whole image of all masks at once on a GPU."""
    pasted = torch.zeros(len(masks), HEIGHT, WIDTH, dtype=torch.bool, device=masks.device)
    chunks = range(len(masks)) if masks.device.type == "cpu" else [slice(0, len(masks))]
    for chunk in chunks:
        part = boxes[chunk].reshape(-1, 4)
        left, top, right, bottom = 0, 0, WIDTH, HEIGHT
        if masks.device.type == "cpu":
            left, top = (part.min(dim=0).values.floor()[:2] - 1).clamp(min=0).int().tolist()
            right = int((part[:, 2].max().ceil() + 1).clamp(max=WIDTH))
            bottom = int((part[:, 3].max().ceil() + 1).clamp(max=HEIGHT))
        y = torch.arange(top, bottom, device=masks.device) + 0.5
        x = torch.arange(left, right, device=masks.device) + 0.5
        y = (y - part[:, 1:2]) / (part[:, 3:4] - part[:, 1:2]) * 2 - 1
        x = (x - part[:, 0:1]) / (part[:, 2:3] - part[:, 0:1]) * 2 - 1
        shape = (len(part), y.shape[1], x.shape[1])
        grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=3)
        sampled = F.grid_sample(masks[chunk].reshape(-1, 1, SIDE, SIDE), grid, align_corners=False)[:, 0]
        pasted[chunk, top:bottom, left:right] = (sampled >= 0.5).squeeze(0) if shape[0] == 1 else sampled >= 0.5
    return pasted


encode = peer_of("pycocotools.mask", "encode") or peer_of("faster_coco_eval.core.mask", "encode")


def paste_and_encode(masks: Tensor, boxes: Tensor) -> list:
    """torchvision's images, then COCO's encoder."""
    pasted = paste_as_torchvision(masks, boxes).permute(1, 2, 0).cpu().numpy()
    return encode(np.asfortranarray(pasted.astype(np.uint8)))


def make(count: int, device: str) -> tuple[Tensor, Tensor]:
    """Smooth round masks in boxes of 24 to 480 pixels, as detectors find them."""
    rows = torch.linspace(-1, 1, SIDE)
    round_mask = torch.sigmoid(8 * (0.8 - (rows[:, None] ** 2 + rows**2).sqrt() + 0.3 * torch.randn(count, 1, 1)))
    wobble = F.interpolate(torch.randn(count, 1, 7, 7), size=(SIDE, SIDE), mode="bilinear")[:, 0]
    masks = (round_mask + 0.15 * wobble).clamp(0, 1)
    size = 24 * 20 ** torch.rand(count, 2)
    corner = torch.rand(count, 2) * (torch.tensor([WIDTH, HEIGHT]) - size)
    return masks.to(device), torch.cat([corner, corner + size], dim=1).to(device)


def workloads(count: int) -> list[Workload]:
    inputs, pixels = count * (SIDE * SIDE * 4 + 16), count * HEIGHT * WIDTH
    place = f"{count} masks of {SIDE} to {HEIGHT}x{WIDTH}"
    # Runs: two numbers of four bytes for a column of a box, which is 150 columns wide on average.
    runs = count * 150 * 2 * 4
    peers = {"torchvision": paste_as_torchvision, "detectron2": paste_as_detectron2}
    found = [
        Workload(
            f"{rule} {place}",
            partial(make, count),
            partial(ops.paste_masks, size=SIZE, rule=rule),
            partial(reference, size=SIZE, rule=rule),
            peer,
            inputs + pixels,
        )
        for rule, peer in peers.items()
    ]
    soft = partial(ops.paste_masks, size=SIZE, threshold=None)
    found.append(Workload(f"soft {place}", partial(make, count), soft, None, None, inputs + 4 * pixels))
    rle = partial(ops.paste_masks_rle, size=SIZE)
    found.append(
        Workload(f"RLE {place}", partial(make, count), rle, None, paste_and_encode if encode else None, inputs + runs)
    )
    return found


if __name__ == "__main__":
    main(
        "paste_masks",
        [*workloads(100), *workloads(10)],
        aims={
            "torchvision 100 masks of 28 to 800x1333": "4 x",
        },
        headlines={
            "torchvision 100 masks of 28 to 800x1333": "paste_masks, torchvision rule",
            "detectron2 100 masks of 28 to 800x1333": "paste_masks, detectron2 rule",
            "RLE 100 masks of 28 to 800x1333": "paste_masks_rle",
        },
    )
