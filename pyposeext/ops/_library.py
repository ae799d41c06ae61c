"""Loads the extension, so that `torch.ops.pyposeext` is filled, and what the op modules share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

try:
    from pyposeext import _C  # noqa: F401  (importing it registers the ops)
except ImportError as error:
    raise ImportError(
        "pyposeext's compiled extension pyposeext._C cannot be loaded: "
        f"install the package with pip, not by its folder alone ({error})"
    ) from error


def is_channels_last(tensor: Tensor) -> bool:
    """Whether channels lie next to each other: the ops then return the same layout."""
    if tensor.is_contiguous():
        return False
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.dim() in formats and tensor.is_contiguous(memory_format=formats[tensor.dim()])


def empty_with_layout(like: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    """What a fake kernel returns: the size and layout that the real one allocates, without data."""
    memory_format = torch.contiguous_format
    if channels_last:
        memory_format = torch.channels_last if len(size) == 4 else torch.channels_last_3d
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one number or two."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)


def rois_from_boxes(boxes: Tensor | Sequence[Tensor]) -> Tensor:
    """Rois [K, 5] from rois, or from one tensor of boxes [K_i, 4] per image."""
    if isinstance(boxes, Tensor):
        return boxes
    if any(part.dim() != 2 or part.shape[1] != 4 for part in boxes):
        raise ValueError(f"boxes must be a list of [K, 4] tensors, got shapes {[list(part.shape) for part in boxes]}")
    parts = [torch.cat([part.new_full((len(part), 1), index), part], dim=1) for index, part in enumerate(boxes)]
    return torch.cat(parts) if parts else torch.zeros(0, 5)
