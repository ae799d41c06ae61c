"""From images of any size to a batch, and from the batch's pixels back to the images'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Target = dict[str, Tensor]
Size = tuple[int, int]
Resizing = Literal["torchvision", "detectron2"]

_BOX_KEYS = ("boxes", "ignore")


@dataclass
class ImageBatch:
    """Images normalised, resized and padded at the right and bottom.

    Attributes:
        tensor: float32 [N, 3, H, W], H and W multiples of the transform's divisor, zero outside the images.
        sizes: (height, width) of each image inside the batch; boxes are clipped to these, not to H and W.
        original_sizes: (height, width) of each image as it was given.
    """

    tensor: Tensor
    sizes: list[Size]
    original_sizes: list[Size]


@dataclass
class ImageTransform:
    """Normalises, resizes and batches images; moves targets and detections along.

    Attributes:
        min_size: what the shorter side becomes, in pixels; in training one of them is drawn for each image, evaluation
            takes the last.
        max_size: what the longer side may not exceed; the image becomes smaller instead.
        mean, std: per channel (RGB, values in 0..1).
        keypoint_offset: where a keypoint of whole pixels lies inside its pixel. Keypoints name pixel centres, so the
            exact value is 0.5, as in detectron2's models; torchvision's were trained with 0.0 and need that.
        resizing: "torchvision": bilinear without antialiasing, sides rounded down. "detectron2": antialiased, as Pillow
            resizes 8-bit images, sides rounded; the result is rounded to 8 bits again.
        divisor: of the batch's height and width.
    """

    min_size: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    max_size: int = 1333
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    keypoint_offset: float = 0.0
    resizing: Resizing = "torchvision"
    divisor: int = 32

    def __call__(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None,
        training: bool,
        resize: bool = True,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> tuple[ImageBatch, list[Target] | None]:
        """Images, each [3, h, w] in 0..1, as one batch, and their targets in its pixels.

        Draws one uniform number per image from torch's generator in training, also where `min_size` holds one size.
        With `resize` False the images keep their size and nothing is drawn.
        """
        moved = []
        original_sizes = [_size(image) for image in images]
        for image in images:
            size = _size(image)
            if resize:
                size = self.resized(size, self._draw_min_size() if training else self.min_size[-1])
            moved.append(self._normalised(image, size))
        sizes = [_size(image) for image in moved]
        batch = ImageBatch(_padded(moved, memory_format, self.divisor), sizes, original_sizes)
        if targets is None:
            return batch, None
        return batch, [
            self._move_target(target, old, new)
            for target, old, new in zip(targets, original_sizes, batch.sizes, strict=True)
        ]

    def _normalised(self, image: Tensor, size: Size) -> Tensor:
        mean, std = (
            torch.tensor(values, dtype=image.dtype, device=image.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        if _size(image) == size:
            return (image - mean) / std
        if self.resizing == "detectron2":
            return (_resized_8_bit(image, size) - mean) / std
        return F.interpolate(((image - mean) / std)[None], size=size, mode="bilinear", align_corners=False)[0]

    def resized(self, size: Size, min_size: int) -> Size:
        """The (height, width) that an image of `size` gets when its shorter side shall be `min_size`."""
        if self.resizing == "detectron2":
            return self._resized_detectron2(size, min_size)
        # In double precision, as torchvision 0.28 does; its early versions took float32 and lost a pixel of many sides.
        scale = min(min_size / min(size), self.max_size / max(size))
        return max(1, math.floor(size[0] * scale)), max(1, math.floor(size[1] * scale))

    def _resized_detectron2(self, size: Size, min_size: int) -> Size:
        scale = min_size / min(size)
        # In this order of operations, so that a half rounds the same way.
        sides = [float(min_size) if side == min(size) else scale * side for side in size]
        if max(sides) > self.max_size:
            scale = self.max_size / max(sides)
            sides = [side * scale for side in sides]
        return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))

    def restore(self, detections: list[dict[str, Any]], batch: ImageBatch) -> list[dict[str, Any]]:
        """Detections in the batch's pixels as detections in each image's own."""
        for detection, size, original in zip(detections, batch.sizes, batch.original_sizes, strict=True):
            if "boxes" in detection:
                detection["boxes"] = move_boxes(detection["boxes"], size, original)
            if "keypoints" in detection:
                detection["keypoints"] = self._move_keypoints(
                    detection["keypoints"], size, original, 0.0, -self.keypoint_offset
                )
        return detections

    def _draw_min_size(self) -> int:
        return self.min_size[int(torch.empty(1).uniform_(0.0, float(len(self.min_size))).item())]

    def _move_target(self, target: Target, old: Size, new: Size) -> Target:
        moved = dict(target)
        for key in _BOX_KEYS:
            if key in moved:
                moved[key] = move_boxes(moved[key], old, new)
        if "keypoints" in moved:
            moved["keypoints"] = self._move_keypoints(moved["keypoints"], old, new, self.keypoint_offset, 0.0)
        if "masks" in moved and old != new:
            masks = moved["masks"][:, None].to(torch.uint8)
            # Pillow's nearest pixel is the one whose centre is nearest.
            mode = "nearest-exact" if self.resizing == "detectron2" else "nearest"
            moved["masks"] = F.interpolate(masks, size=new, mode=mode)[:, 0]
        return moved

    @staticmethod
    def _move_keypoints(keypoints: Tensor, old: Size, new: Size, before: float, after: float) -> Tensor:
        # The one place where pixel centres become continuous coordinates, and the other way round.
        ratio = _ratio(old, new).to(keypoints)
        return torch.cat([(keypoints[..., :2] + before) * ratio + after, keypoints[..., 2:]], dim=-1)


def move_boxes(boxes: Tensor, old: Size, new: Size) -> Tensor:
    """Boxes [N, 4] of an image of size `old` (height, width) as boxes of the same image at size `new`."""
    return boxes * _ratio(old, new).to(boxes).repeat(2)


def _ratio(old: Size, new: Size) -> Tensor:
    """New over old, (x, y), divided in float32 as the reference does."""
    old_sides, new_sides = (torch.tensor(size, dtype=torch.float32) for size in (old, new))
    return (new_sides / old_sides).flip(0)


def _size(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]


def _resized_8_bit(image: Tensor, size: Size) -> Tensor:
    """An image [3, h, w] in 0..1, resized with antialiasing in steps of 1/255."""
    # As Pillow does: along the rows, rounded with halves upward, and then along the columns. In float64, or the many
    # halves of simple ratios would round either way.
    levels = (image * 255).round()[None].double()
    for target in ((image.shape[1], size[1]), size):
        levels = F.interpolate(levels, size=target, mode="bilinear", align_corners=False, antialias=True)
        levels = (levels + 0.5).floor()
    return (levels[0] / 255).to(image.dtype)


def _padded(images: Sequence[Tensor], memory_format: torch.memory_format, divisor: int) -> Tensor:
    height, width = (math.ceil(max(image.shape[axis] for image in images) / divisor) * divisor for axis in (-2, -1))
    shape = (len(images), 3, height, width)
    batch = torch.zeros(shape, dtype=images[0].dtype, device=images[0].device).to(memory_format=memory_format)
    for slot, image in zip(batch, images, strict=True):
        slot[:, : image.shape[1], : image.shape[2]].copy_(image)
    return batch
