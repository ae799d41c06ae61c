from __future__ import annotations

import importlib

import pytest
import torch

from pyposeext import ops
from tests.ops.harness import OpCase, contract_tests, with_layout
from tests.ops.test_roi_align import random_rois

module = importlib.import_module("pyposeext.ops.multiscale_roi_align")
SCALES = [1 / 4, 1 / 8, 1 / 16]


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    batch, channels, finest, count = (1, 2, 8, 4) if size == "small" else (2, 18, 16, 12)
    sizes = [finest >> level for level in range(3)]
    features = [torch.randn(batch, channels, side, side + 1, dtype=torch.float64) for side in sizes]
    rois = random_rois(count, batch, 4 * finest)
    options = [(2, False, 28, 4, 1e-6, False), (-1, True, 28, 4, 1e-8, True)][seed % 2]
    return features, rois, (3, 2), SCALES, *options


def raw(features, boxes, size, scales, *options):
    return features, boxes, *size, scales, *options


MAPS = [torch.zeros(1, 3, 16 >> level, 16 >> level) for level in range(3)]


def pool(features=None, boxes=None, size=2, scales=SCALES, **options):
    return ops.multiscale_roi_align(
        MAPS if features is None else features, torch.zeros(1, 5) if boxes is None else boxes, size, scales, **options
    )


case = OpCase(
    name="multiscale_roi_align",
    function=ops.multiscale_roi_align,
    reference=module.reference,
    make=make,
    raw=raw,
    empty=[
        (lambda device: pool([m.to(device) for m in MAPS], torch.zeros(0, 5, device=device)), [[0, 3, 2, 2]]),
        (lambda device: pool([m.to(device)[:0] for m in MAPS], torch.zeros(0, 5, device=device)), [[0, 3, 2, 2]]),
    ],
    errors=[
        (lambda: pool([]), "features must be a list of 1 to 8 maps, got 0"),
        (lambda: pool(scales=[1 / 4, 1 / 8]), "spatial_scales must hold one scale for each of the 3 maps, got 2"),
        (lambda: pool(scales=[1 / 4, 1 / 8, 1 / 8]), "must be half the one before it, got 0.125 and then 0.125"),
        (lambda: pool([MAPS[0], MAPS[1].double(), MAPS[2]]), "must have the first one's batch, channels and dtype"),
        (lambda: pool(canonical_size=0), "canonical_size must be positive, got 0"),
        (lambda: pool(boxes=torch.ones(1, 5)), r"boxes\[0, 0\] must be an image index in 0..0, got 1"),
    ],
)
TestContract = contract_tests(case)


def test_each_box_goes_to_its_level() -> None:
    """Maps hold their own level's number; sizes of 224 * 2^n sit at the very edge of a level."""
    features = [torch.full((1, 1, 64 >> level, 64 >> level), float(level)) for level in range(4)]
    sizes = torch.tensor([1.0, 111.9, 112, 223.9, 224, 447.9, 448, 4000])
    rois = torch.stack(
        [torch.zeros(8), torch.zeros(8), torch.zeros(8), sizes.clamp(max=250), sizes**2 / sizes.clamp(max=250)], dim=1
    )
    pooled = ops.multiscale_roi_align(features, rois, 1, [1 / 4, 1 / 8, 1 / 16, 1 / 32], sampling_ratio=1)
    expected = [0, 0, 1, 1, 2, 2, 3, 3]
    inside = rois[:, 4] <= 500  # samples of the longest boxes lie outside the small maps
    assert torch.equal(pooled.flatten()[inside].long(), torch.tensor(expected)[inside])
    assert inside.sum() >= 5


def test_levels_are_chosen_in_float32_as_the_reference_does() -> None:
    """Widths within a few roundings of a level's border, where double arithmetic would choose the other side."""
    features = [torch.full((1, 1, 256 >> level, 256 >> level), float(level)) for level in range(4)]
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    widths = torch.cat([border * (1 + torch.arange(-60, 60) * 2e-7) for border in (112.0, 224.0, 448.0)])
    rois = torch.stack([torch.zeros_like(widths)] * 3 + [widths] * 2, dim=1)
    pooled = ops.multiscale_roi_align(features, rois, 1, scales)
    assert torch.equal(pooled, module.reference(features, rois, 1, scales))
    assert len(pooled.unique()) == 4


def test_one_level_is_roi_align() -> None:
    input, rois = torch.randn(2, 3, 12, 12), random_rois(6, 2, 40).float()
    assert torch.equal(ops.multiscale_roi_align([input], rois, 3, [0.25]), ops.roi_align(input, rois, 3, 0.25, 2))


def test_nan_and_inverted_boxes_pool_from_the_finest_level() -> None:
    rois = torch.tensor([[0, float("nan"), 0, 1, 1], [0, 5, 5, 1, 9]])
    features = [torch.ones(1, 1, 16 >> level, 16 >> level) for level in range(3)]
    result = ops.multiscale_roi_align(features, rois, 2, SCALES)
    torch.testing.assert_close(result[1], module.reference(features, rois[1:], 2, SCALES)[0])
    assert (result[0] == 0).all()


def test_equals_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    features = {str(level): torch.randn(2, 4, 64 >> level, 64 >> level) for level in range(4)}
    rois = random_rois(50, 2, 256).float()
    peer = torchvision.ops.MultiScaleRoIAlign(list(features), 7, 2)
    parts = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    want = peer(features, parts, [(256, 256)] * 2)
    have = ops.multiscale_roi_align(list(features.values()), parts, 7, [1 / 4, 1 / 8, 1 / 16, 1 / 32])
    torch.testing.assert_close(have, want, rtol=0, atol=4e-5)


@pytest.mark.parametrize("position", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_nan_or_infinite_box_pools_to_zero(position: int, value: float) -> None:
    rois = torch.tensor([[0.0, 1, 1, 9, 9], [0, 1, 1, 9, 9]])
    rois[1, position] = value
    for ratio in (-1, 2):
        pooled = ops.multiscale_roi_align([torch.ones_like(map) for map in MAPS], rois, 2, SCALES, ratio)
        assert (pooled[0] == 1).all()
        assert (pooled[1] == 0).all()


def test_levels_in_different_layouts_pool_alike() -> None:
    features, rois, size, scales, *options = make(0, "medium")
    want = ops.multiscale_roi_align(features, rois, size, scales, *options)
    for first, last in (("channels_last", "contiguous"), ("contiguous", "channels_last"), ("sliced", "channels_last")):
        maps = [with_layout(features[0], first), with_layout(features[1], last), with_layout(features[2], first)]
        assert torch.equal(ops.multiscale_roi_align(maps, rois, size, scales, *options), want)
