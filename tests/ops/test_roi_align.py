from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyposeext import _C, ops
from tests.ops.harness import DEVICES, DTYPES, LAYOUTS, OpCase, assert_close, contract_tests, with_layout

module = importlib.import_module("pyposeext.ops.roi_align")


def random_rois(count: int, images: int, extent: float) -> torch.Tensor:
    corner = torch.rand(count, 2, dtype=torch.float64) * extent * 1.2 - 0.1 * extent
    size = torch.rand(count, 2, dtype=torch.float64) * extent * 0.6 + 0.1
    return torch.cat([torch.randint(images, (count, 1)).double(), corner, corner + size], dim=1)


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    batch, channels, height, width, count = (2, 2, 5, 6, 4) if size == "small" else (2, 19, 13, 17, 9)
    input = torch.randn(batch, channels, height, width, dtype=torch.float64)
    options = [((3, 2), 0.5, 2, False), (2, 0.25, -1, True)][seed % 2]
    return input, random_rois(count, batch, 2 * max(height, width)), *options


def raw(input, boxes, size, scale, ratio, aligned):
    height, width = (size, size) if isinstance(size, int) else size
    return input, boxes, height, width, scale, ratio, aligned


def wrong_index() -> torch.Tensor:
    return ops.roi_align(torch.zeros(2, 1, 4, 4), torch.tensor([[2.0, 0, 0, 1, 1]]), 2)


case = OpCase(
    name="roi_align",
    function=ops.roi_align,
    reference=module.reference,
    make=make,
    raw=raw,
    empty=[
        (
            lambda device: ops.roi_align(torch.zeros(2, 3, 4, 5, device=device), torch.zeros(0, 5, device=device), 7),
            [[0, 3, 7, 7]],
        ),
        (
            lambda device: ops.roi_align(torch.zeros(0, 3, 4, 5, device=device), torch.zeros(0, 5, device=device), 7),
            [[0, 3, 7, 7]],
        ),
        (
            lambda device: ops.roi_align(torch.zeros(1, 0, 4, 5, device=device), torch.zeros(2, 5, device=device), 7),
            [[2, 0, 7, 7]],
        ),
        (
            lambda device: ops.roi_align(
                torch.zeros(1, 3, 0, 5, device=device), torch.ones(2, 5, device=device) * 0, 7
            ),
            [[2, 3, 7, 7]],
        ),
        (
            lambda device: ops.roi_align(
                torch.zeros(2, 3, 4, 5, device=device), [torch.zeros(0, 4, device=device)] * 2, 2
            ),
            [[0, 3, 2, 2]],
        ),
    ],
    errors=[
        (
            lambda: ops.roi_align(torch.zeros(3, 4, 4), torch.zeros(1, 5), 2),
            r"input must be \[B, C, H, W\], got shape \[3, 4, 4\]",
        ),
        (
            lambda: ops.roi_align(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4), 2),
            r"boxes must be \[K, 5\], got shape \[1, 4\]",
        ),
        (lambda: ops.roi_align(torch.zeros(1, 3, 4, 4).long(), torch.zeros(1, 5), 2), "input must be float32, float64"),
        (lambda: ops.roi_align(torch.zeros(1, 3, 4, 4), torch.zeros(1, 5).long(), 2), "boxes must be float32, float64"),
        (
            lambda: ops.roi_align(torch.zeros(1, 3, 4, 4), torch.zeros(1, 5), 0),
            "output_size must be positive, got 0 x 0",
        ),
        (
            lambda: ops.roi_align(torch.zeros(1, 3, 4, 4), torch.zeros(1, 5), 2, -1.0),
            "spatial_scale must be a positive",
        ),
        (wrong_index, r"boxes\[0, 0\] must be an image index in 0..1, got 2"),
        (lambda: ops.roi_align(torch.zeros(1, 3, 4, 4), [torch.zeros(1, 5)], 2), r"boxes must be a list of \[K, 4\]"),
    ],
)
TestContract = contract_tests(case)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ratio", [-1, 1, 2, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_boxes_no_peer_survives(device: str, ratio: int, aligned: bool) -> None:
    """Empty, inverted, outside, huge, infinite and NaN boxes: the reference's values, or zeros where not finite."""
    input = torch.randn(1, 3, 9, 11, dtype=torch.float64)
    inf, nan = float("inf"), float("nan")
    finite = [[5, 5, 5, 5], [9, 9, 2, 3], [-50, -50, -20, -20], [-3, -3, 20, 20], [0, 0, 11, 9], [10, 8, 10.9, 8.9]]
    rois = torch.tensor([[0, *box] for box in finite], dtype=torch.float64)
    result = ops.roi_align(input.to(device), rois.to(device), (3, 4), 1.0, ratio, aligned).cpu()
    torch.testing.assert_close(result, module.reference(input, rois, (3, 4), 1.0, ratio, aligned))
    broken = [[nan, 0, 4, 4], [0, 0, inf, 4], [-inf, 0, inf, 4], [0, nan, nan, nan]]
    rois = torch.tensor([[0, *box] for box in broken], dtype=torch.float64)
    assert (ops.roi_align(input.to(device), rois.to(device), 3, 1.0, ratio, aligned) == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ratio", [-1, 0, 1, 2, 5])
@pytest.mark.parametrize("position", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_nan_or_infinite_box_pools_to_zero_and_does_not_crash(
    device: str, layout: str, ratio: int, position: int, value: float
) -> None:
    """Such a box kills the process in torchvision 0.28 on the CPU. Boxes beside it are not disturbed."""
    input = with_layout(torch.randn(2, 3, 9, 11), layout).to(device).requires_grad_(True)
    rois = torch.tensor([[1.0, 1, 2, 8, 7], [0, 1, 2, 8, 7], [1, 1, 2, 8, 7]], device=device)
    whole = ops.roi_align(input, rois, (3, 2), 1.0, ratio)
    rois[1, position] = value
    for aligned in (False, True):
        result = ops.roi_align(input, rois, (3, 2), 1.0, ratio, aligned)
        assert (result[1] == 0).all()
        (gradient,) = torch.autograd.grad(result.sum(), input)
        assert torch.isfinite(gradient).all()
        assert (gradient[0] == 0).all()
        if not aligned:
            assert torch.equal(result[::2], whole[::2])


@pytest.mark.parametrize("index", [2.0, -1.0, 99.0, 1e6, 1e30, float("nan"), float("inf")])
def test_a_batch_index_out_of_range_is_an_error_on_the_cpu(index: float) -> None:
    """torchvision 0.28 reads foreign memory there, or dies."""
    rois = torch.tensor([[0.0, 0, 0, 3, 3], [index, 0, 0, 3, 3]])
    with pytest.raises(RuntimeError, match=r"boxes\[1, 0\] must be an image index in 0..1, got"):
        ops.roi_align(torch.zeros(2, 1, 4, 4), rois, 2)
    with pytest.raises(RuntimeError, match=r"boxes\[1, 0\] must be an image index in 0..1, got"):
        _C.roi_align_backward(torch.zeros(2, 1, 2, 2), rois, 2, 1, 4, 4, 1.0, 2, False, False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("channels", "count", "size", "ratio"), [(1, 3, 7, 2), (70, 40, 7, 0), (147, 2, (1, 3), 2), (300, 25, (5, 14), 2)]
)
def test_sizes_that_meet_every_path(
    device: str, layout: str, dtype: torch.dtype, channels: int, count: int, size: object, ratio: int
) -> None:
    """Whole and partial blocks of channels, many rois on a map and few far apart; values and gradient."""
    torch.manual_seed(channels)
    input = with_layout(torch.randn(2, channels, 37, 70, dtype=torch.float64).to(dtype), layout).to(device)
    rois = random_rois(count, 2, 74)
    rois[0, 1:] = torch.tensor([1.0, 2, 9, 8])
    rois[-1, 1:] = torch.tensor([120.0, 60, 139, 73])
    exact = input.detach().cpu().double().requires_grad_(True)
    want = module.reference(exact, rois.to(dtype if dtype == torch.float64 else torch.float32), size, 0.5, ratio)
    have = ops.roi_align(input.requires_grad_(True), rois.to(device), size, 0.5, ratio)
    assert_close(case, have, want.detach(), dtype)
    weights = torch.randn(want.shape, dtype=torch.float64).to(dtype)
    have.backward(with_layout(weights, layout).to(device))
    want.backward(weights.double())
    assert_close(case, input.grad, exact.grad, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_for_any_thread_count_on_maps_that_are_shared_out(layout: str) -> None:
    input = with_layout(torch.randn(2, 130, 40, 50), layout).requires_grad_(True)
    rois = random_rois(60, 2, 80).float()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            pooled = ops.roi_align(input, rois, 7, 0.5, 2)
            results.append((pooled.detach(), *torch.autograd.grad(pooled, input, pooled.detach())))
    finally:
        torch.set_num_threads(before)
    for pooled, gradient in results[1:]:
        assert torch.equal(pooled, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_large_results_take_the_streaming_stores() -> None:
    """Results of more than 8 MB are written past the caches; a part of them is compared with a small call's."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for layout in ("contiguous", "channels_last"):
            input = with_layout(torch.randn(1, 256, 20, 30).to(dtype), layout)
            rois = random_rois(400, 1, 30)
            whole = ops.roi_align(input, rois, 7, 1.0, 2)
            assert torch.equal(whole[390:], ops.roi_align(input, rois[390:], 7, 1.0, 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("exponent", [5, 6, 7, 8, 9, 10, 12, 15, 18, 30])
def test_a_box_far_larger_than_the_map_ends(device: str, dtype: torch.dtype, exponent: int) -> None:
    """Its adaptive grid has up to 1e30 samples; all but a few lie outside the map, and their mean goes to 0."""
    input = torch.ones(1, 1, 8, 8, device=device, dtype=dtype, requires_grad=True)
    side = 3.0 * 10**exponent
    rois = torch.tensor([[0, -side, -side, side, side], [0, -side, 0, side, 8]], device=device, dtype=dtype)
    for size in (1, 7):
        pooled = ops.roi_align(input, rois, size)
        pooled.sum().backward()
        assert float(pooled.detach().abs().max()) < 10 * 8 / side * size
        assert torch.isfinite(input.grad).all()


@pytest.mark.parametrize("size", [1, 7])
def test_constant_and_linear_maps(size: int) -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    rois = torch.tensor([[0.0, 3, 4, 17, 11]])
    assert torch.allclose(ops.roi_align(torch.full((1, 2, 20, 30), 3.5), rois, size), torch.tensor(3.5))
    result = ops.roi_align(torch.stack([x, y])[None], rois, size, sampling_ratio=2)[0]
    centres = torch.arange(size) + 0.5
    torch.testing.assert_close(result[0, 0], 3 + centres * 14 / size)
    torch.testing.assert_close(result[1, :, 0], 4 + centres * 7 / size)


def test_aligned_is_a_half_pixel_shift() -> None:
    input, rois = torch.randn(1, 3, 20, 20), random_rois(8, 1, 16).float()
    rois[:, 3:] = torch.maximum(rois[:, 3:], rois[:, 1:3] + 4)
    shifted = rois.clone()
    shifted[:, 1:] -= 0.5 / 0.5
    torch.testing.assert_close(
        ops.roi_align(input, rois, 5, 0.5, 2, aligned=True), ops.roi_align(input, shifted, 5, 0.5, 2, aligned=False)
    )


def test_a_list_of_boxes_is_rois() -> None:
    input, rois = torch.randn(3, 2, 9, 9), random_rois(7, 3, 9).float()
    rois = rois[rois[:, 0].argsort(stable=True)]
    parts = [rois[rois[:, 0] == image, 1:] for image in range(3)]
    assert torch.equal(ops.roi_align(input, parts, 3), ops.roi_align(input, rois, 3))


@pytest.mark.skipif("cuda" not in DEVICES, reason="needs a CUDA GPU")
def test_a_wrong_index_pools_to_zero_on_a_gpu() -> None:
    input = torch.ones(2, 1, 4, 4, device="cuda", requires_grad=True)
    rois = torch.tensor([[2.0, 0, 0, 3, 3], [-1, 0, 0, 3, 3], [float("nan"), 0, 0, 3, 3]], device="cuda")
    result = ops.roi_align(input, rois, 2)
    assert (result == 0).all()
    result.sum().backward()
    assert (input.grad == 0).all()


def test_equals_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    input, rois = torch.randn(2, 5, 20, 30), random_rois(40, 2, 60).float()
    for ratio in (-1, 2):
        for aligned in (False, True):
            want = torchvision.ops.roi_align(input, rois, (7, 5), 0.5, ratio, aligned)
            torch.testing.assert_close(ops.roi_align(input, rois, (7, 5), 0.5, ratio, aligned), want, rtol=0, atol=4e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-1e4, 1e4)] * 4), min_size=1, max_size=3),
    st.integers(1, 5),
    st.sampled_from([-1, 1, 2, 4]),
    st.booleans(),
)
def test_any_box(boxes: list[tuple[float, ...]], size: int, ratio: int, aligned: bool) -> None:
    """Weights are non-negative and sum to at most one, so a map of ones pools to 0..1."""
    rois = torch.tensor([[0.0, *box] for box in boxes])
    result = ops.roi_align(torch.ones(1, 1, 6, 5), rois, size, 0.5, ratio, aligned)
    assert ((result >= 0) & (result <= 1 + 1e-4)).all()


def test_the_raw_kernel_takes_only_tensors() -> None:
    with pytest.raises(TypeError):
        _C.roi_align([1, 2, 3], torch.zeros(0, 5), 1, 1, 1.0, 2, False)
