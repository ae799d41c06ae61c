from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pyposeext import ops
from tests.ops.harness import DEVICES, OpCase, contract_tests

module = importlib.import_module("pyposeext.ops.paste_masks")
nan, inf = float("nan"), float("inf")


def random_masks(count: int, side: int) -> torch.Tensor:
    """Smooth blobs, whose edge at 0.5 is long."""
    return F.interpolate(torch.rand(count, 1, 4, 4, dtype=torch.float64), size=(side, side), mode="bicubic")[:, 0]


def random_boxes(count: int, height: int, width: int) -> torch.Tensor:
    """Boxes of all sizes, some of them partly or wholly outside the image."""
    corner = torch.rand(count, 2, dtype=torch.float64) * torch.tensor([width, height]) * 1.4 - 0.3 * width
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, dtype=torch.float64) * 0.8 * width], dim=1)


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    count, side, height, width = (3, 4, 9, 12) if size == "small" else (9, 14, 61, 83)
    masks, boxes = random_masks(count, side), random_boxes(count, height, width)
    return masks, boxes, (height, width), 0.5, module.RULES[seed % 2]


def make_soft(seed: int, size: str) -> tuple[object, ...]:
    masks, boxes, shape, _, rule = make(seed, size)
    # Quarters, so that no dtype moves a corner across the whole number it is truncated to.
    return masks, (boxes * 4).round() / 4, shape, None, rule


def make_runs(seed: int, size: str) -> tuple[object, ...]:
    return *make(seed, size), [None, 20][seed % 2]


def raw(masks, boxes, size, threshold, rule):
    return masks, boxes, *size, threshold or 0.0, threshold is None, rule


def raw_runs(masks, boxes, size, threshold, rule, capacity):
    return masks, boxes, *size, threshold, rule, 2 * size[1] + 2 if capacity is None else capacity


def empty_call(function, count: int, size: tuple[int, int]):
    return lambda device: function(torch.zeros(count, 3, 3, device=device), torch.zeros(count, 4, device=device), size)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


errors = [
    (
        lambda: ops.paste_masks(ones(2, 3, 4), ones(2, 4), (5, 5)),
        r"masks must be \[N, M, M\] or \[N, 1, M, M\] with M at least 1, got shape \[2, 3, 4\]",
    ),
    (lambda: ops.paste_masks(ones(2, 0, 0), ones(2, 4), (5, 5)), r"with M at least 1, got shape \[2, 0, 0\]"),
    (lambda: ops.paste_masks(ones(2, 2, 3, 3), ones(2, 4), (5, 5)), r"or \[N, 1, M, M\] .* got shape \[2, 2, 3, 3\]"),
    (lambda: ops.paste_masks(ones(2, 3, 3), ones(3, 4), (5, 5)), r"boxes must be \[2, 4\], got shape \[3, 4\]"),
    (lambda: ops.paste_masks(ones(2, 3, 3).int(), ones(2, 4), (5, 5)), "masks must be float32, float64"),
    (lambda: ops.paste_masks(ones(2, 3, 3), ones(2, 4).long(), (5, 5)), "boxes must be float32, float64"),
    (lambda: ops.paste_masks(ones(2, 3, 3), ones(2, 4), (5, -1)), r"size must be in 0\.\.2\^31 - 1, got 5 x -1"),
    (lambda: ops.paste_masks(ones(2, 3, 3), ones(2, 4), (5, 5), nan), "threshold must be a number, got NaN"),
    (
        lambda: ops.paste_masks(ones(2, 3, 3), ones(2, 4), (5, 5), rule="mmdet"),
        "rule must be torchvision or detectron2, got mmdet",
    ),
]
shared = {"data": (0, 1), "differentiable": (), "keeps_layout": False}
TestHard = contract_tests(
    OpCase(
        name="paste_masks",
        function=ops.paste_masks,
        reference=module.reference,
        make=make,
        raw=raw,
        empty=[
            (empty_call(ops.paste_masks, 0, (4, 5)), [[0, 4, 5]]),
            (empty_call(ops.paste_masks, 2, (0, 5)), [[2, 0, 5]]),
            (empty_call(ops.paste_masks, 2, (4, 0)), [[2, 4, 0]]),
        ],
        errors=errors,
        **shared,
    )
)
TestSoft = contract_tests(
    OpCase(
        name="paste_masks",
        function=ops.paste_masks,
        reference=module.reference,
        make=make_soft,
        raw=raw,
        tolerance={torch.float32: 2e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1e-2},
        **shared,
    )
)
TestRuns = contract_tests(
    OpCase(
        name="paste_masks_runs",
        function=ops.paste_masks_runs,
        reference=module.runs_reference,
        make=make_runs,
        raw=raw_runs,
        empty=[
            (empty_call(ops.paste_masks_runs, 0, (4, 5)), [[0, 12], [0]]),
            (empty_call(ops.paste_masks_runs, 2, (0, 5)), [[2, 12], [2]]),
            (empty_call(ops.paste_masks_runs, 2, (4, 0)), [[2, 2], [2]]),
        ],
        errors=[
            (
                lambda: ops.paste_masks_runs(ones(1, 3, 3), ones(1, 4), (1 << 16, 1 << 15)),
                r"size must be fewer than 2\^31 pixels, got 65536 x 32768",
            ),
            (
                lambda: ops.paste_masks_runs(ones(1, 3, 3), ones(1, 4), (5, 5), capacity=-1),
                "capacity must not be negative, got -1",
            ),
        ],
        **shared,
    )
)


def as_torchvision(masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """torchvision's steps, mask by mask: pad, enlarge, truncate, resize, copy the visible part."""
    side = masks.shape[-1]
    centre, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((side + 2) / side)
    images = masks.new_zeros(len(masks), *size)
    corners = torch.cat([centre - half, centre + half], dim=1).long().tolist()
    for image, mask, (x1, y1, x2, y2) in zip(images, F.pad(masks, (1, 1, 1, 1)), corners, strict=True):
        shape = (max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1))
        resized = F.interpolate(mask[None, None], size=shape, mode="bilinear", align_corners=False)[0, 0]
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, size[1]), min(y2 + 1, size[0])
        if left < right and top < bottom:
            image[top:bottom, left:right] = resized[top - y1 : bottom - y1, left - x1 : right - x1]
    return images


def as_detectron2(masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """detectron2's grid over the whole image."""
    y, x = torch.arange(size[0]).to(boxes) + 0.5, torch.arange(size[1]).to(boxes) + 0.5
    y = (y - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2]) * 2 - 1
    x = (x - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1]) * 2 - 1
    shape = (len(boxes), *size)
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=3).to(masks)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("rule", "library"), [("torchvision", as_torchvision), ("detectron2", as_detectron2)])
def test_soft_values_are_those_of_the_libraries(rule, library, dtype, device) -> None:
    torch.manual_seed(1)
    masks, boxes, size = random_masks(12, 28).to(dtype), random_boxes(12, 70, 90).to(dtype), (70, 90)
    result = ops.paste_masks(masks[:, None].to(device), boxes.to(device), size, None, rule).cpu()
    torch.testing.assert_close(
        result, library(masks, boxes, size), rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-5
    )


def test_corners_left_of_the_image_are_truncated_toward_zero() -> None:
    # For a mask of 2 the box is doubled, to -4.3..3.3, and becomes -4..3: eight pixels for the mask and its border.
    boxes = torch.tensor([[-2.4, -2.4, 1.4, 1.4]])
    pasted = ops.paste_masks(torch.ones(1, 2, 2), boxes, (5, 5), None)
    torch.testing.assert_close(pasted[0, 0], torch.tensor([1, 0.75, 0.25, 0, 0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(pasted, as_torchvision(torch.ones(1, 2, 2), boxes, (5, 5)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threshold", [0.5, 0.0, -1.0, 2.0])
@pytest.mark.parametrize("rule", module.RULES)
def test_runs_are_those_of_the_pasted_masks(rule: str, threshold: float, device: str) -> None:
    torch.manual_seed(2)
    for side, height, width in ((28, 120, 150), (1, 7, 9), (70, 40, 50), (5, 33, 1), (5, 1, 33)):
        masks = random_masks(10, side).float().to(device)
        boxes = random_boxes(10, height, width).float().to(device)
        pasted = ops.paste_masks(masks, boxes, (height, width), threshold, rule).cpu()
        rle = ops.paste_masks_rle(masks, boxes, (height, width), threshold, rule, compressed=False)
        for image, encoded in zip(pasted, rle, strict=True):
            counts = torch.tensor(encoded["counts"])
            values = torch.arange(len(counts)) % 2 == 1
            decoded = torch.repeat_interleave(values, counts).reshape(width, height).t()
            assert torch.equal(decoded, image)
            assert bool((counts[1:] > 0).all())


def test_compressed_runs_are_those_of_coco() -> None:
    coco = pytest.importorskip("faster_coco_eval.core.mask")
    torch.manual_seed(3)
    masks, boxes, size = random_masks(20, 28).float(), random_boxes(20, 400, 500).float(), (400, 500)
    boxes[0] = 5000  # nothing in the image
    pasted = ops.paste_masks(masks, boxes, size).numpy().astype(np.uint8)
    rle = ops.paste_masks_rle(masks, boxes, size)
    assert rle == coco.encode(np.asfortranarray(pasted.transpose(1, 2, 0)))
    assert np.array_equal(coco.decode(rle).transpose(2, 0, 1), pasted)
    json.dumps([{**one, "counts": one["counts"].decode("ascii")} for one in rle])


def test_more_runs_than_foreseen() -> None:
    checkers = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).float()[None]
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    counts, lengths = ops.paste_masks_runs(checkers, boxes, (32, 32), rule="detectron2", capacity=10)
    assert int(lengths) == 993  # every pixel differs from the one above it, and the columns' ends do not
    full = ops.paste_masks_rle(checkers, boxes, (32, 32), rule="detectron2", compressed=False)[0]["counts"]
    assert len(full) == 993
    assert counts[0].tolist() == full[:10]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", module.RULES)
def test_boxes_of_no_use_paste_nothing(rule: str, device: str) -> None:
    big = 3e38
    boxes = torch.tensor(
        [[nan, 0, 5, 5], [0, 0, inf, 5], [-inf, 0, inf, 5], [8, 8, 2, 2], [-50, 0, -20, 9], [-big, -big, big, big]]
    )
    pasted = ops.paste_masks(torch.ones(6, 4, 4, device=device), boxes.to(device), (12, 13), rule=rule)
    assert not bool(pasted.any())
    _, lengths = ops.paste_masks_runs(torch.ones(6, 4, 4, device=device), boxes.to(device), (12, 13), rule=rule)
    assert lengths.tolist() == [1] * 6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", module.RULES)
def test_nan_stays_near_its_place(rule: str, device: str) -> None:
    masks = torch.ones(1, 6, 6)
    masks[0, 0, 0] = nan
    boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0]])
    soft = ops.paste_masks(masks.to(device), boxes.to(device), (31, 32), None, rule).cpu()
    assert torch.equal(soft.isnan(), module.reference(masks, boxes, (31, 32), None, rule).isnan())
    assert bool(soft.isnan().any())
    hard = ops.paste_masks(masks.to(device), boxes.to(device), (31, 32), rule=rule).cpu()
    assert torch.equal(hard, torch.nan_to_num(soft, nan=-1.0) >= 0.5)


@pytest.mark.parametrize("rule", module.RULES)
def test_masks_wider_than_the_kernels_tables(rule: str) -> None:
    masks, boxes = random_masks(1, 9), torch.tensor([[10.0, 2.0, 4000.0, 11.0]], dtype=torch.float64)
    result = ops.paste_masks(masks, boxes, (13, 4100), rule=rule)
    assert torch.equal(result, module.reference(masks, boxes, (13, 4100), rule=rule))


@settings(max_examples=60, deadline=None)
@given(
    side=st.integers(1, 9),
    height=st.integers(0, 20),
    width=st.integers(0, 40),
    rule=st.sampled_from(module.RULES),
    box=st.lists(st.floats(-60, 60, width=32) | st.sampled_from([nan, inf, 1e30, -1e30]), min_size=4, max_size=4),
    threshold=st.sampled_from([0.5, 0.0, 0.2]),
    seed=st.integers(0, 100),
)
def test_any_box(side, height, width, rule, box, threshold, seed) -> None:
    torch.manual_seed(seed)
    masks, boxes = random_masks(1, side), torch.tensor([box], dtype=torch.float64)
    soft = module.reference(masks, boxes, (height, width), None, rule)
    result = ops.paste_masks(masks, boxes, (height, width), threshold, rule)
    certain = (soft - threshold).abs() > 1e-9  # elsewhere the order of operations decides
    background = soft == 0
    expected = soft >= threshold
    assert torch.equal(result[certain | background], expected[certain | background])
    counts = ops.paste_masks_rle(masks, boxes, (height, width), threshold, rule, compressed=False)[0]["counts"]
    values = torch.repeat_interleave(torch.arange(len(counts)) % 2 == 1, torch.tensor(counts))
    assert torch.equal(values, result[0].t().flatten())
