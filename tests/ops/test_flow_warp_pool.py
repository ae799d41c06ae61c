from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyposeext import ops
from tests.ops.harness import DEVICES, OpCase, contract_tests
from tests.ops.test_flow_warp import random_flow, zeros

module = importlib.import_module("pyposeext.ops.flow_warp_pool")
nan, inf = float("nan"), float("inf")
RTOL, ATOL = 1e-9, 1e-9


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    batch, steps, joints, height, width = (2, 3, 2, 3, 4) if size == "small" else (2, 4, 19, 33, 41)
    flow = random_flow(batch * steps, height, width, 4).reshape(batch, steps, 2, height, width)
    weight, bias = torch.randn(steps, joints, dtype=torch.float64), torch.randn(joints, dtype=torch.float64)
    heatmaps = torch.randn(batch, steps, joints, height, width, dtype=torch.float64)
    return heatmaps, flow, weight, bias, ["zeros", "border"][seed % 2]


def pool(heatmaps: torch.Tensor, weight: torch.Tensor | None = None, **changes: torch.Tensor) -> torch.Tensor:
    """The op with zero flow and everything else of the shape that fits, unless given."""
    batch, steps, joints, height, width = heatmaps.shape
    flow = changes.get("flow", zeros(batch, steps, 2, height, width, device=str(heatmaps.device)))
    weight = zeros(steps, joints, device=str(heatmaps.device)) if weight is None else weight
    return ops.flow_warp_pool(heatmaps, flow, weight, changes.get("bias"))


def empty_case(shape: tuple[int, ...]) -> tuple[object, list[object]]:
    return lambda device: pool(zeros(*shape, device=device)), [[shape[0], *shape[2:]]]


TestContract = contract_tests(
    OpCase(
        name="flow_warp_pool",
        function=ops.flow_warp_pool,
        reference=module.reference,
        make=make,
        raw=lambda *arguments: arguments,
        data=(0, 1, 2, 3),
        differentiable=(0, 1, 2, 3),
        double_backward=False,  # not of the flow's gradient; of all others below
        keeps_layout=False,  # the harness's channels_last has frames innermost; each frame channels_last is below
        empty=[
            empty_case(shape)  # type: ignore[misc]
            for shape in ((0, 2, 3, 4, 5), (2, 0, 3, 4, 5), (2, 2, 0, 4, 5), (2, 2, 3, 0, 5), (2, 2, 3, 4, 0))
        ],
        errors=[
            (
                lambda: ops.flow_warp_pool(zeros(2, 3, 4, 5), *[zeros(1)] * 2),
                r"heatmaps must be \[B, S, K, H, W\], got",
            ),
            (
                lambda: pool(zeros(1, 2, 3, 4, 5), flow=zeros(1, 3, 2, 4, 5)),
                r"flow must be \[1, 2, 2, 4, 5\], got shape \[1, 3, 2, 4, 5\]",
            ),
            (
                lambda: pool(zeros(1, 2, 3, 4, 5), weight=zeros(3, 2)),
                r"weight must be \[2, 3\], got shape \[3, 2\]",
            ),
            (lambda: pool(zeros(1, 2, 3, 4, 5), bias=zeros(2)), r"bias must be \[3\], got shape \[2\]"),
            (lambda: pool(zeros(1, 2, 3, 4, 5).int()), "heatmaps must be float32, float64"),
            (lambda: pool(zeros(1, 2, 3, 4, 5), weight=zeros(2, 3).long()), "weight must be float32, float64"),
            (
                lambda: ops.flow_warp_pool(
                    zeros(1, 2, 3, 4, 5), zeros(1, 2, 2, 4, 5), zeros(2, 3), padding_mode="wrap"
                ),
                "padding_mode must be zeros or border, got wrap",
            ),
        ],
    )
)


def frames_channels_last(heatmaps: torch.Tensor) -> torch.Tensor:
    return heatmaps.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("joints", [1, 3, 7, 16, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_frames_channels_last(device: str, dtype: torch.dtype, joints: int) -> None:
    """The same values and gradients as of contiguous heatmaps, in channels_last."""
    torch.manual_seed(joints)
    flow = random_flow(6, 13, 22, 3).reshape(2, 3, 2, 13, 22).to(device)
    weight, bias = torch.randn(3, joints, device=device), torch.randn(joints, device=device)
    heatmaps = torch.randn(2, 3, joints, 13, 22, device=device).to(dtype)
    direction = torch.randn(2, joints, 13, 22, device=device).to(dtype)
    results = []
    for given_maps in (heatmaps, frames_channels_last(heatmaps)):
        leaves = [tensor.clone().requires_grad_(True) for tensor in (given_maps, flow, weight, bias)]
        result = ops.flow_warp_pool(*leaves)
        gradients = torch.autograd.grad(result, leaves, direction)
        results.append((result, *gradients))
    if joints > 1:
        assert results[1][0].is_contiguous(memory_format=torch.channels_last)
        assert results[1][1].stride()[2:] == (1, joints * 22, joints)
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for have, want in zip(*reversed(results), strict=True):
        scale = float(want.detach().abs().max())
        assert float((have - want).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_second_derivatives(device: str, padding_mode: str) -> None:
    heatmaps, flow, weight, bias, _ = (
        value.to(device) if torch.is_tensor(value) else value for value in make(1, "small")
    )
    leaves = [tensor.requires_grad_(True) for tensor in (heatmaps, weight, bias)]

    def function(maps: torch.Tensor, factors: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return ops.flow_warp_pool(maps, flow, factors, offset, padding_mode)

    assert torch.autograd.gradgradcheck(function, leaves)
    gradient = torch.randn(2, 2, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    moving = flow.clone().requires_grad_(True)
    raw = torch.ops.pyposeext
    assert torch.autograd.gradcheck(
        lambda *values: raw.flow_warp_pool_backward_heatmaps(*values, padding_mode, False), [gradient, moving, weight]
    )
    assert torch.autograd.gradcheck(
        lambda *values: raw.flow_warp_pool_backward_weight(*values, padding_mode), [gradient, heatmaps, moving]
    )


def test_the_second_derivative_of_the_flow_is_refused() -> None:
    heatmaps, flow, weight, _, _ = make(0, "small")
    flow.requires_grad_(True)
    (gradient,) = torch.autograd.grad(
        ops.flow_warp_pool(heatmaps, flow, weight).square().sum(), flow, create_graph=True
    )
    with pytest.raises(RuntimeError, match="gradient with respect to flow cannot be differentiated again"):
        gradient.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
def test_a_delta_at_the_reference_frame_returns_its_maps(device: str) -> None:
    """Bit by bit, with NaN in place: a neighbour of weight 0 in the bilinear sum is not read."""
    heatmaps = torch.randn(2, 3, 7, 9, 11, device=device)
    heatmaps[0, 1, 2, 3, 4] = nan
    weight = zeros(3, 7, device=device)
    weight[1] = 1
    torch.testing.assert_close(pool(heatmaps, weight), heatmaps[:, 1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
def test_flow_that_is_not_finite_adds_nothing(device: str) -> None:
    heatmaps = torch.ones(1, 3, 2, 3, 4, device=device, requires_grad=True)
    flow = torch.zeros(1, 3, 2, 3, 4, device=device)
    flow[0, 0], flow[0, 2, 1] = nan, -inf
    flow.requires_grad_(True)
    weight = torch.full((3, 2), 2.0, device=device, requires_grad=True)
    result = ops.flow_warp_pool(heatmaps, flow, weight, torch.ones(2, device=device))
    assert (result == 3).all()
    result.sum().backward()
    assert torch.isfinite(flow.grad).all()
    assert heatmaps.grad[0, 1].eq(2).all()
    assert heatmaps.grad[0, ::2].eq(0).all()
    assert weight.grad.tolist() == [[0, 0], [12, 12], [0, 0]]


@pytest.mark.parametrize("device", DEVICES)
def test_one_frame_of_weight_one_is_flow_warp(device: str) -> None:
    heatmaps, flow, _, _, _ = make(0, "medium")
    heatmaps, flow = heatmaps[:, :1].to(device), flow[:, :1].to(device)
    have = ops.flow_warp_pool(heatmaps, flow, torch.ones(1, 19, device=device))
    torch.testing.assert_close(have, ops.flow_warp(heatmaps[:, 0], flow[:, 0]), rtol=0, atol=1e-12)


def test_fake_kernels_have_the_layout_of_the_real_ones() -> None:
    heatmaps, flow, weight, bias, mode = (
        value.float() if torch.is_tensor(value) else value for value in make(0, "small")
    )
    gradient, raw = torch.randn(2, 2, 3, 4), torch.ops.pyposeext
    calls = [
        (raw.flow_warp_pool, (frames_channels_last(heatmaps), flow, weight, bias, mode)),
        (raw.flow_warp_pool_backward_heatmaps, (gradient, flow, weight, mode, True)),
        (raw.flow_warp_pool_backward_heatmaps, (gradient, flow, weight, mode, False)),
        (raw.flow_warp_pool_backward_flow, (gradient, heatmaps, flow, weight, mode)),
        (raw.flow_warp_pool_backward_weight, (gradient, heatmaps, flow, mode)),
    ]
    for function, arguments in calls:
        torch.library.opcheck(function.default, arguments)


@pytest.mark.parametrize("device", DEVICES)
def test_the_bias_gradient_is_summed_in_float32(device: str) -> None:
    """Half precision would end at 65504; and one joint alone is the sum that threads could split."""
    heatmaps = torch.zeros(2, 1, 1, 300, 300, dtype=torch.float16, device=device)
    flow, weight = torch.zeros(2, 1, 2, 300, 300, device=device), torch.ones(1, 1, device=device)
    bias = torch.zeros(1, device=device, requires_grad=True)
    ops.flow_warp_pool(heatmaps, flow, weight, bias).sum(dtype=torch.float32).backward()
    assert bias.grad.item() == 180000


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 18), st.integers(1, 6), st.integers(1, 6)),
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=8),
    st.sampled_from(["zeros", "border"]),
    st.booleans(),
)
def test_any_flow(shape: tuple[int, ...], values: list[float], padding_mode: str, channels_last: bool) -> None:
    """Equal to the reference, and all backwards are transposes of the forward."""
    batch, steps, joints, height, width = shape
    heatmaps = torch.randn(shape, dtype=torch.float64)
    heatmaps = (frames_channels_last(heatmaps) if channels_last else heatmaps).requires_grad_(True)
    count = batch * steps * 2 * height * width
    flow = torch.tensor((values * count)[:count], dtype=torch.float64).reshape(batch, steps, 2, height, width)
    weight = torch.randn(steps, joints, dtype=torch.float64, requires_grad=True)
    result = ops.flow_warp_pool(heatmaps, flow, weight, None, padding_mode)
    torch.testing.assert_close(
        result, module.reference(heatmaps, flow, weight, None, padding_mode), rtol=RTOL, atol=ATOL
    )
    direction = torch.randn(batch, joints, height, width, dtype=torch.float64)
    of_heatmaps, of_weight = torch.autograd.grad(result, [heatmaps, weight], direction)
    product = (direction * result).sum()
    torch.testing.assert_close((of_heatmaps * heatmaps).sum(), product, rtol=RTOL, atol=ATOL)
    torch.testing.assert_close((of_weight * weight).sum(), product, rtol=RTOL, atol=ATOL)
