"""Likeness of people, on numbers computed by hand and by COCO's evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from pyposeext.errors import InputError
from pyposeext.skeletons import COCO17, LSP14, POSETRACK18
from pyposeext.structures import Skeleton
from pyposeext.trackers.costs import box_areas, box_iou, head_sizes, pose_oks, pose_pck


def test_iou_by_hand():
    before = np.array([[0.0, 0, 10, 10], [20, 20, 30, 40]])
    now = np.array([[5.0, 0, 15, 10], [20, 20, 30, 40], [100, 100, 110, 110]])
    np.testing.assert_allclose(box_iou(before, now), [[50 / 150, 0, 0], [0, 1, 0]])
    # With +1: sides of 11; the overlap of the first pair is 6 x 11.
    assert box_iou(before, now, plus_one=True)[0, 0] == pytest.approx(66 / (2 * 121 - 66))


def test_iou_of_boxes_without_area_is_zero():
    point = np.array([[5.0, 5, 5, 5]])
    assert box_iou(point, point).tolist() == [[0]]
    assert box_iou(point, point, plus_one=True).tolist() == [[1]]


def test_oks_is_cocos():
    k = np.arange(17)
    truth = np.stack([100 + 7 * k, 50 + 5 * (k % 6), [2, 1, 2, 0, 0, 2, 2, 2, 1, 2, 2, 2, 2, 0, 2, 2, 2]], axis=1)
    found = truth + np.stack([k % 4, -(k % 3), 0 * k], axis=1)
    found[:, 2] = 2
    oks = pose_oks(truth[None].astype(float), found[None].astype(float), np.array([5000.0]), COCO17.sigmas, 1)
    assert oks[0, 0] == pytest.approx(0.9588324479067121, abs=1e-12)


def test_oks_of_a_pose_with_itself_is_one_and_without_common_joints_zero():
    pose = np.random.default_rng(0).uniform(0, 100, (1, 17, 3))
    pose[..., 2] = 1
    unseen = pose.copy()
    unseen[..., 2] = 0
    assert pose_oks(pose, pose, np.array([100.0]), COCO17.sigmas, 0.5)[0, 0] == 1
    assert pose_oks(pose, unseen, np.array([100.0]), COCO17.sigmas, 0.5)[0, 0] == 0


def test_oks_needs_a_sigma_per_joint():
    with pytest.raises(InputError, match="OKS needs one sigma per joint, 14, got 0"):
        pose_oks(np.zeros((1, 14, 3)), np.zeros((1, 14, 3)), np.ones(1), LSP14.sigmas)


def test_pck_counts_joints_within_half_a_head():
    before = np.zeros((1, 4, 3))
    before[..., 2] = 1
    now = before.copy()
    now[0, :, 0] = [0, 5.4, 5.5, 5.6]  # head 10: half of 10 + 1 is 5.5
    assert pose_pck(before, now, np.array([10.0]))[0, 0] == 0.75


def test_head_sizes():
    keypoints = np.zeros((1, 17, 3))
    keypoints[0, 1, :2], keypoints[0, 2, :2] = (10, 30), (13, 26)
    assert head_sizes(keypoints, POSETRACK18).tolist() == [5]
    keypoints = np.zeros((1, 17, 3))
    keypoints[0, 0, :2], keypoints[0, 5, :2], keypoints[0, 6, :2] = (50, 10), (40, 30), (60, 30)
    assert head_sizes(keypoints, COCO17).tolist() == [40]
    with pytest.raises(InputError, match="PCK needs a head size"):
        head_sizes(np.zeros((1, 1, 3)), Skeleton("one", ("hand",), (), ()))


@pytest.mark.filterwarnings("error")
def test_the_largest_numbers_have_squares_too():
    boxes = np.array([[0, 0, 3e38, 3e38], [-3e38, -3e38, 3e38, 3e38], [10, 10, 20, 30]], np.float32)
    np.testing.assert_allclose(box_iou(boxes, boxes), [[1, 0.25, 0], [0.25, 1, 0], [0, 0, 1]], atol=1e-9)
    np.testing.assert_allclose(box_areas(boxes), [9e76, 36e76, 200], rtol=1e-6)
    poses = np.stack([np.full((17, 3), value, np.float32) for value in (3e38, -3e38, 5)])
    poses[..., 2] = 1
    np.testing.assert_allclose(pose_oks(poses, poses, np.full(3, 100.0), COCO17.sigmas), np.eye(3))
    poses[:, 0, 0] = 0
    assert (np.diag(pose_pck(poses, poses, head_sizes(poses, COCO17))) == 1).all()
