"""RoIAlign at the sizes, layouts and strides that lead its kernels down different paths, against the reference."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from pyposeext import _C, ops
from tests.ops.harness import DEVICES, DTYPES, with_layout
from tests.ops.test_roi_align import random_rois

module = importlib.import_module("pyposeext.ops.roi_align")
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def some_rois(images: int, height: int, width: int, count: int = 3) -> Tensor:
    """Random boxes; one over the whole map, one far beyond it (odd numbers, so that no sample lies at the very border,
    where rounding decides), an inverted one and one outside."""
    extent = float(max(height, width))
    special = [
        [0, 0, width, height],
        [-4.1337 * extent, -3.3191 * extent, 3.2719 * extent, 4.1873 * extent],
        [3, 3, 1, 2],
        [-9, -9, -5, -5],
    ]
    rois = torch.tensor([[i % images, *box] for i, box in enumerate(special)], dtype=torch.float64)
    return torch.cat([random_rois(count, images, extent), rois])


def close(have: Tensor, want: Tensor, dtype: torch.dtype) -> bool:
    scale = max(float(want.abs().max()), 1e-3)
    return float((have.detach().cpu().double() - want).abs().max()) <= TOLERANCE[dtype] * scale


def check(device: str, input: Tensor, rois: Tensor, size: tuple[int, int], ratio: int, aligned: bool = False) -> None:
    """Forward and backward against the reference, the backward for gradients and results of every layout."""
    dtype = input.dtype
    rois = rois.to(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    have = ops.roi_align(input.to(device).requires_grad_(True), rois.to(device), size, 1.0, ratio, aligned)
    exact = input.detach().cpu().double().requires_grad_(True)
    want = module.reference(exact, rois.double(), size, 1.0, ratio, aligned)
    assert close(have, want.detach(), dtype)
    gradient = torch.randn(want.shape, dtype=torch.float64).to(dtype)
    (want_gradient,) = torch.autograd.grad(want, exact, gradient.double())
    for layout in ("contiguous", "channels_last", "sliced"):
        for channels_last in (False, True):
            of_input = _C.roi_align_backward(
                with_layout(gradient, layout).to(device),
                rois.to(device),
                *input.shape,
                1.0,
                ratio,
                aligned,
                channels_last,
            )
            assert close(of_input, want_gradient, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 8, 32, 100, 257])
def test_channel_counts(device: str, channels: int, dtype: torch.dtype, layout: str) -> None:
    torch.manual_seed(channels)
    input = with_layout(torch.randn(2, channels, 7, 10).to(dtype), layout)
    rois = some_rois(2, 7, 10)
    for size, ratio, aligned in (((3, 2), 2, False), ((2, 5), -1, True)):
        check(device, input, rois, size, ratio, aligned)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (8, 8), (17, 1), (24, 40)])
def test_map_sizes(device: str, height: int, width: int, layout: str) -> None:
    torch.manual_seed(0)
    input = with_layout(torch.randn(2, 6, height, width, dtype=torch.float64), layout)
    for ratio in (1, 3, -1):
        check(device, input, some_rois(2, height, width), (4, 3), ratio)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("size", "ratio"),
    [((7, 7), 2), ((14, 14), 2), ((1, 1), -1), ((30, 41), 1), ((1, 900), 2), ((2, 1), 500)],
)
def test_output_sizes(device: str, size: tuple[int, int], ratio: int, layout: str) -> None:
    torch.manual_seed(1)
    input = with_layout(torch.randn(1, 5, 12, 10, dtype=torch.float64), layout)
    check(device, input, some_rois(1, 12, 10, count=2), size, ratio)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_long_map_with_an_adaptive_grid(device: str, layout: str) -> None:
    torch.manual_seed(2)
    input = with_layout(torch.randn(1, 4, 3, 2600), layout)
    rois = torch.tensor([[0, 0, 0, 2600, 3], [0, 2000.5, 1, 2590, 2], [0, 40, 0, 44, 3]])
    check(device, input, rois, (2, 3), -1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_many_rois(device: str, layout: str) -> None:
    """More rois than a block lists, sorts or stages at once; images without rois; the same bits each time."""
    torch.manual_seed(3)
    input = with_layout(torch.randn(5, 4, 20, 12), layout).to(device)
    rois = random_rois(1300, 4, 20).float().to(device)
    rois[:, 0] += rois[:, 0] >= 2  # no roi on image 2
    pooled = ops.roi_align(input.requires_grad_(True), rois, 2, 1.0, 2)
    want = ops.roi_align(input.detach().double(), rois.double(), 2, 1.0, 2)
    assert close(pooled, want.cpu(), torch.float32)
    gradient = torch.randn_like(pooled)
    first, second = (torch.autograd.grad(pooled, input, gradient, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert (first[2] == 0).all()
    direction = torch.randn(input.shape, dtype=torch.float64, device=device)
    through = (ops.roi_align(direction, rois.double(), 2, 1.0, 2) * gradient).sum()
    assert abs(float((direction * first).sum() - through)) < 1e-5 * float(direction.norm() * first.double().norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_strides_that_forbid_wide_loads(device: str, dtype: torch.dtype) -> None:
    """Channels next to each other, but pixels or the whole map out of line, and channels cut out of a wider map."""
    torch.manual_seed(4)
    rois = some_rois(2, 7, 9)
    wide = torch.randn(2, 7, 9, 21).to(dtype)
    for first, last in ((0, 16), (1, 17), (2, 14), (4, 20)):
        check(device, wide[..., first:last].permute(0, 3, 1, 2), rois, (3, 3), 2)
    spread = torch.randn(2, 14, 27, 16).to(dtype)[:, ::2, ::3]
    check(device, spread.permute(0, 3, 1, 2), rois, (3, 3), -1)
    transposed = torch.randn(2, 16, 9, 7).to(dtype).transpose(2, 3)
    check(device, transposed, rois, (3, 3), 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_infinite_and_nan_values_stay_where_they_have_weight(device: str, layout: str) -> None:
    rois = torch.tensor([[0.0, 0, 0, 8, 8], [0, 9, 9, 15, 15]], device=device)
    for value in (float("inf"), float("nan")):
        input = torch.zeros(1, 8, 16, 16)
        input[0, 3, 12, 12] = value
        pooled = ops.roi_align(with_layout(input, layout).to(device), rois, 4, 1.0, 2).cpu()
        assert torch.isfinite(pooled[0]).all()
        assert torch.isfinite(pooled[1, [0, 1, 2, 4, 5, 6, 7]]).all()
        assert not torch.isfinite(pooled[1, 3]).all()
        gradient = torch.zeros(2, 8, 4, 4)
        gradient[1, 5, 1, 2] = value
        of_input = _C.roi_align_backward(
            with_layout(gradient, layout).to(device), rois, 1, 8, 16, 16, 1.0, 2, False, layout == "channels_last"
        ).cpu()
        broken = ~torch.isfinite(of_input)
        assert broken[0, 5].any()
        assert not broken[0, [0, 1, 2, 3, 4, 6, 7]].any()
        weighted = _C.roi_align_backward(
            (gradient != 0).float().to(device), rois, 1, 8, 16, 16, 1.0, 2, False, False
        ).cpu()
        assert torch.equal(broken, weighted != 0)


def test_backwards_refuse_empty_bins_and_wrong_scales() -> None:
    raw, rois = torch.ops.pyposeext.roi_align_backward, torch.tensor([[0.0, 0, 0, 3, 3]])
    with pytest.raises(RuntimeError, match="output_size must be positive, got 0 x 0"):
        raw(torch.zeros(1, 2, 0, 0), rois, 1, 2, 4, 4, 1.0, 2, False, False)
    with pytest.raises(RuntimeError, match="spatial_scale must be a positive number, got -1"):
        raw(torch.zeros(1, 2, 3, 3), rois, 1, 2, 4, 4, -1.0, 2, False, False)
