"""What the overlay shows, and what it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pyposeext.errors import InputError
from pyposeext.skeletons import COCO17, NO_JOINTS
from pyposeext.structures import Poses
from pyposeext.viz.draw import draw_poses, track_colour
from tests.io.poses import make_poses, with_masks

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


def masked(count=1, ids=None):
    """People without joints whose masks fill their boxes, (60, 40) to (140, 120) and so on."""
    boxes = np.array([[60 + 50 * n, 40, 140 + 50 * n, 120] for n in range(count)], np.float32)
    poses = Poses(np.zeros((count, 0, 3)), boxes, np.linspace(0.5, 0.9, count), NO_JOINTS, ids)
    return with_masks(poses)


def test_a_mask_is_filled_and_outlined_in_the_colour_of_its_track():
    for ids, colour in ((None, (120, 230, 120)), (np.array([3]), track_colour(3))):
        image = draw_poses(GREY, masked(ids=ids), labels=False)
        expected = np.rint(0.6 * 128 + 0.4 * np.array(colour))
        np.testing.assert_array_equal(image[80, 100], expected)
        seen = changed(image)
        assert seen[45:115, 65:135].all()
        assert not seen[:35].any()
        assert not seen[:, 150:].any()
    with_outline = draw_poses(GREY, replace(masked(), skeleton=COCO17, keypoints=np.zeros((1, 17, 3))))
    rows = np.flatnonzero(changed(with_outline)[:, 100])
    for edge in (rows[:6], rows[-6:]):
        # Smoothing takes some of the colour of a line of one pixel; dark lines lie beside it.
        assert np.abs(with_outline[edge, 100].astype(int) - (120, 230, 120)).max(axis=1).min() < 40
        assert (with_outline[edge, 100] == 20).all(axis=1).sum() == 2


def test_masks_may_be_left_out():
    people = replace(masked(), skeleton=COCO17, keypoints=np.zeros((1, 17, 3)))
    assert changed(draw_poses(GREY, people)).any()
    assert not changed(draw_poses(GREY, people, masks=False)).any()


def test_people_without_joints_have_their_boxes_and_ids():
    plain = changed(draw_poses(GREY, masked(), masks=False, labels=False))
    assert plain[40, 60:140].all()
    assert not plain[60:100, 70:130].any()
    assert changed(draw_poses(GREY, masked(ids=np.array([5])), masks=False))[20:36, 50:70].any()


def test_the_best_mask_lies_on_top():
    image = draw_poses(GREY, masked(2, np.array([0, 1])), labels=False)
    once = 0.6 * 128 + 0.4 * np.array(track_colour(0))
    np.testing.assert_allclose(image[80, 125], 0.6 * once + 0.4 * np.array(track_colour(1)), atol=1)


def test_empty_masks_and_masks_of_another_size():
    boxes = np.array([[900, 900, 950, 950]], np.float32)
    nothing = with_masks(Poses(np.zeros((1, 17, 3)), boxes, np.ones(1), COCO17))
    assert not changed(draw_poses(GREY, nothing)).any()
    with pytest.raises(InputError, match=r"masks must have the image's size \[120, 320\], got \[240, 320\]"):
        draw_poses(GREY[:120], masked())


def test_an_image_that_is_none_is_refused():
    with pytest.raises(InputError, match=r"image must be uint8 \[H, W, 3\]"):
        draw_poses(np.zeros((4, 4), np.uint8), make_poses(0))
