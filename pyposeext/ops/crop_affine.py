"""Crops of people from uint8 frames, normalised for a network: cv2.warpAffine and what follows it, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyposeext.ops import _library  # noqa: F401  (registers the op)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def crop_affine(
    frames: Tensor,
    matrices: Tensor,
    size: Sequence[int],
    frame_index: Tensor | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    swap_channels: bool = False,
    inverse_map: bool = False,
) -> Tensor:
    """Affine crops, bilinear, then (v / 255 - mean) / std.

    Args:
        frames: [F, H, W, 3] or [H, W, 3], uint8, any strides.
        matrices: [N, 2, 3], any float dtype: from pixels (x, y) of the frame to pixels of the crop, as cv2.warpAffine
            takes them. Whole numbers are pixel centres on both sides.
        size: (height, width) of the crops.
        frame_index: [N], int64: the frame of each crop. None: all from the only frame.
        mean, std: of the output's channels, for values of 0..1. By default ImageNet's for red, green and blue.
        dtype: of the result: torch.float32, float16 or bfloat16.
        channels_last: the result's memory format.
        swap_channels: turns the order of the channels round, BGR to RGB or back.
        inverse_map: `matrices` lead from the crop to the frame, as under cv2.WARP_INVERSE_MAP.

    Returns:
        [N, 3, height, width]. Pixels outside the frame are black before normalisation, as under cv2.BORDER_CONSTANT,
        and blended with their neighbours. A matrix that is not finite, or has no inverse where one is needed, gives
        black everywhere. Positions are computed in float64 and values in float32: within 1e-3 grey levels of float64,
        whatever the size of the frame, then rounded to `dtype`. cv2 rounds its results to whole grey levels, older
        versions also positions to 1/32 pixel: they differ by up to 2 grey levels on smooth images.

    Raises:
        RuntimeError: a wrong rank, shape, dtype, device, size, mean or std; on the CPU also a frame index that does not
            exist. On a GPU such a crop is black everywhere.

    Not differentiable. Deterministic on every device.
    """
    height, width = size
    stack = frames[None] if frames.dim() == 3 else frames
    return torch.ops.pyposeext.crop_affine(
        stack,
        matrices.detach(),
        frame_index,
        height,
        width,
        list(mean),
        list(std),
        str(dtype).removeprefix("torch."),
        channels_last,
        swap_channels,
        inverse_map,
    )


@torch.library.register_fake("pyposeext::crop_affine")
def _fake(  # type: ignore[no-untyped-def]
    frames, matrices, frame_index, height, width, mean, std, dtype, channels_last, swap_channels, inverse_map
):
    return torch.empty(
        (matrices.shape[0], 3, height, width),
        dtype=getattr(torch, dtype),
        device=frames.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def reference(
    frames: Tensor,
    matrices: Tensor,
    size: Sequence[int],
    frame_index: Tensor | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float64,
    channels_last: bool = False,
    swap_channels: bool = False,
    inverse_map: bool = False,
) -> Tensor:
    """The specification in plain PyTorch: as `crop_affine`, computed in float64 and rounded to `dtype`."""
    height, width = size
    stack = frames[None] if frames.dim() == 3 else frames
    count, (rows, columns) = len(matrices), stack.shape[1:3]
    matrices = matrices.double()
    if not inverse_map:
        linear, shift = matrices[:, :, :2], matrices[:, :, 2:]
        determinant = linear[:, 0, 0] * linear[:, 1, 1] - linear[:, 0, 1] * linear[:, 1, 0]
        adjugate = torch.stack([linear[:, 1, 1], -linear[:, 0, 1], -linear[:, 1, 0], linear[:, 0, 0]], dim=1)
        inverse = (adjugate / determinant[:, None]).reshape(count, 2, 2)
        matrices = torch.cat([inverse, -inverse @ shift], dim=2)
    grid = torch.ones(height, width, 3, dtype=torch.float64, device=frames.device)
    grid[..., 0] = torch.arange(width, device=frames.device)
    grid[..., 1] = torch.arange(height, device=frames.device)[:, None]
    position = (matrices[:, None, None] * grid[..., None, :]).sum(dim=4)  # [N, height, width, 2], x and y
    limit = torch.tensor([columns, rows], dtype=torch.float64, device=frames.device)
    reached = ((position > -1) & (position < limit)).all(dim=3)
    position = torch.where(reached[..., None], position, 0)
    low = position.floor()
    x, y = (position - low).unbind(dim=3)
    index = torch.zeros(count, dtype=torch.int64, device=frames.device) if frame_index is None else frame_index
    total = torch.zeros(count, height, width, 3, dtype=torch.float64, device=frames.device)
    for i in (0, 1):
        for j in (0, 1):
            column, row = low[..., 0].long() + j, low[..., 1].long() + i
            exists = reached & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
            weight = (y if i else 1 - y) * (x if j else 1 - x) * exists
            if stack.numel() > 0:
                pixel = stack[index[:, None, None], row.clamp(0, rows - 1), column.clamp(0, columns - 1)]
                total = total + weight[..., None] * pixel
    total = total.flip(3) if swap_channels else total
    value = (total / 255 - total.new_tensor(mean)) / total.new_tensor(std)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return value.permute(0, 3, 1, 2).to(dtype).contiguous(memory_format=layout)
