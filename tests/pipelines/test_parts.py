"""The parts of the pipelines: crops, duplicates, scores of joints, reading ahead."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import torch

from pyposeext.pipelines.crops import cut_out
from pyposeext.pipelines.duplicates import remove_duplicates
from pyposeext.pipelines.joint_scores import joint_scores
from pyposeext.pipelines.prefetch import prefetch
from pyposeext.skeletons import COCO17, LSP14
from pyposeext.structures import Poses
from pyposeext.trackers.linker import GraphLinker
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


def test_a_huge_box_takes_no_memory_and_shows_its_place():
    image = np.full((240, 320, 3), 255, np.uint8)
    boxes = np.array([[-1e5, -1e5, 1e5, 1e5], [-1e38, -1e38, 1e38, 1e38], [9e8, 9e8, 9.1e8, 9.1e8]], dtype=np.float32)
    crops = cut_out(image, boxes, (256, 192), 1.25)
    ground = (crops.images == (124, 116, 104)).all(axis=3)
    assert (~ground).sum(axis=(1, 2)).tolist() == [1, 1, 0]
    row, column = np.argwhere(~ground[0])[0]
    assert abs(row - 128) <= 1
    assert abs(column - 96) <= 1


def test_a_large_cut_is_the_same_by_way_of_its_visible_part(monkeypatch):
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8), None, 12)
    boxes = np.array([[-500, -300, 200, 900], [100, 60, 900, 700], [-300, -300, 700, 600]], dtype=np.float32)
    usual = cut_out(image, boxes, (256, 192), 1.25)
    monkeypatch.setattr("pyposeext.pipelines.crops._LARGEST_CUT", 0)
    other = cut_out(image, boxes, (256, 192), 1.25)
    np.testing.assert_array_equal(other.boxes, usual.boxes)
    for one, two in zip(usual.images, other.images, strict=True):
        # Only the rim of the image, a pixel wide, may lie otherwise.
        inside = cv2.erode((one != (124, 116, 104)).all(axis=2).astype(np.uint8), np.ones((5, 5))) > 0
        assert inside.sum() > 500
        assert np.abs(one[inside].astype(int) - two[inside]).max() <= 12


def test_of_two_findings_of_one_person_the_better_stays():
    poses = make_poses(3)
    twice = poses[[0, 1, 2, 1]]
    twice.keypoints[3, :, :2] += 0.5
    twice.scores[:] = [0.5, 0.6, 0.7, 0.8]
    kept = remove_duplicates(twice, 0.85)
    np.testing.assert_allclose(kept.scores, [0.8, 0.7, 0.5])
    assert len(remove_duplicates(twice, 1.0)) == 4


def person_at(x, y, height, scores):
    """One standing person: 17 joints in rows from head to feet."""
    rows = np.array(
        [0.06, 0.05, 0.05, 0.06, 0.06, 0.2, 0.2, 0.35, 0.35, 0.48, 0.48, 0.52, 0.52, 0.75, 0.75, 0.97, 0.97]
    )
    sides = np.array([0, 1, -1, 2, -2, 4, -4, 5, -5, 5, -5, 3, -3, 3, -3, 3, -3]) * 0.03
    keypoints = np.stack([x + sides * height, y + rows * height, np.broadcast_to(scores, 17)], axis=1)[None]
    return keypoints, [x - 0.2 * height, y, x + 0.2 * height, y + height]


@pytest.mark.parametrize("scores", [(0.9, 0.6), (0.6, 0.9)])
def test_a_person_found_whole_and_in_part_is_one(scores):
    whole, box = person_at(200, 100, 300, 0.9)
    part = whole.copy()
    part[0, :, :2] += np.random.default_rng(0).normal(0, 2, (17, 2))
    # The half box ends above the wrists: what is below it are guesses in a corner.
    part[0, 9:] = 150, 225, 0.1
    half = [box[0], box[1], box[2], 230]
    poses = Poses(np.concatenate([whole, part]), [box, half], scores, COCO17)
    np.testing.assert_allclose(remove_duplicates(poses, 0.6).scores, [0.9])
    assert len(remove_duplicates(poses, 0.85, joint_score=0.0)) == 2  # the guesses hide it


def test_two_people_who_stand_close_both_stay():
    one, box = person_at(200, 100, 300, 0.9)
    for x, y, height in ((260, 100, 300), (230, 190, 210), (200, 250, 150)):
        other, other_box = person_at(x, y, height, 0.8)
        poses = Poses(np.concatenate([one, other]), [box, other_box], [0.9, 0.8], COCO17)
        assert len(remove_duplicates(poses, 0.6)) == 2


def test_without_three_sure_joints_nobody_is_a_duplicate():
    scores = np.zeros(17)
    scores[:2] = 0.9
    keypoints, box = person_at(200, 100, 300, scores)
    twice = Poses(np.concatenate([keypoints] * 2), [box] * 2, [0.9, 0.8], COCO17)
    assert len(remove_duplicates(twice, 0.6)) == 2
    twice.keypoints[:, 2, 2] = 0.9
    assert len(remove_duplicates(twice, 0.6)) == 1


@pytest.mark.filterwarnings("error")
# Measured by the area of such a box, everybody is in one place.
@pytest.mark.parametrize(("skeleton", "left"), [(COCO17, 1), (LSP14, 2)])
def test_boxes_of_any_size_are_compared_in_silence(skeleton, left):
    twice = make_poses(2, skeleton=skeleton)[[0, 1, 1]]
    twice.boxes[0] = [-3e38, -3e38, 3e38, 3e38]
    twice.keypoints[0, :, :2] *= 1e30
    assert len(remove_duplicates(twice, 0.6)) == left
    state = None
    for _ in range(3):
        _, state = GraphLinker().link(twice[[0, 1]], state, (64, 48))


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


_INTERRUPTED = """
import signal, sys, threading, time
from pyposeext.pipelines.prefetch import prefetch

signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background is born deaf to it

def items():
    yield 1
    time.sleep(1)  # a batch under way, through which nothing gets
    sys.stdout.write("ended ")
    yield 2

ahead = prefetch(items())
next(ahead)
for delay in (0.2, 0.4):
    threading.Timer(delay, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)).start()
try:
    ahead.close()
except KeyboardInterrupt:
    print("interrupted", [thread.name for thread in threading.enumerate() if "prefetch" in thread.name])
"""


def test_an_interrupt_does_not_leave_the_thread_behind():
    """A thread inside a kernel crashes an interpreter that ends."""
    command = [sys.executable, "-c", _INTERRUPTED]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ended interrupted []\n", "")


def test_an_error_comes_in_its_place():
    def items():
        yield 1
        raise OSError("gone")

    ahead = prefetch(items())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)
