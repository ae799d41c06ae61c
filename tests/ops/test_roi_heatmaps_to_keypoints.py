from __future__ import annotations

import importlib
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyposeext import ops
from tests.ops.harness import DEVICES, OpCase, contract_tests

module = importlib.import_module("pyposeext.ops.roi_heatmaps_to_keypoints")


def make(seed: int, size: str) -> tuple[object, ...]:
    """Smooth maps, exact in every dtype; the peaks lie off the grid, because symmetric maps have tied maxima."""
    torch.manual_seed(seed)
    count, joints, side = (2, 3, 8) if size == "small" else (6, 17, 28)
    grid = torch.arange(side, dtype=torch.float64)
    peak = torch.rand(count, joints, 2, 1, dtype=torch.float64) * side
    rows, columns = (torch.exp(-((grid - peak[:, :, axis]) ** 2) / 8) for axis in range(2))
    corner = torch.randint(0, 60, (count, 2)).double()
    return (
        (8 * rows[..., :, None] * columns[..., None, :]).to(torch.bfloat16).double(),
        torch.cat([corner, corner + torch.randint(1, 40, (count, 2)) + 0.25], dim=1),
    )


shared = {
    "name": "roi_heatmaps_to_keypoints",
    "make": make,
    "differentiable": (),
    "keeps_layout": False,
    # Maps are exact in every dtype and sums are kept in float32: results agree far better than the storage type could.
    "tolerance": {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-5, torch.bfloat16: 1e-5},
    "empty": [
        (
            lambda device: ops.roi_heatmaps_to_keypoints(
                torch.zeros(0, 17, 56, 56, device=device), torch.zeros(0, 4, device=device)
            ),
            [[0, 17, 2], [0, 17]],
        ),
        (
            lambda device: ops.roi_heatmaps_to_keypoints(
                torch.zeros(2, 0, 5, 5, device=device), torch.zeros(2, 4, device=device)
            ),
            [[2, 0, 2], [2, 0]],
        ),
    ],
    "errors": [
        (
            lambda: ops.roi_heatmaps_to_keypoints(torch.zeros(2, 3, 4), torch.zeros(2, 4)),
            r"heatmaps must be \[N, K, h, w\]",
        ),
        (
            lambda: ops.roi_heatmaps_to_keypoints(torch.zeros(2, 3, 4, 4), torch.zeros(3, 4)),
            r"boxes must be \[2, 4\], got shape \[3, 4\]",
        ),
        (
            lambda: ops.roi_heatmaps_to_keypoints(torch.zeros(2, 3, 0, 4), torch.zeros(2, 4)),
            "must have at least one pixel",
        ),
        (
            lambda: ops.roi_heatmaps_to_keypoints(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4), score="sum"),
            "score must be logit or softmax, got sum",
        ),
    ],
}


def case_of(score: str) -> OpCase:
    return OpCase(
        function=partial(ops.roi_heatmaps_to_keypoints, score=score),
        reference=partial(module.reference, score=score),
        raw=lambda *arguments: (*arguments, score),
        **shared,
    )


TestLogit = contract_tests(case_of("logit"))
TestSoftmax = contract_tests(case_of("softmax"))


@pytest.mark.parametrize("device", DEVICES)
def test_skipping_rows_never_changes_the_result(device: str) -> None:
    """Noise has many near-equal maxima, where a wrong bound would skip the true one."""
    for scale in (1.0, 30.0):
        heatmaps = torch.randn(8, 5, 14, 14, dtype=torch.float64) * scale
        boxes = torch.tensor([[3.0, 5, 90.5, 61.25]], dtype=torch.float64).repeat(8, 1)
        have = ops.roi_heatmaps_to_keypoints(heatmaps.to(device), boxes.to(device))
        for result, want in zip(have, module.reference(heatmaps, boxes), strict=True):
            torch.testing.assert_close(result.cpu(), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_of_equal_maxima_the_first_wins(device: str) -> None:
    heatmaps = torch.zeros(1, 1, 6, 6, device=device)
    keypoints, scores = ops.roi_heatmaps_to_keypoints(heatmaps, torch.tensor([[10.0, 20, 16, 26]], device=device))
    assert keypoints.tolist() == [[[10.5, 20.5]]]
    assert scores.tolist() == [[0.0]]


@pytest.mark.parametrize("device", DEVICES)
def test_a_one_hot_map_decodes_to_its_bin(device: str) -> None:
    """Within one bin of x1 + (j + 0.5) * width / 56."""
    heatmaps = torch.full((1, 16, 56, 56), -5.0, device=device)
    places = torch.randint(1, 55, (16, 2))
    for joint, (i, j) in enumerate(places.tolist()):
        heatmaps[0, joint, i, j] = 9.0
    keypoints, _ = ops.roi_heatmaps_to_keypoints(heatmaps, torch.tensor([[7.0, 3, 127, 203]], device=device))
    want = torch.stack([7 + (places[:, 1] + 0.5) * 120 / 56, 3 + (places[:, 0] + 0.5) * 200 / 56], dim=1)
    error = (keypoints[0].cpu() - want).abs()
    assert (error <= torch.tensor([120 / 56, 200 / 56])).all()


@pytest.mark.parametrize("device", DEVICES)
def test_boxes_that_cannot_be_decoded_give_zeros_and_thin_ones_one_pixel(device: str) -> None:
    nan, inf = float("nan"), float("inf")
    broken = [[nan, 0, 4, 4], [0, 0, inf, 4], [0, 0, -inf, 4], [0, 0, 4, nan], [0, 0, 1e9, 4]]
    boxes = torch.tensor([*broken, [5, 6, 2, 6]], device=device)
    keypoints, scores = ops.roi_heatmaps_to_keypoints(torch.ones(6, 1, 7, 7, device=device), boxes)
    assert (keypoints[:5] == 0).all()
    assert scores.flatten().tolist() == [0, 0, 0, 0, 0, 1]
    assert keypoints[5].tolist() == [[5.5, 6.5]]


@pytest.mark.parametrize("device", DEVICES)
def test_nan_is_never_the_maximum(device: str) -> None:
    heatmaps = torch.zeros(1, 2, 8, 8, device=device)
    heatmaps[0, 0, 0, 0], heatmaps[0, 0, 6, 6], heatmaps[0, 1] = float("nan"), 3.0, float("nan")
    keypoints, scores = ops.roi_heatmaps_to_keypoints(heatmaps, torch.tensor([[0.0, 0, 8, 8]], device=device))
    assert keypoints[0, 0].tolist() == [6.5, 6.5]
    assert scores[0].tolist() == [3.0, -float("inf")]


@pytest.mark.parametrize("device", DEVICES)
def test_softmax_scores_of_maps_without_a_maximum(device: str) -> None:
    """Nothing but NaN scores 0; among NaN the others share the softmax; a maximum far above all scores about 1."""
    heatmaps = torch.full((1, 3, 8, 8), float("nan"), device=device)
    heatmaps[0, 1] = 0.0
    heatmaps[0, 1, 0, 0] = float("nan")
    heatmaps[0, 2] = -1e4
    heatmaps[0, 2, 4, 4] = 1e4
    boxes = torch.tensor([[0.0, 0, 8, 8]], device=device)
    _, scores = ops.roi_heatmaps_to_keypoints(heatmaps, boxes, score="softmax")
    torch.testing.assert_close(scores.cpu(), torch.tensor([[0.0, 1 / 63, 1.0]]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("side", [1, 7, 56])
def test_of_equal_values_none_beyond_the_box_wins(device: str, side: int) -> None:
    """Maps of one value, resized far: every target is a maximum, and none lies beyond the box."""
    heatmaps = torch.full((1, 2, side, side), 1.5, dtype=torch.float64, device=device)
    boxes = torch.tensor([[10.0, 20, 510, 420]], dtype=torch.float64, device=device)
    keypoints, scores = ops.roi_heatmaps_to_keypoints(heatmaps, boxes)
    torch.testing.assert_close(scores.cpu(), torch.full((1, 2), 1.5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (keypoints[..., 0] >= 10).all()
    assert (keypoints[..., 0] <= 510).all()
    assert (keypoints[..., 1] >= 20).all()
    assert (keypoints[..., 1] <= 420).all()


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.floats(0, 90), st.floats(0, 90)),
    st.sampled_from([1, 3, 1000]),
    st.integers(0, 2**31),
)
def test_any_size_of_map_and_box(size: tuple[int, int], sides: tuple[float, float], levels: int, seed: int) -> None:
    """Larger, smaller and thin boxes, and maps of few values, whose many near-equal maxima test the bound."""
    generator = torch.Generator().manual_seed(seed)
    heatmaps = torch.randint(-levels, levels + 1, (2, 3, *size), generator=generator).double()
    boxes = torch.tensor([[3.0, 5, 3 + sides[0], 5 + sides[1]]], dtype=torch.float64).repeat(2, 1)
    keypoints, scores = ops.roi_heatmaps_to_keypoints(heatmaps, boxes)
    _, want = module.reference(heatmaps, boxes)
    torch.testing.assert_close(scores, want, rtol=1e-12, atol=1e-10)
    assert (
        (keypoints >= boxes[:, None, :2]) & (keypoints <= boxes[:, None, :2] + boxes.new_tensor(sides).clamp(min=1))
    ).all()
