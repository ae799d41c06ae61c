"""Anchor boxes for the maps of a feature pyramid (Ren et al., "Faster R-CNN", NeurIPS 2015, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class AnchorGenerator:
    """The anchors of every position of every level, as torchvision lays them or as detectron2 does.

    Args:
        sizes: the anchor sides in pixels of each level, from the finest level to the coarsest; one, or several.
        aspect_ratios: height over width; every level has one anchor for each of its sizes and each of these.
        rounded: anchors around the origin in whole pixels (rounded after halving, half to even), torchvision's rule.
        strides: pixels between positions, per level. None: the padded image's side over the map's, in whole pixels.
    """

    def __init__(
        self,
        sizes: Sequence[float | Sequence[float]],
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        rounded: bool = True,
        strides: Sequence[int] | None = None,
    ) -> None:
        self.sizes = tuple(tuple(level) if isinstance(level, Sequence) else (level,) for level in sizes)
        self.aspect_ratios = tuple(aspect_ratios)
        self.rounded = rounded
        self.strides = None if strides is None else tuple(strides)

    @property
    def levels(self) -> int:
        """How many maps there are."""
        return len(self.sizes)

    @property
    def count(self) -> int:
        """Anchors per position."""
        return len(self.sizes[0]) * len(self.aspect_ratios)

    def base(self, level: int) -> Tensor:
        """The anchors [A, 4] around the origin of one level; size, then ratio, the last fastest."""
        ratios = torch.tensor(self.aspect_ratios, dtype=torch.float64)
        sizes = torch.tensor(self.sizes[level], dtype=torch.float64)[:, None]
        heights = (ratios.sqrt() * sizes).flatten()
        widths = (1 / ratios.sqrt() * sizes).flatten()
        corners = (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).float()
        return corners.round() if self.rounded else corners

    def __call__(
        self, image_size: tuple[int, int], map_sizes: Sequence[tuple[int, int]], device: torch.device
    ) -> list[Tensor]:
        """The anchors of each level, [H_l * W_l * A, 4] as x1, y1, x2, y2; row, column, then anchor, the last fastest.

        Args:
            image_size: (H, W) of the padded batch. Without `strides`, a level's are H // H_l and W // W_l. There is no
                half-pixel offset.
            map_sizes: (H_l, W_l) per level, as many as `sizes`.
            device: where the result lies.
        """
        anchors = []
        for level, (height, width) in enumerate(map_sizes):
            own = (image_size[0] // height, image_size[1] // width)
            row_stride, column_stride = own if self.strides is None else (self.strides[level],) * 2
            ys = torch.arange(height, device=device, dtype=torch.float32) * row_stride
            xs = torch.arange(width, device=device, dtype=torch.float32) * column_stride
            y, x = torch.meshgrid(ys, xs, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
            anchors.append((shifts + self.base(level).to(device)).view(-1, 4))
        return anchors
