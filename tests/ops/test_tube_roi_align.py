from __future__ import annotations

import importlib

import pytest
import torch

from pyposeext import ops
from tests.ops.harness import DEVICES, OpCase, contract_tests
from tests.ops.test_roi_align import random_rois

module = importlib.import_module("pyposeext.ops.tube_roi_align")


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    batch, channels, frames, height, width, count = (2, 2, 2, 5, 4, 3) if size == "small" else (2, 17, 3, 9, 11, 5)
    input = torch.randn(batch, channels, frames, height, width, dtype=torch.float64)
    tubes = random_rois(count * frames, batch, 2 * max(height, width))[:, 1:].reshape(count, frames, 4)
    options = [(2, 0.5, 2, False), (2, 0.5, -1, True)][seed % 2]
    return input, tubes, torch.randint(batch, (count,)), *options


def raw(input, tubes, index, size, scale, ratio, aligned):
    return input, tubes, index, size, size, scale, ratio, aligned


def pool(tubes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return ops.tube_roi_align(torch.zeros(1, 2, 3, 4, 4), tubes, index, 2)


case = OpCase(
    name="tube_roi_align",
    function=ops.tube_roi_align,
    reference=module.reference,
    make=make,
    raw=raw,
    empty=[
        (
            lambda device: ops.tube_roi_align(
                torch.zeros(1, 2, 3, 4, 4, device=device),
                torch.zeros(0, 3, 4, device=device),
                torch.zeros(0, dtype=torch.long, device=device),
                7,
            ),
            [[0, 2, 3, 7, 7]],
        ),
        (
            lambda device: ops.tube_roi_align(
                torch.zeros(1, 2, 0, 4, 4, device=device),
                torch.zeros(5, 0, 4, device=device),
                torch.zeros(5, dtype=torch.long, device=device),
                7,
            ),
            [[5, 2, 0, 7, 7]],
        ),
    ],
    errors=[
        (
            lambda: pool(torch.zeros(1, 2, 4), torch.zeros(1).long()),
            r"tubes must be \[N, 3, 4\], got shape \[1, 2, 4\]",
        ),
        (
            lambda: pool(torch.zeros(1, 3, 4), torch.zeros(2).long()),
            r"batch_index must be int64 \[1\], got shape \[2\]",
        ),
        (lambda: pool(torch.zeros(1, 3, 4), torch.zeros(1)), r"batch_index must be int64 \[1\]"),
        (lambda: pool(torch.zeros(1, 3, 4), torch.ones(1).long()), r"batch_index\[0\] must be in 0..0, got 1"),
        (
            lambda: ops.tube_roi_align(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4), torch.zeros(1).long(), 2),
            r"input must be \[B, C, T, H, W\]",
        ),
    ],
)
TestContract = contract_tests(case)
SCALES = [1 / 2, 1 / 4, 1 / 8]


def make_levels(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    batch, channels, frames, finest, count = (1, 2, 2, 6, 4) if size == "small" else (2, 17, 3, 16, 9)
    sides = [finest >> level for level in range(3)]
    maps = [torch.randn(batch, channels, frames, side, side + 1, dtype=torch.float64) for side in sides]
    tubes = random_rois(count * frames, batch, 2 * finest)[:, 1:].reshape(count, frames, 4)
    tubes = tubes * torch.linspace(0.3, 2, count, dtype=torch.float64)[:, None, None]  # so that every level has some
    options = [(2, False, 10, 2, 1e-6, True, True), (-1, True, 10, 2, 1e-8, False, False)][seed % 2]
    return maps, tubes, torch.randint(batch, (count,)), (2, 3), SCALES, *options


def raw_levels(maps, tubes, index, size, scales, *options):
    return maps, tubes, index, *size, scales, *options


LEVELS = [torch.zeros(1, 2, 3, 16 >> level, 16 >> level) for level in range(3)]


def pool_levels(maps=None, tubes=None, index=None, scales=SCALES, **options):
    maps = LEVELS if maps is None else maps
    tubes = torch.zeros(1, 3, 4) if tubes is None else tubes
    index = torch.zeros(1, dtype=torch.long) if index is None else index
    return ops.tube_roi_align(maps, tubes, index, 2, scales, **options)


TestLevelsContract = contract_tests(
    OpCase(
        name="multiscale_tube_roi_align",
        function=ops.tube_roi_align,
        reference=module.reference,
        make=make_levels,
        raw=raw_levels,
        empty=[
            (
                lambda device: pool_levels(
                    [map.to(device) for map in LEVELS],
                    torch.zeros(0, 3, 4, device=device),
                    torch.zeros(0, dtype=torch.long, device=device),
                ),
                [[0, 2, 3, 2, 2]],
            ),
            (
                lambda device: pool_levels(
                    [map[:, :, :0].to(device) for map in LEVELS],
                    torch.zeros(5, 0, 4, device=device),
                    torch.zeros(5, dtype=torch.long, device=device),
                ),
                [[5, 2, 0, 2, 2]],
            ),
        ],
        errors=[
            (lambda: pool_levels([]), "input must be a list of 1 to 8 maps, got 0"),
            (lambda: pool_levels(scales=SCALES[:2]), "spatial_scale must hold one scale for each of the 3 maps, got 2"),
            (lambda: pool_levels(scales=[1 / 2, 1 / 4, 1 / 4]), "spatial_scale must be half the one before it"),
            (lambda: pool_levels(scales=0.5), "spatial_scale must hold one scale for each map of input, got 0.5"),
            (
                lambda: pool_levels(LEVELS[0]),
                r"spatial_scale must be one number for one input, got \[0.5, 0.25, 0.125\]",
            ),
            (
                lambda: pool_levels([LEVELS[0], LEVELS[1][:, :, :2], LEVELS[2]]),
                "must have the first one's batch, channels, frames and dtype",
            ),
            (lambda: pool_levels([map[0] for map in LEVELS]), r"each of input must be \[B, C, T, H, W\]"),
            (lambda: pool_levels(tubes=torch.zeros(1, 2, 4)), r"tubes must be \[N, 3, 4\], got shape \[1, 2, 4\]"),
            (lambda: pool_levels(index=torch.ones(1).long()), r"batch_index\[0\] must be in 0..0, got 1"),
            (lambda: pool_levels(canonical_size=-1), "canonical_size must be positive, got -1"),
        ],
    )
)


@pytest.mark.parametrize("device", DEVICES)
def test_equals_roi_align_frame_by_frame(device: str) -> None:
    input, tubes, index, size, *options = make(0, "medium")
    pooled = ops.tube_roi_align(input.to(device), tubes.to(device), index.to(device), size, *options)
    for t in range(input.shape[2]):
        rois = torch.cat([index[:, None].double(), tubes[:, t]], dim=1).to(device)
        assert torch.equal(pooled[:, :, t], ops.roi_align(input[:, :, t].to(device), rois, size, *options))


def test_permuting_frames_of_clip_and_tubes_permutes_the_result() -> None:
    input, tubes, index, size, *options = make(1, "medium")
    order = torch.tensor([2, 0, 1])
    want = ops.tube_roi_align(input, tubes, index, size, *options)[:, :, order]
    assert torch.equal(ops.tube_roi_align(input[:, :, order], tubes[:, order], index, size, *options), want)


def test_a_frame_gets_gradient_only_from_its_own_boxes() -> None:
    input = torch.randn(1, 2, 3, 6, 6, requires_grad=True)
    pooled = ops.tube_roi_align(input, torch.tensor([0.0, 0, 5, 5]).expand(2, 3, 4), torch.zeros(2).long(), 2)
    pooled[:, :, 1].sum().backward()
    touched = input.grad.abs().sum(dim=(0, 1, 3, 4)) > 0
    assert touched.tolist() == [False, True, False]


@pytest.mark.parametrize("device", DEVICES)
def test_one_level_is_the_map_itself(device: str) -> None:
    input, tubes, index, size, *options = make(0, "medium")
    input, tubes, index = input.to(device), tubes.to(device), index.to(device)
    want = ops.tube_roi_align(input, tubes, index, size, *options)
    assert torch.equal(ops.tube_roi_align([input], tubes, index, size, options[:1], *options[1:]), want)


@pytest.mark.parametrize("device", DEVICES)
def test_the_mean_area_of_all_frames_chooses_the_level(device: str) -> None:
    """One added pixel moves sides of 111 and 447 to the next level; a single large box moves its whole tube."""
    maps = [torch.full((1, 1, 3, 256 >> level, 256 >> level), float(level), device=device) for level in range(4)]
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    sides = torch.tensor([[111.0] * 3, [110.9] * 3, [111.0, 223.0, 447.0], [10, 10, 300], [447.0] * 3, [0.0] * 3])
    tubes = torch.stack([torch.zeros(6, 3), torch.zeros(6, 3), sides, sides], dim=2).to(device)
    index = torch.zeros(6, dtype=torch.long, device=device)

    def level(**options):
        pooled = ops.tube_roi_align(maps, tubes, index, 1, scales, 2, **options)
        assert (pooled == pooled[:, :, :1]).all()  # the whole tube on one level
        return pooled[:, 0, 0, 0, 0].tolist()

    # Mean areas with the added one: 112^2, less, (112^2 + 224^2 + 448^2) / 3 = 296^2, 174^2, 448^2, 1.
    assert level() == [1, 0, 2, 1, 3, 0]
    assert level(legacy_plus_one=False) == [0, 0, 2, 1, 2, 0]


def test_tubes_with_nan_boxes_pool_from_the_finest_level_and_keep_their_finite_frames() -> None:
    maps = [torch.full((1, 1, 2, 16 >> level, 16 >> level), level + 1.0) for level in range(3)]
    tubes = torch.tensor([[[float("nan"), 0, 20, 20], [0.0, 0, 20, 20]]])
    pooled = ops.tube_roi_align(maps, tubes, torch.zeros(1, dtype=torch.long), 2, SCALES)
    assert (pooled[0, 0, 0] == 0).all()
    assert (pooled[0, 0, 1] == 1).all()


@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("position", [0, 1, 2, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_nan_or_infinite_box_pools_its_frame_to_zero(ratio: int, position: int, value: float) -> None:
    tubes = torch.tensor([0.0, 0, 3, 3]).repeat(2, 3, 1)
    tubes[1, 2, position] = value
    pooled = ops.tube_roi_align(torch.ones(1, 2, 3, 4, 4), tubes, torch.zeros(2, dtype=torch.long), 2, 1.0, ratio)
    assert (pooled[1, :, 2] == 0).all()
    assert (pooled[0] == 1).all()
    assert (pooled[1, :, :2] == 1).all()


@pytest.mark.parametrize("index", [2, -1, 99, 2**40])
def test_a_batch_index_out_of_range_is_an_error_on_the_cpu(index: int) -> None:
    indices = torch.tensor([0, index])
    with pytest.raises(RuntimeError, match=r"batch_index\[1\] must be in 0..1, got"):
        ops.tube_roi_align(torch.zeros(2, 1, 3, 4, 4), torch.zeros(2, 3, 4), indices, 2)
    with pytest.raises(RuntimeError, match=r"batch_index\[1\] must be in 0..1, got"):
        ops.tube_roi_align([torch.zeros(2, 1, 3, 4, 4)], torch.zeros(2, 3, 4), indices, 2, [1.0])
