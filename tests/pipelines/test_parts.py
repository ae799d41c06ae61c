"""The parts of the pipelines: crops, duplicates, scores of joints, reading ahead."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from pyposeext.pipelines.crops import cut_out
from pyposeext.pipelines.duplicates import remove_duplicates
from pyposeext.pipelines.joint_scores import joint_scores
from pyposeext.pipelines.prefetch import prefetch
from pyposeext.skeletons import LSP14
from tests.io.poses import make_poses


@pytest.mark.parametrize("box", [(100.3, 60.2, 160.7, 200.9), (-30, -20, 50, 90), (250, 180, 400, 300), (5, 5, 6, 6)])
def test_a_crop_shows_its_place(box):
    # Red grows with x and green with y, so that a pixel's colour says where it is from.
    rows, columns = np.mgrid[:240, :320]
    image = np.stack([columns * 0.75, rows, 0 * rows], axis=2).astype(np.uint8)
    crops = cut_out(image, np.array([box], dtype=np.float32), (256, 192), 1.25)
    rows, columns = np.mgrid[10:250:20, 10:190:20]
    points = np.stack([columns, rows], axis=-1).reshape(1, -1, 2).astype(np.float32)
    places = crops.to_source(points)[0]
    inside = (places > 3).all(axis=1) & (places < [316, 236]).all(axis=1)
    colours = crops.images[0, points[0, :, 1].astype(int), points[0, :, 0].astype(int)]
    np.testing.assert_allclose(colours[inside, 0] / 0.75, places[inside, 0], atol=3)
    np.testing.assert_allclose(colours[inside, 1], places[inside, 1], atol=2)
    corners = crops.boxes[0].reshape(2, 2) * crops.scales[0] + crops.origins[0]
    np.testing.assert_allclose(corners.ravel(), box, atol=1e-3)


def test_crops_keep_the_shape_and_hold_the_box():
    boxes = np.array([[10, 10, 200, 30], [10, 10, 30, 200]], dtype=np.float32)
    crops = cut_out(np.zeros((240, 320, 3), np.uint8), boxes, (256, 192), 1.1)
    np.testing.assert_allclose(crops.scales[:, 0], crops.scales[:, 1], rtol=0.02)
    assert (crops.boxes[:, :2] >= 0).all()
    assert (crops.boxes[:, 2:] <= [192, 256]).all()


def test_of_two_findings_of_one_person_the_better_stays():
    poses = make_poses(3)
    twice = poses[[0, 1, 2, 1]]
    twice.keypoints[3, :, :2] += 0.5
    twice.scores[:] = [0.5, 0.6, 0.7, 0.8]
    kept = remove_duplicates(twice, 0.85)
    np.testing.assert_allclose(kept.scores, [0.8, 0.7, 0.5])
    assert len(remove_duplicates(twice, 1.0)) == 4


def test_duplicates_without_sigmas_go_by_their_boxes():
    poses = make_poses(2, skeleton=LSP14)
    twice = poses[[0, 1, 1]]
    assert len(remove_duplicates(twice, 0.9)) == 2


def test_nobody_has_no_duplicates():
    assert len(remove_duplicates(make_poses(0), 0.85)) == 0


def test_a_joint_score_is_the_mass_around_the_maximum():
    maps = torch.full((1, 3, 56, 56), -100.0)
    maps[0, 0, 20, 30] = 5.0
    maps[0, 1, 20, 30] = maps[0, 1, 23, 27] = 5.0  # within 3 cells: both count
    maps[0, 2, 20, 30], maps[0, 2, 24, 30] = 5.0, 4.0  # beyond
    expected = [1, 1, np.exp(5) / (np.exp(5) + np.exp(4))]
    np.testing.assert_allclose(joint_scores(maps)[0].numpy(), expected, rtol=1e-5)


def test_a_flat_map_has_a_low_score_and_edges_are_no_trouble():
    assert joint_scores(torch.zeros(1, 1, 56, 56)).item() < 0.02
    corner = torch.zeros(1, 1, 56, 56)
    corner[0, 0, 55, 55] = 30
    assert joint_scores(corner).item() == pytest.approx(1)
    assert joint_scores(torch.zeros(0, 17, 56, 56)).shape == (0, 17)


def test_prefetch_keeps_the_order():
    assert list(prefetch(iter(range(50)), 3)) == list(range(50))
    assert list(prefetch(iter(()))) == []


def test_prefetch_reads_only_so_far_ahead():
    read = []

    def items():
        for number in range(100):
            read.append(number)
            yield number

    ahead = prefetch(items(), 3)
    for _ in range(5):
        next(ahead)
    time.sleep(0.3)
    assert len(read) <= 5 + 3 + 1
    ahead.close()


def test_closing_prefetch_ends_its_thread():
    before = threading.active_count()
    ahead = prefetch(iter(range(100)), 2)
    next(ahead)
    assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before


def test_an_error_comes_in_its_place():
    def items():
        yield 1
        raise OSError("gone")

    ahead = prefetch(items())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)
