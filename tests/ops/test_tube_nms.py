from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyposeext import ops
from tests.ops.harness import DEVICES, OpCase, contract_tests

reference = importlib.import_module("pyposeext.ops.tube_nms").reference


def random_tubes(count: int, frames: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tubes and scores on a coarse grid, exact in bfloat16, in clusters, with ties; and groups."""
    start = torch.randint(0, 8, (count, 1, 2)).double() * 4
    corner = start + torch.randint(0, 3, (count, frames, 2))
    tubes = torch.cat([corner, corner + torch.randint(6, 10, (count, frames, 2))], dim=2)
    return tubes, torch.randint(0, 16, (count,)).double() / 16, torch.randint(-1, 2, (count,)) * 10**15


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    tubes, scores, groups = random_tubes(12 if size == "small" else 150)
    return tubes, scores, 0.33, [groups, None][seed % 2], seed % 2 == 0


def padded_reference(*arguments):
    kept = reference(*arguments)
    padding = kept.new_full((len(arguments[0]) - len(kept),), -1)
    return torch.cat([kept, padding]), torch.tensor(len(kept))


def published(tubes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """The greedy loop of Detect-and-Track in NumPy, with a stable order."""
    corner, end = tubes[..., :2], tubes[..., 2:]
    area = np.prod(end - corner + 1, axis=2)
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        side = np.maximum(0.0, np.minimum(end[best], end[rest]) - np.maximum(corner[best], corner[rest]) + 1)
        shared = side[..., 0] * side[..., 1]
        ratio = shared / (area[best] + area[rest] - shared)
        order = rest[sum(ratio.T, np.zeros(len(rest))) / tubes.shape[1] <= threshold]
    return kept


def nothing(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(0, 3, 4, device=device), torch.zeros(0, device=device)


shared = {
    "make": make,
    "raw": lambda *arguments: arguments,
    "data": (0, 1),
    "differentiable": (),
    "exact": True,
    "keeps_layout": False,
}
TestTubeNms = contract_tests(
    OpCase(
        name="tube_nms",
        capturable=False,  # the number of rows is read back
        function=ops.tube_nms,
        reference=reference,
        empty=[(lambda device: ops.tube_nms(*nothing(device), 0.5), [[0]])],
        errors=[
            (
                lambda: ops.tube_nms(torch.zeros(2, 4), torch.zeros(2), 0.5),
                r"tubes must be \[N, T, 4\] with T of at least 1, got shape \[2, 4\]",
            ),
            (lambda: ops.tube_nms(torch.zeros(2, 0, 4), torch.zeros(2), 0.5), r"got shape \[2, 0, 4\]"),
            (lambda: ops.tube_nms(torch.zeros(2, 3, 4), torch.zeros(3), 0.5), r"scores must be \[2\], got shape \[3\]"),
            (
                lambda: ops.tube_nms(torch.zeros(2, 3, 4), torch.zeros(2), float("nan")),
                "overlap_threshold must be a number, got NaN",
            ),
            (
                lambda: ops.tube_nms(torch.zeros(2, 3, 4), torch.zeros(2), 0.5, torch.zeros(2).int()),
                r"indices must be int64 \[2\]",
            ),
        ],
        **shared,
    )
)
TestTubeNmsPadded = contract_tests(
    OpCase(
        name="tube_nms_padded",
        function=ops.tube_nms_padded,
        reference=padded_reference,
        empty=[(lambda device: ops.tube_nms_padded(*nothing(device), 0.5), [[0], []])],
        **shared,
    )
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.3, 0.7, 1.0, 1.5])
def test_equals_the_published_loop_in_float64(device: str, threshold: float) -> None:
    torch.manual_seed(0)
    for count in (1, 40, 300):
        start = torch.rand(count // 6 + 1, 1, 2, dtype=torch.float64).repeat_interleave(6, 0)[:count] * 300
        corner = start + torch.rand(count, 3, 2, dtype=torch.float64) * 8
        tubes = torch.cat([corner, corner + 20 + torch.rand(count, 3, 2, dtype=torch.float64) * 20], dim=2)
        scores = torch.randint(0, 50, (count,)).double()
        kept = ops.tube_nms(tubes.to(device), scores.to(device), threshold)
        assert kept.tolist() == published(tubes.numpy(), scores.numpy(), threshold)


@pytest.mark.parametrize("device", DEVICES)
def test_equal_in_two_frames_of_three(device: str) -> None:
    box = torch.tensor([0.0, 0, 9, 9], device=device)
    tubes = torch.stack([box.repeat(3, 1), torch.stack([box, box, box + 50])])
    scores = torch.tensor([0.9, 0.8], device=device)
    assert ops.tube_nms(tubes, scores, 0.7).tolist() == [0, 1]
    assert ops.tube_nms(tubes, scores, 0.6).tolist() == [0]


@pytest.mark.parametrize("device", DEVICES)
def test_one_frame_without_the_added_pixel_is_nms(device: str) -> None:
    torch.manual_seed(1)
    tubes, scores, groups = (tensor.to(device) for tensor in random_tubes(400, frames=1))
    for threshold in (0.0, 0.25, 0.5):
        have = ops.tube_nms(tubes.float(), scores, threshold, groups, legacy_plus_one=False)
        assert torch.equal(have, ops.batched_nms(tubes[:, 0].float(), scores, groups, threshold))


@pytest.mark.parametrize("device", DEVICES)
def test_absent_and_broken_frames_overlap_nothing(device: str) -> None:
    box, absent = torch.tensor([0.0, 0, 9, 9]), torch.zeros(4)
    broken = torch.tensor([float("nan"), 0, 9, 9])
    tubes = torch.stack([torch.stack([box, absent]), torch.stack([box, absent]), torch.stack([box, broken])])
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    assert ops.tube_nms(tubes.to(device), scores, 0.4, None, False).tolist() == [0]
    assert ops.tube_nms(tubes.to(device), scores, 0.6, None, False).tolist() == [0, 1, 2]
    assert ops.tube_nms(tubes.to(device), scores, 0.6).tolist() == [0, 2]  # with the added pixel two absent boxes agree


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-3, 6)] * 10), max_size=40),
    st.sampled_from([-1.0, 0.0, 1 / 3, 0.5, 1.0, 2.0]),
    st.booleans(),
)
def test_equals_the_reference_on_any_boxes(rows: list[tuple[int, ...]], threshold: float, plus: bool) -> None:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 10)
    tubes, scores, groups = table[:, :8].reshape(-1, 2, 4), table[:, 8], table[:, 9].long() // 4
    have = ops.tube_nms(tubes, scores, threshold, groups, plus)
    assert torch.equal(have, reference(tubes, scores, threshold, groups, plus))
