"""What the overlay shows, and what it does not."""

from __future__ import annotations

import numpy as np
import pytest

from pyposeext.errors import InputError
from pyposeext.skeletons import COCO17
from pyposeext.structures import Poses
from pyposeext.viz.draw import draw_poses, track_colour
from tests.io.poses import make_poses

GREY = np.full((240, 320, 3), 128, np.uint8)


def one_limb(ids=None, score=0.9):
    """A person of whom only the left thigh, from (100, 80) to (100, 160), is seen."""
    keypoints = np.zeros((1, 17, 3))
    keypoints[0, 11], keypoints[0, 13] = (100, 80, score), (100, 160, score)
    return Poses(keypoints, np.array([[60, 40, 140, 200]]), np.array([0.9]), COCO17, ids)


def changed(image):
    return (image != GREY).any(axis=2)


def test_a_limb_has_the_colour_of_its_track():
    for track in (0, 1, 7):
        image = draw_poses(GREY, one_limb(np.array([track])), labels=False)
        assert np.abs(image[120, 100].astype(int) - track_colour(track)).max() < 40
    assert (GREY == 128).all()


def test_only_the_limb_is_touched():
    rows, columns = np.nonzero(changed(draw_poses(GREY, one_limb(np.array([3])), labels=False)))
    assert 70 <= rows.min() < 82
    assert 158 < rows.max() <= 170
    assert 90 <= columns.min() < 100 < columns.max() <= 110


def test_low_scores_are_not_drawn():
    assert not changed(draw_poses(GREY, one_limb(score=0.2))).any()
    assert changed(draw_poses(GREY, one_limb(score=0.2), keypoint_threshold=0.1)).any()


def test_labels_and_boxes_are_drawn_on_wish():
    poses = one_limb(np.array([5]))
    plain = draw_poses(GREY, poses, labels=False)
    labelled = draw_poses(GREY, poses)
    assert (labelled[:78] != plain[:78]).any()
    boxed = draw_poses(GREY, poses, labels=False, boxes=True)
    assert changed(boxed)[40:200, 60].all()
    assert not changed(plain)[40:200, 60].any()


def test_lines_grow_with_the_image():
    small = changed(draw_poses(GREY, one_limb(), labels=False))[120].sum()
    large = (
        (draw_poses(np.full((1080, 1920, 3), 128, np.uint8), one_limb(), labels=False) != 128).any(axis=2)[120].sum()
    )
    assert 3 <= small <= 7 < large


def test_tracks_have_colours_of_their_own():
    colours = np.array([track_colour(track) for track in range(12)], dtype=int)
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2)
    assert distances[~np.eye(12, dtype=bool)].min() > 40


def test_people_far_outside_and_broken_numbers_do_not_stop_it():
    poses = make_poses(3)
    poses.keypoints[0, :, :2] = 1e9
    poses.keypoints[1] = np.nan
    poses.boxes[1] = np.nan
    poses.boxes[2] = -1e9
    assert draw_poses(GREY, poses, boxes=True).shape == GREY.shape


@pytest.mark.parametrize("size", [(1, 1), (8, 300), (300, 8)])
def test_tiny_images(size):
    assert draw_poses(np.zeros((*size, 3), np.uint8), make_poses(2), boxes=True).shape == (*size, 3)


def test_nobody_changes_nothing():
    assert not changed(draw_poses(GREY, make_poses(0))).any()


def test_an_image_that_is_none_is_refused():
    with pytest.raises(InputError, match=r"image must be uint8 \[H, W, 3\]"):
        draw_poses(np.zeros((4, 4), np.uint8), make_poses(0))
