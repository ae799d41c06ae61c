from __future__ import annotations

import numpy as np
import pytest

from pyposeext import InputError, Poses, Skeleton
from pyposeext.skeletons import COCO17, LSP14, POSETRACK18, get_skeleton

PAIR = Skeleton("pair", ("left", "right"), ((0, 1),), ((0, 1),))


def make(count: int) -> Poses:
    return Poses(
        np.arange(count * 6).reshape(count, 2, 3),
        np.arange(count * 4).reshape(count, 4),
        np.linspace(0, 1, count),
        PAIR,
        ids=np.arange(count),
        masks=[{"counts": str(i)} for i in range(count)],
    )


@pytest.mark.parametrize("skeleton", [COCO17, POSETRACK18, LSP14], ids=lambda skeleton: skeleton.name)
def test_flip_order_swaps_left_and_right_and_undoes_itself(skeleton: Skeleton) -> None:
    order = skeleton.flip_order
    assert [order[order[joint]] for joint in range(len(skeleton))] == list(range(len(skeleton)))
    for joint, name in enumerate(skeleton.names):
        mirrored = name.replace("left", "?").replace("right", "left").replace("?", "right")
        assert skeleton.names[order[joint]] == mirrored
    assert get_skeleton(skeleton.name) is skeleton


def test_coco_sigmas_and_edges() -> None:
    assert COCO17.sigmas[0] == 0.026
    assert COCO17.sigmas[-1] == 0.089
    assert len(COCO17.edges) == 19
    assert len(POSETRACK18.edges) == 16


def test_wrong_skeletons_are_refused() -> None:
    with pytest.raises(InputError, match=r"edges must be indices in 0..1, got \(0, 2\)"):
        Skeleton("bad", ("a", "b"), ((0, 2),), ())
    with pytest.raises(InputError, match="sigmas must hold 2 values or none, got 1"):
        Skeleton("bad", ("a", "b"), (), (), (0.1,))
    known = "coco17, lsp14, mpii16, none, posetrack17, posetrack18"
    with pytest.raises(InputError, match=f"skeleton must be one of {known}, got 'x'"):
        get_skeleton("x")


@pytest.mark.parametrize("index", [[2, 0], slice(1, None), np.array([True, False, True])])
def test_selecting_people_selects_all_that_belongs_to_them(index: object) -> None:
    people = make(3)
    chosen = people[index]
    rows = np.arange(3)[index]
    assert chosen.ids.tolist() == rows.tolist()
    np.testing.assert_array_equal(chosen.keypoints, people.keypoints[rows])
    assert [mask["counts"] for mask in chosen.masks] == [str(row) for row in rows]
    assert chosen.skeleton is PAIR


def test_a_single_number_is_no_selection() -> None:
    with pytest.raises(InputError, match="index must be a slice"):
        make(2)[0]


def test_arrays_are_checked_and_made_float32() -> None:
    people = make(2)
    assert people.keypoints.dtype == people.boxes.dtype == people.scores.dtype == np.float32
    with pytest.raises(InputError, match=r"keypoints must be \[N, 2, 3\], got shape \[1, 3, 3\]"):
        Poses(np.zeros((1, 3, 3)), np.zeros((1, 4)), np.zeros(1), PAIR)
    with pytest.raises(InputError, match=r"boxes must be \[1, 4\], got shape \[2, 4\]"):
        Poses(np.zeros((1, 2, 3)), np.zeros((2, 4)), np.zeros(1), PAIR)
    with pytest.raises(InputError, match=r"ids must be \[1\] or None, got shape \[2\]"):
        Poses(np.zeros((1, 2, 3)), np.zeros((1, 4)), np.zeros(1), PAIR, ids=np.zeros(2))
    with pytest.raises(InputError, match="masks must hold 1 encodings or be None, got 0"):
        Poses(np.zeros((1, 2, 3)), np.zeros((1, 4)), np.zeros(1), PAIR, masks=[])


def test_no_people() -> None:
    nobody = Poses.empty(COCO17, tracked=True)
    assert len(nobody) == 0
    assert nobody.keypoints.shape == (0, 17, 3)
    assert nobody.ids.shape == (0,)
    assert Poses.empty(COCO17).ids is None
