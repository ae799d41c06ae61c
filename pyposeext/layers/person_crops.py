"""Where a person's crop lies in the image: the box to crop geometry of top-down pose estimation.

Xiao et al., "Simple Baselines for Human Pose Estimation and Tracking", ECCV 2018, section 3, and Sun et al., HRNet,
CVPR 2019, section 4.1. Whole numbers are pixel centres on all sides: pixel q of a heatmap of stride s is pixel s * q of
the crop, as in the released code, without a half-pixel term.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyposeext.errors import InputError


def crop_boxes(boxes: Tensor, size: tuple[int, int], margin: float = 1.25) -> Tensor:
    """The regions that crops of `boxes` show: the shorter side widened to the crop's shape, then both by `margin`.

    Args:
        boxes: [N, 4], x1, y1, x2, y2 in pixels of the image.
        size: (height, width) of a crop.
        margin: 1.25 in the released models.

    Returns:
        float64 [N, 4], centre x, centre y, width, height. The product of the last two is the area that HRNet's OKS
        suppression and its COCO results take.

    Raises:
        InputError: boxes of another shape.
    """
    _check_shape("boxes", boxes, 4)
    boxes = boxes.double()
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = boxes[:, 2:] - boxes[:, :2]
    aspect = size[1] / size[0]
    widths = torch.maximum(sides[:, 0], sides[:, 1] * aspect) * margin
    return torch.stack([centres[:, 0], centres[:, 1], widths, widths / aspect], dim=1)


def crop_matrices(regions: Tensor, size: tuple[int, int], rotation: Tensor | None = None) -> Tensor:
    """From pixels of the image to pixels of the crop.

    Args:
        regions: [N, 4], as `crop_boxes` gives them.
        size: (height, width) of a crop.
        rotation: [N] in degrees: by how much the content is turned about the crop's centre, as HRNet counts it
            (positive turns what is right of the centre upwards). None for none.

    Returns:
        float64 [N, 2, 3], as cv2.warpAffine and `pyposeext.ops.crop_affine` take them. Only the region's width decides
        the scale. Not finite where that width is 0. The released code solves for the map from three float32 points,
        which agrees to about 1e-3 pixels of the crop.

    Raises:
        InputError: regions or a rotation of another shape.
    """
    _check_shape("regions", regions, 4)
    if rotation is not None and rotation.shape != regions.shape[:1]:
        raise InputError(f"rotation must be [{len(regions)}], one for each region, got {list(rotation.shape)}")
    height, width = size
    centre, scale = regions[:, :2].double(), width / regions[:, 2].double()
    angle = torch.zeros_like(scale) if rotation is None else torch.deg2rad(rotation.to(scale))
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([torch.stack([cosine, sine], dim=1), torch.stack([-sine, cosine], dim=1)], dim=1)
    x, y = (linear @ centre[:, :, None])[:, :, 0].unbind(dim=1)
    shift = torch.stack([width / 2 - x, height / 2 - y], dim=1)
    return torch.cat([linear, shift[:, :, None]], dim=2)


def inverse_matrices(matrices: Tensor, stride: float = 1) -> Tensor:
    """From pixels of the crop, or of a heatmap of that stride, back to pixels of the image: float64 [N, 2, 3].

    The inverse of a matrix without one is not finite.

    Raises:
        InputError: matrices of another shape.
    """
    _check_shape("matrices", matrices, 2, 3)
    matrices = matrices.double()
    (a, b, x), (c, d, y) = (row.unbind(dim=1) for row in matrices.unbind(dim=1))
    determinant = a * d - b * c
    inverse = torch.stack([torch.stack([d, -b], dim=1), torch.stack([-c, a], dim=1)], dim=1)
    inverse = inverse / determinant[:, None, None]
    shift = -(inverse @ torch.stack([x, y], dim=1)[:, :, None])
    return torch.cat([inverse * stride, shift], dim=2)


def _check_shape(name: str, value: Tensor, *sides: int) -> None:
    if value.dim() != 1 + len(sides) or tuple(value.shape[1:]) != sides:
        raise InputError(f"{name} must be [N, {', '.join(map(str, sides))}], got {list(value.shape)}")
