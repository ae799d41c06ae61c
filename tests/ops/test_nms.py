from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyposeext import ops
from tests.ops.harness import DEVICES, OpCase, contract_tests

module = importlib.import_module("pyposeext.ops.nms")


def random_boxes(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes and scores on a coarse grid, exact in bfloat16, so that ties are many; and groups."""
    corner = torch.randint(0, 24, (count, 2)).double() * 2
    boxes = torch.cat([corner, corner + torch.randint(1, 12, (count, 2)) * 2], dim=1)
    return boxes, torch.randint(0, 16, (count,)).double() / 16, torch.randint(0, 3, (count,))


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    boxes, scores, _ = random_boxes(12 if size == "small" else 150)
    return boxes, scores, [0.5, 0.25][seed % 2]


def make_batched(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    boxes, scores, groups = random_boxes(12 if size == "small" else 150)
    return boxes, scores, groups, 0.5


def make_padded(seed: int, size: str) -> tuple[object, ...]:
    boxes, scores, groups, threshold = make_batched(seed, size)
    return boxes, scores, threshold, [groups, None][seed % 2]


def padded_reference(boxes, scores, threshold, indices):
    kept = module.reference(boxes, scores, threshold, indices)
    padding = kept.new_full((len(boxes) - len(kept),), -1)
    return torch.cat([kept, padding]), torch.tensor(len(kept))


def nothing(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(0, 4, device=device), torch.zeros(0, device=device)


shared = {"data": (0, 1), "differentiable": (), "exact": True, "keeps_layout": False}
TestNms = contract_tests(
    OpCase(
        name="nms",
        capturable=False,  # the number of rows is read back
        function=ops.nms,
        reference=module.reference,
        make=make,
        raw=lambda *arguments: arguments,
        empty=[(lambda device: ops.nms(*nothing(device), 0.5), [[0]])],
        errors=[
            (lambda: ops.nms(torch.zeros(2, 5), torch.zeros(2), 0.5), r"boxes must be \[N, 4\], got shape \[2, 5\]"),
            (lambda: ops.nms(torch.zeros(2, 4), torch.zeros(3), 0.5), r"scores must be \[2\], got shape \[3\]"),
            (lambda: ops.nms(torch.zeros(2, 4).int(), torch.zeros(2), 0.5), "boxes must be float32, float64"),
            (
                lambda: ops.nms(torch.zeros(2, 4), torch.zeros(2), float("nan")),
                "iou_threshold must be a number, got NaN",
            ),
        ],
        **shared,
    )
)
TestBatchedNms = contract_tests(
    OpCase(
        name="batched_nms",
        capturable=False,  # the number of rows is read back
        function=ops.batched_nms,
        reference=lambda boxes, scores, groups, threshold: module.reference(boxes, scores, threshold, groups),
        make=make_batched,
        raw=lambda *arguments: arguments,
        empty=[
            (
                lambda device: ops.batched_nms(*nothing(device), torch.zeros(0, dtype=torch.long, device=device), 0.5),
                [[0]],
            )
        ],
        errors=[
            (
                lambda: ops.batched_nms(torch.zeros(2, 4), torch.zeros(2), torch.zeros(2), 0.5),
                r"indices must be int64 \[2\], got shape \[2\]",
            )
        ],
        **shared,
    )
)
TestNmsPadded = contract_tests(
    OpCase(
        name="nms_padded",
        function=ops.nms_padded,
        reference=padded_reference,
        make=make_padded,
        raw=lambda *arguments: arguments,
        empty=[(lambda device: ops.nms_padded(*nothing(device), 0.5), [[0], []])],
        **shared,
    )
)


@pytest.mark.parametrize("device", DEVICES)
def test_the_threshold_itself_suppresses_nothing(device: str) -> None:
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1]], device=device)  # IoU 1 / 3
    scores = torch.tensor([0.9, 0.8], device=device)
    third = float(torch.tensor(1.0) / torch.tensor(3.0))  # in float32, a little above 1 / 3
    assert len(ops.nms(boxes, scores, third)) == 2
    assert len(ops.nms(boxes, scores, 1 / 3)) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_nan_boxes_and_empty_boxes_overlap_nothing(device: str) -> None:
    boxes = torch.tensor([[0, 0, 4, 4], [float("nan"), 0, 4, 4], [1, 1, 1, 1], [1, 1, 1, 1]], device=device)
    kept = ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6], device=device), 0.1)
    assert kept.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("device", DEVICES)
def test_more_boxes_than_one_word_of_the_mask(device: str) -> None:
    boxes, scores, groups = random_boxes(700)
    boxes, scores = boxes.float(), scores.float()
    have = ops.batched_nms(boxes.to(device), scores.to(device), groups.to(device), 0.3).cpu()
    assert torch.equal(have, module.reference(boxes, scores, 0.3, groups))


def test_equals_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    for _ in range(50):
        boxes, scores, groups = random_boxes(300)
        assert torch.equal(ops.nms(boxes, scores, 0.5), torchvision.ops.nms(boxes, scores, 0.5))
        assert torch.equal(
            ops.batched_nms(boxes, scores, groups, 0.5), torchvision.ops.batched_nms(boxes, scores, groups, 0.5)
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 1.0, 1.5])
def test_large_groups_with_negative_and_huge_ids(device: str, threshold: float) -> None:
    torch.manual_seed(4)
    boxes, scores, _ = random_boxes(2600)  # on a GPU more than two chunks of 1024
    ids = torch.tensor([-(2**63), 7, 2**63 - 1])
    groups = ids[torch.multinomial(torch.tensor([0.1, 0.8, 0.1]), 2600, replacement=True)]
    have = ops.batched_nms(boxes.float().to(device), scores.to(device), groups.to(device), threshold).cpu()
    assert torch.equal(have, module.reference(boxes.float(), scores, threshold, groups))


@pytest.mark.parametrize("device", DEVICES)
def test_many_small_groups(device: str) -> None:
    torch.manual_seed(5)
    boxes, scores, _ = random_boxes(3000)
    groups = torch.randint(-400, 400, (3000,))
    kept, count = ops.nms_padded(boxes.to(device), scores.to(device), 0.1, groups.to(device))
    assert torch.equal(kept[: int(count)].cpu(), module.reference(boxes, scores, 0.1, groups))
    assert bool((kept[int(count) :] == -1).all())


@pytest.mark.parametrize("device", DEVICES)
def test_every_box_suppresses_the_next(device: str) -> None:
    boxes = (
        torch.tensor([0.0, 0, 10, 10]) + torch.arange(1500)[:, None] * 2
    )  # a chain: each overlaps only its neighbours
    scores = torch.arange(1500, 0, -1).float()
    kept = ops.nms(boxes.to(device), scores.to(device), 0.4).cpu()
    assert torch.equal(kept, module.reference(boxes, scores, 0.4))
    assert len(kept) == 750


@pytest.mark.parametrize("device", DEVICES)
def test_orders_scores_as_torch_does(device: str) -> None:
    scores = torch.tensor(
        [0.0, -0.0, float("nan"), float("inf"), -1.0, float("-inf"), float("nan"), 1e-45, -1e-45, 0.0]
    )
    boxes = torch.zeros(10, 4)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        kept = ops.nms(boxes.to(device), scores.to(device, dtype), 0.5).cpu()
        assert torch.equal(kept, torch.sort(scores.to(dtype), stable=True, descending=True).indices)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from([-2.0, 0.0, 1.0, 2.5, 4.0, float("nan"), float("inf")])] * 5), max_size=40),
    st.sampled_from([-1.0, 0.0, 1 / 3, 0.5, 1.0, 2.0]),
)
def test_equals_the_reference_on_any_boxes(rows: list[tuple[float, ...]], threshold: float) -> None:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    groups = torch.arange(len(table)) % 2
    have = ops.batched_nms(table[:, :4], table[:, 4], groups, threshold)
    assert torch.equal(have, module.reference(table[:, :4], table[:, 4], threshold, groups))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 6)] * 5), max_size=20), st.floats(0, 1))
def test_kept_boxes_overlap_no_more_than_the_threshold(rows: list[tuple[int, ...]], threshold: float) -> None:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    boxes = torch.cat([table[:, :2], table[:, :2] + table[:, 2:4]], dim=1)
    assert torch.equal(ops.nms(boxes, table[:, 4], threshold), module.reference(boxes, table[:, 4], threshold))
