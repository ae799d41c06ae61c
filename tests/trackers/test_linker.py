"""Ids over time: published behaviour, and what the options are for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pyposeext.errors import InputError
from pyposeext.skeletons import COCO17, MPII16, NO_JOINTS
from pyposeext.structures import Poses
from pyposeext.trackers.linker import PRESETS, GraphLinker, LinkerSettings, get_preset

PUBLISHED = PRESETS["detect_and_track"]


def people(*boxes, score=0.99):
    """People standing in these boxes, all joints in the same places of the box."""
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    inside = np.random.default_rng(0).uniform(0.1, 0.9, (17, 2))
    points = boxes[:, None, :2] + inside * (boxes[:, None, 2:] - boxes[:, None, :2])
    keypoints = np.concatenate([points, np.ones((len(boxes), 17, 1))], axis=2)
    return Poses(keypoints, boxes, np.broadcast_to(score, len(boxes)), COCO17)


def link_all(linker, frames, size=None):
    """The ids of every frame."""
    state, ids = None, []
    for poses in frames:
        linked, state = linker.link(poses, state, size)
        ids.append(linked.ids.tolist())
    return ids


A, B, C = (0, 0, 40, 100), (200, 0, 240, 100), (400, 300, 460, 420)


def moved(box, dx, dy=0):
    return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy


@pytest.mark.parametrize("preset", PRESETS)
def test_people_who_stand_still_keep_their_ids(preset):
    assert link_all(GraphLinker(preset), [people(A, B, C)] * 5) == [[0, 1, 2]] * 5


@pytest.mark.parametrize("preset", PRESETS)
def test_another_order_keeps_the_ids(preset):
    frames = [people(A, B, C), people(C, A, B), people(B, C, A)]
    assert link_all(GraphLinker(preset), frames) == [[0, 1, 2], [2, 0, 1], [1, 2, 0]]


def test_a_faint_partial_finding_does_not_take_over_a_track():
    """It fits the track better than the strong finding does, which comes first all the same."""
    part = (0, 0, 40, 60)
    frames = [people(part), people(A, part, score=[0.95, 0.3]), people(A)]
    assert link_all(GraphLinker(), frames) == [[0], [0], [0]]
    one_pass = GraphLinker(replace(LinkerSettings(), birth_score=None))
    assert link_all(one_pass, frames)[1] == [1, 0]


def test_a_faint_person_goes_on_with_a_track_that_nobody_else_claims():
    assert link_all(GraphLinker(), [people(A), people(moved(A, 2), score=0.3), people(A)]) == [[0], [0], [0]]
    assert link_all(GraphLinker(), [people(A, score=0.3)]) == [[]]


def test_a_buffer_bridges_a_gap_after_which_nothing_overlaps():
    """After four missed frames the person is a box's width further on: boxes enlarged by 40 % overlap again."""
    frames = [people(A), *[people()] * 4, people(moved(A, 41))]
    settings = replace(LinkerSettings(), oks_weight=0.0, box_weight=1.0)
    assert link_all(GraphLinker(settings), frames)[-1] == [0]
    assert link_all(GraphLinker(replace(settings, buffer=0.0)), frames)[-1] == [1]
    with pytest.raises(InputError, match="buffer must be 0 or more, got -1"):
        LinkerSettings(buffer=-1)


def test_greedy_links_as_well():
    linker = GraphLinker(replace(PUBLISHED, assignment="greedy"))
    assert link_all(linker, [people(A, B), people(moved(B, 3), moved(A, 3))]) == [[0, 1], [1, 0]]


def test_without_a_gate_a_birth_and_a_death_in_one_frame_are_linked():
    assert link_all(GraphLinker(PUBLISHED), [people(A, B), people(A, C)]) == [[0, 1], [0, 1]]
    gated = replace(PUBLISHED, maximum_cost=0.9)
    assert link_all(GraphLinker(gated), [people(A, B), people(A, C)]) == [[0, 1], [0, 2]]


def test_a_frame_without_people_breaks_all_published_tracks():
    assert link_all(GraphLinker(PUBLISHED), [people(A), people(), people(A)]) == [[0], [], [1]]


def test_a_gap_is_bridged_for_as_long_as_it_may():
    for missed, expected in ((2, 0), (3, 1)):
        frames = [people(A), *[people()] * missed, people(A)]
        assert link_all(GraphLinker(replace(PUBLISHED, max_gap=2)), frames)[-1] == [expected]


def test_one_person_missed_does_not_break_the_other():
    linker = GraphLinker(replace(PUBLISHED, max_gap=1))
    assert link_all(linker, [people(A, B), people(B), people(A, B)]) == [[0, 1], [1], [0, 1]]


def test_constant_velocity_finds_a_person_after_a_gap():
    step = 30
    walk = [people(moved(A, step * number)) for number in range(4)]
    frames = [*walk, people(), people(), people(moved(A, step * 6))]
    settings = replace(PUBLISHED, max_gap=5, maximum_cost=0.7)
    assert link_all(GraphLinker(replace(settings, constant_velocity=True, maximum_cost=0.9)), frames)[-1] == [0]
    assert link_all(GraphLinker(replace(settings, maximum_cost=0.9)), frames)[-1] == [1]


def test_weak_small_and_outside_people_are_left_out():
    found = people(A, B, (0, 0, 7, 7), (600, 10, 700, 90), score=[0.99, 0.94, 0.99, 0.99])
    linked, _ = GraphLinker(PUBLISHED).link(found, None, (640, 480))
    np.testing.assert_array_equal(linked.boxes, [A, (600, 10, 640, 90)])
    assert linked.ids.tolist() == [0, 1]
    # The last one, clipped to the image, has 40 x 80 pixels; outside it, none.
    linked, _ = GraphLinker(PUBLISHED).link(found, None, (600, 480))
    assert linked.ids.tolist() == [0]


def test_a_track_begins_strong_and_goes_on_weak():
    linker = GraphLinker(LinkerSettings(minimum_score=0.2, birth_score=0.5))
    frames = [people(A, score=0.4), people(A, score=0.6), people(A, score=0.3), people(A, score=0.1)]
    assert link_all(linker, frames) == [[], [0], [0], []]


def test_ids_wrap():
    linker = GraphLinker(replace(PUBLISHED, id_limit=3))
    frames = [people(A, B), people(), people(A, B), people(), people(A)]
    assert link_all(linker, frames) == [[0, 1], [], [2, 0], [], [1]]


@pytest.mark.parametrize("weight", ["oks_weight", "pck_weight"])
def test_poses_tell_people_apart_whose_boxes_do_not(weight):
    one, other = people(A), people(A)
    other.keypoints[:, :, 0] = A[0] + A[2] - other.keypoints[:, :, 0]  # the mirrored pose in the same box
    both = Poses(np.concatenate([one.keypoints, other.keypoints]), np.array([A, A]), np.array([0.99, 0.99]), COCO17)
    settings = replace(PUBLISHED, box_weight=0.0, **{weight: 1.0})
    assert link_all(GraphLinker(settings), [both, both[[1, 0]]]) == [[0, 1], [1, 0]]


def test_coordinates_that_are_no_numbers_do_not_stop_it():
    broken = people(A, B)
    broken.keypoints[1] = np.nan
    assert link_all(GraphLinker("default"), [people(A, B), broken])[1][0] == 0


def test_the_state_does_not_grow():
    linker, state = GraphLinker("default"), None
    for number in range(100):
        _, state = linker.link(people(moved(A, 1000 * number)), state)
    assert len(state.ids) == linker.settings.max_gap + 1


def test_the_published_preset_links_as_published():
    assert (PUBLISHED.minimum_score, PUBLISHED.minimum_area) == (0.95, 50)
    assert (PUBLISHED.box_weight, PUBLISHED.oks_weight, PUBLISHED.pck_weight) == (1, 0, 0)
    assert (PUBLISHED.maximum_cost, PUBLISHED.max_gap, PUBLISHED.id_limit) == (None, 0, 999)
    assert PUBLISHED.plus_one
    assert not PUBLISHED.constant_velocity


@pytest.mark.parametrize("skeleton", [NO_JOINTS, MPII16])
def test_without_sigmas_people_are_linked_by_their_boxes(skeleton):
    def boxed(*boxes):
        return Poses(np.zeros((len(boxes), len(skeleton), 3)), np.array(boxes), np.full(len(boxes), 0.9), skeleton)

    # An overlap of a third: too little for half the weight of the cost, enough for all of it.
    frames = [boxed(A, B), boxed(moved(B, 20), moved(A, 20)), boxed(moved(A, 25), C)]
    assert link_all(GraphLinker(), frames) == [[0, 1], [1, 0], [0, 2]]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"assignment": "best"}, "assignment must be one of hungarian, greedy, got 'best'"),
        ({"box_weight": -1.0}, "the weights of box, OKS and PCK"),
        ({"box_weight": 0.0, "oks_weight": 0.0}, "not all 0"),
        ({"max_gap": -1}, "max_gap must be 0 or more"),
        ({"id_limit": 0}, "id_limit must be 1 or more"),
    ],
)
def test_wrong_settings(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        LinkerSettings(**arguments)


def test_an_unknown_preset():
    with pytest.raises(InputError, match="preset must be one of default, detect_and_track, got 'none'"):
        get_preset("none")
