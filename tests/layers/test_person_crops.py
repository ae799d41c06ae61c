from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyposeext import ops
from pyposeext.errors import InputError
from pyposeext.layers.person_crops import crop_boxes, crop_matrices, inverse_matrices

SIZES = [(256, 192), (384, 288), (256, 256)]


def random_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sides = 20 + torch.rand(count, 2, generator=generator) * 400
    corners = torch.rand(count, 2, generator=generator) * 800 - 60
    return torch.cat([corners, corners + sides], dim=1)


def mapped(matrices, points):
    """[N, 2, 3] and [P, 2] to [N, P, 2]."""
    return points.double() @ matrices[:, :, :2].mT + matrices[:, None, :, 2]


def corners_of(size):
    height, width = size
    return torch.tensor([[0.0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1], [width / 2, height / 2]])


def three_point_matrix(region, size, degrees):
    """The map through three points, rounded to float32 as the released code does before it solves for the map.

    The centre, the end of an arm of half the region's width (upwards, turned by the rotation), and the end of the same
    arm turned about the former by a right angle.
    """
    x, y, region_width, _ = (float(value) for value in region)
    height, width = size
    angle = math.radians(degrees)

    def points(centre, arm):
        centre, arm = np.array(centre), np.array(arm)
        end = (centre + arm).astype(np.float32)
        centre = centre.astype(np.float32)
        back = centre - end
        return np.stack([centre, end, end + np.array([-back[1], back[0]], np.float32)]).astype(np.float64)

    source = points((x, y), (math.sin(angle) * region_width / 2, -math.cos(angle) * region_width / 2))
    target = points((width / 2, height / 2), (0, -width / 2))
    return np.linalg.solve(np.column_stack([source, np.ones(3)]), target).T


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("degrees", [0.0, 40.0, -71.0, 180.0])
def test_closed_form_against_the_three_points_of_the_released_code(size, degrees):
    regions = crop_boxes(random_boxes(50), size)
    matrices = crop_matrices(regions, size, torch.full((50,), degrees) if degrees else None)
    for region, matrix in zip(regions, matrices, strict=True):
        published = torch.from_numpy(three_point_matrix(region, size, degrees))
        # The pixels of the image that fall on the corners and the middle of the crop.
        pixels = mapped(inverse_matrices(matrix[None]), corners_of(size))[0]
        error = (mapped(published[None], pixels) - mapped(matrix[None], pixels)).abs().max()
        assert error < 1e-3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 4])
def test_there_and_back_is_where_it_was(size, stride):
    regions = crop_boxes(random_boxes(30), size)
    matrices = crop_matrices(regions, size, torch.linspace(-90, 90, 30))
    back = inverse_matrices(matrices, stride)
    assert back.dtype == torch.float64
    points = corners_of(size)
    for matrix, inverse in zip(matrices, back, strict=True):
        pixels = mapped(inverse[None], points / stride)[0]
        assert (mapped(matrix[None], pixels)[0] - points).abs().max() < 1e-9


def test_a_box_of_the_crops_shape_fills_four_fifths_of_it():
    boxes = torch.tensor([[100.0, 40, 175, 140]])  # 75 x 100
    regions = crop_boxes(boxes, (256, 192))
    assert regions.tolist() == [[137.5, 90, 75 * 1.25, 100 * 1.25]]
    corners = mapped(crop_matrices(regions, (256, 192)), boxes.reshape(2, 2))[0]
    expected = torch.tensor([[0.1 * 192, 0.1 * 256], [0.9 * 192, 0.9 * 256]], dtype=torch.float64)
    torch.testing.assert_close(corners, expected)


def test_the_shorter_side_is_widened():
    boxes = torch.tensor([[0.0, 0, 30, 100], [0, 0, 300, 100]])
    wide, tall = crop_boxes(boxes, (256, 192))
    assert wide.tolist() == [15, 50, 75 * 1.25, 100 * 1.25]
    assert tall.tolist() == [150, 50, 300 * 1.25, 400 * 1.25]
    assert crop_boxes(boxes, (256, 256), margin=1.0)[0].tolist() == [15, 50, 100, 100]


def test_only_the_width_counts():
    regions = torch.tensor([[50.0, 60, 96, 128], [50, 60, 96, 1]])
    first, second = crop_matrices(regions, (256, 192))
    assert torch.equal(first, second)
    assert first.tolist() == [[2, 0, 96 - 2 * 50], [0, 2, 128 - 2 * 60]]


def test_rotation_turns_the_right_upwards():
    regions = torch.tensor([[50.0, 60, 192, 256]])
    matrices = crop_matrices(regions, (256, 192), torch.tensor([90.0]))
    points = mapped(matrices, torch.tensor([[50.0, 60], [60, 60], [50, 70]]))[0]
    expected = torch.tensor([[96.0, 128], [96, 118], [106, 128]], dtype=torch.float64)
    torch.testing.assert_close(points, expected)


def test_a_pixel_of_the_heatmap_is_every_fourth_of_the_crop():
    matrices = crop_matrices(crop_boxes(random_boxes(5), (256, 192)), (256, 192))
    pixels = torch.tensor([[0.0, 0], [7, 11], [47, 63]])
    of_heatmap = mapped(inverse_matrices(matrices, 4), pixels)
    torch.testing.assert_close(of_heatmap, mapped(inverse_matrices(matrices), 4 * pixels))


def test_nothing_and_boxes_without_size():
    assert crop_boxes(torch.zeros(0, 4), (256, 192)).shape == (0, 4)
    assert crop_matrices(torch.zeros(0, 4), (256, 192)).shape == (0, 2, 3)
    assert inverse_matrices(torch.zeros(0, 2, 3)).shape == (0, 2, 3)
    matrices = crop_matrices(crop_boxes(torch.tensor([[5.0, 5, 5, 5]]), (256, 192)), (256, 192))
    assert not torch.isfinite(matrices).all()
    crops = ops.crop_affine(torch.full((10, 10, 3), 255, dtype=torch.uint8), matrices, (4, 4), mean=(0, 0, 0))
    assert (crops == 0).all()


def test_wrong_shapes():
    with pytest.raises(InputError, match=r"boxes must be \[N, 4\], got \[4\]"):
        crop_boxes(torch.zeros(4), (256, 192))
    with pytest.raises(InputError, match=r"regions must be \[N, 4\], got \[2, 5\]"):
        crop_matrices(torch.zeros(2, 5), (256, 192))
    with pytest.raises(InputError, match=r"rotation must be \[2\], one for each region, got \[1\]"):
        crop_matrices(torch.zeros(2, 4), (256, 192), torch.zeros(1))
    with pytest.raises(InputError, match=r"matrices must be \[N, 2, 3\], got \[1, 3, 3\]"):
        inverse_matrices(torch.zeros(1, 3, 3))
