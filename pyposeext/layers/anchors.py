"""Anchor boxes for the maps of a feature pyramid (Ren et al., "Faster R-CNN", NeurIPS 2015, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class AnchorGenerator:
    """The anchors of every position of every level, as torchvision lays them.

    Args:
        sizes: one anchor side in pixels per level, from the finest level to the coarsest.
        aspect_ratios: height over width; every level has one anchor for each.
    """

    def __init__(self, sizes: Sequence[float], aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)) -> None:
        self.sizes = tuple(sizes)
        self.aspect_ratios = tuple(aspect_ratios)

    @property
    def count(self) -> int:
        """Anchors per position."""
        return len(self.aspect_ratios)

    def base(self, level: int) -> Tensor:
        """The anchors [A, 4] around the origin of one level, in whole pixels (rounded after halving, half to even)."""
        ratios = torch.tensor(self.aspect_ratios, dtype=torch.float32)
        heights = ratios.sqrt() * self.sizes[level]
        widths = 1 / ratios.sqrt() * self.sizes[level]
        return (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).round()

    def __call__(
        self, image_size: tuple[int, int], map_sizes: Sequence[tuple[int, int]], device: torch.device
    ) -> list[Tensor]:
        """The anchors of each level, [H_l * W_l * A, 4] as x1, y1, x2, y2; row, column, then anchor, the last fastest.

        Args:
            image_size: (H, W) of the padded batch. A level's stride is H // H_l and W // W_l; there is no half-pixel
                offset.
            map_sizes: (H_l, W_l) per level, as many as `sizes`.
            device: where the result lies.
        """
        anchors = []
        for level, (height, width) in enumerate(map_sizes):
            ys = torch.arange(height, device=device, dtype=torch.float32) * (image_size[0] // height)
            xs = torch.arange(width, device=device, dtype=torch.float32) * (image_size[1] // width)
            y, x = torch.meshgrid(ys, xs, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
            anchors.append((shifts + self.base(level).to(device)).view(-1, 4))
        return anchors
