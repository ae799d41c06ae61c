from __future__ import annotations

import importlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pyposeext import ops
from tests.ops.harness import DEVICES, OpCase, contract_tests

module = importlib.import_module("pyposeext.ops.flow_warp")
nan, inf = float("nan"), float("inf")


def random_flow(batch: int, height: int, width: int, reach: int) -> torch.Tensor:
    """Whole pixels plus a fraction well inside (0, 1): away from the kinks, where there is one derivative."""
    whole = torch.randint(-reach, reach, (batch, 2, height, width)).double()
    return whole + 0.15 + 0.7 * torch.rand(batch, 2, height, width, dtype=torch.float64)


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    batch, channels, height, width = (2, 2, 3, 4) if size == "small" else (2, 19, 33, 41)
    input = torch.randn(batch, channels, height, width, dtype=torch.float64)
    return input, random_flow(batch, height, width, 4), ["zeros", "border"][seed % 2]


def zeros(*shape: int, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, device=device)


def warp_nothing(shape: tuple[int, ...], device: str) -> torch.Tensor:
    return ops.flow_warp(zeros(*shape, device=device), zeros(shape[0], 2, *shape[2:], device=device))


TestContract = contract_tests(
    OpCase(
        name="flow_warp",
        function=ops.flow_warp,
        reference=module.reference,
        make=make,
        raw=lambda *arguments: arguments,
        data=(0, 1),
        differentiable=(0, 1),
        double_backward=False,  # not of the flow's gradient; of the input's below
        empty=[
            (partial(warp_nothing, shape), [list(shape)])
            for shape in ((0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0))
        ],
        errors=[
            (lambda: ops.flow_warp(zeros(3, 4, 5), zeros(1, 2, 4, 5)), r"input must be \[B, C, H, W\], got shape"),
            (
                lambda: ops.flow_warp(zeros(2, 3, 4, 5), zeros(2, 3, 4, 5)),
                r"flow must be \[2, 2, 4, 5\], got shape \[2, 3, 4, 5\]",
            ),
            (
                lambda: ops.flow_warp(zeros(2, 3, 4, 5), zeros(1, 2, 4, 5)),
                r"flow must be \[2, 2, 4, 5\], got shape \[1, 2, 4, 5\]",
            ),
            (lambda: ops.flow_warp(zeros(1, 3, 4, 5).int(), zeros(1, 2, 4, 5)), "input must be float32, float64"),
            (lambda: ops.flow_warp(zeros(1, 3, 4, 5), zeros(1, 2, 4, 5).long()), "flow must be float32, float64"),
            (
                lambda: ops.flow_warp(zeros(1, 3, 4, 5), zeros(1, 2, 4, 5), "reflection"),
                "padding_mode must be zeros or border, got reflection",
            ),
        ],
    )
)


def grid_sample(input: torch.Tensor, flow: torch.Tensor, padding_mode: str) -> torch.Tensor:
    """What users write today: pixels made into a grid of -1..1."""
    height, width = input.shape[2:]
    x = (torch.arange(width).to(input) + flow[:, 0]) * 2 / (width - 1) - 1
    y = (torch.arange(height).to(input)[:, None] + flow[:, 1]) * 2 / (height - 1) - 1
    return F.grid_sample(input, torch.stack([x, y], dim=3), padding_mode=padding_mode, align_corners=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_equals_grid_sample(device: str, padding_mode: str) -> None:
    input, flow, _ = make(0, "medium")
    results = []
    for function in (ops.flow_warp, grid_sample):
        leaves = [input.to(device).requires_grad_(True), flow.to(device).requires_grad_(True)]
        result = function(*leaves, padding_mode)
        weights = torch.linspace(-1, 1, result.numel(), dtype=torch.float64, device=device).reshape(result.shape)
        results.append([result.detach(), *torch.autograd.grad((result * weights).sum(), leaves)])
    for have, want in zip(*results, strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_second_derivatives(device: str, padding_mode: str) -> None:
    input, flow, _ = make(1, "small")
    input, flow = input.to(device).requires_grad_(True), flow.to(device)
    assert torch.autograd.gradgradcheck(lambda maps: ops.flow_warp(maps, flow, padding_mode), [input])

    def of_input_alone(maps: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
        result = ops.flow_warp(maps, displacement, padding_mode)
        return torch.autograd.grad((result**3).sum(), maps, create_graph=True)[0]

    def of_gradient_and_flow(gradient: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
        return torch.ops.pyposeext.flow_warp_backward_input(gradient, displacement, padding_mode, False)

    assert torch.autograd.gradcheck(lambda maps: of_input_alone(maps, flow), [input])
    assert torch.autograd.gradcheck(of_gradient_and_flow, [input, flow.clone().requires_grad_(True)])


def test_the_second_derivative_of_the_flow_is_refused() -> None:
    input, flow, _ = make(0, "small")
    flow.requires_grad_(True)
    (gradient,) = torch.autograd.grad(ops.flow_warp(input, flow).square().sum(), flow, create_graph=True)
    with pytest.raises(RuntimeError, match="gradient with respect to flow cannot be differentiated again"):
        gradient.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 3, 8, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_zero_flow_and_whole_shifts_copy(device: str, dtype: torch.dtype, channels: int) -> None:
    """Bit by bit, with NaN and infinity in place: a neighbour of weight 0 is not read."""
    input = torch.randn(2, channels, 7, 9).to(dtype)
    input[0, 0, 3, 4], input[1, 0, 2, 2] = nan, inf
    for form in (torch.contiguous_format, torch.channels_last):
        given = input.contiguous(memory_format=form).to(device)
        flow = torch.zeros(2, 2, 7, 9, device=device)
        for mode in ("zeros", "border"):
            have = ops.flow_warp(given, flow, mode).cpu()
            torch.testing.assert_close(have, input, rtol=0, atol=0, equal_nan=True)
        flow[:, 0], flow[:, 1] = 2, -1
        want = torch.zeros_like(input)
        want[:, :, 1:, :7] = input[:, :, :6, 2:]
        torch.testing.assert_close(ops.flow_warp(given, flow).cpu(), want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_flow_that_is_not_finite_gives_zero_and_no_gradient(device: str, padding_mode: str) -> None:
    input = torch.ones(1, 9, 2, 3, device=device, requires_grad=True)
    flow = torch.tensor([[nan, 0, 0], [inf, -inf, 0]], device=device).expand(1, 2, 2, 3).clone()
    flow[0, 1, 0, 0] = 0
    flow.requires_grad_(True)
    result = ops.flow_warp(input, flow, padding_mode)
    lost = ~torch.isfinite(flow.detach()).all(dim=1)
    assert (result[:, :, lost[0]] == 0).all()
    assert (result[:, :, ~lost[0]] == 1).all()
    result.sum().backward()
    assert torch.isfinite(flow.grad).all()
    assert float(input.grad.sum()) == 9 * int((~lost).sum())


@pytest.mark.parametrize("device", DEVICES)
def test_positions_far_outside(device: str) -> None:
    input = torch.arange(1.0, 13).reshape(1, 1, 3, 4).to(device)
    for far in (1e30, -1e30, 1e10, 4.0, -4.0):
        flow = torch.full((1, 2, 3, 4), far, device=device)
        assert (ops.flow_warp(input, flow) == 0).all()
        assert (ops.flow_warp(input, flow, "border") == (12.0 if far > 0 else 1.0)).all()


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_of_the_flow_at_the_edges(device: str) -> None:
    """Under "border" it is 0 at the edge and beyond; at whole pixels the slope to the right, as in grid_sample."""
    input = torch.tensor([[[[1.0, 4, 9, 16]]]], dtype=torch.float64, device=device).expand(1, 1, 3, 4)
    flow = torch.zeros(1, 2, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.flow_warp(input, flow, "border").sum(), flow)
    assert gradient[0, 0, 1].tolist() == [0, 5, 7, 0]
    (gradient,) = torch.autograd.grad(ops.flow_warp(input, flow, "zeros").sum(), flow)
    assert gradient[0, 0, 1].tolist() == [3, 5, 7, -16]
    shifted = torch.full_like(flow, -1.0).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(ops.flow_warp(input, shifted, "zeros").sum(), shifted)
    want = torch.autograd.grad(grid_sample(input, shifted, "zeros").sum(), shifted)[0]
    torch.testing.assert_close(gradient, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_all_pixels_may_come_from_one(device: str) -> None:
    input = torch.zeros(1, 17, 40, 40, device=device, requires_grad=True)
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    flow = torch.stack([7.5 - columns, 11.25 - rows])[None].to(device)
    ops.flow_warp(input, flow).sum().backward()
    want = torch.zeros(40, 40)
    want[11, 7:9], want[12, 7:9] = 1600 * 0.5 * 0.75, 1600 * 0.5 * 0.25
    assert torch.equal(input.grad[0].cpu(), want.expand(17, 40, 40))


@pytest.mark.parametrize("device", DEVICES)
def test_flow_of_another_dtype_and_layout(device: str) -> None:
    input, flow, _ = make(0, "medium")
    input, flow = input.float().to(device), flow.to(device).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        ops.flow_warp(input, flow), ops.flow_warp(input, flow.float().contiguous()), rtol=0, atol=0
    )
    flow.requires_grad_(True)
    ops.flow_warp(input, flow).sum().backward()
    assert flow.grad.dtype == torch.float64


def test_offsets_beyond_32_bits() -> None:
    """Images 2^31 elements apart; only the pages that are read or written exist."""
    storage = torch.empty(2**31 + 64, dtype=torch.float16)
    input = storage.as_strided((2, 1, 3, 4), (2**31, 12, 4, 1))
    input.copy_(torch.randn(2, 1, 3, 4))
    flow = random_flow(2, 3, 4, 1).float()
    assert torch.equal(ops.flow_warp(input, flow), ops.flow_warp(input.clone(), flow))


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6)),
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=8),
    st.sampled_from(["zeros", "border"]),
    st.booleans(),
)
def test_any_flow(shape: tuple[int, ...], values: list[float], padding_mode: str, channels_last: bool) -> None:
    """Equal to the reference, and the backward is the transpose of the forward."""
    batch, _, height, width = shape
    input = torch.randn(shape, dtype=torch.float64)
    if channels_last:
        input = input.contiguous(memory_format=torch.channels_last)
    count = batch * 2 * height * width
    flow = torch.tensor((values * count)[:count], dtype=torch.float64).reshape(batch, 2, height, width)
    input.requires_grad_(True)
    result = ops.flow_warp(input, flow, padding_mode)
    torch.testing.assert_close(result, module.reference(input, flow, padding_mode), rtol=0, atol=1e-9)
    direction = torch.randn(shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(result, input, direction)
    torch.testing.assert_close((gradient * input).sum(), (direction * result).sum(), rtol=1e-9, atol=1e-9)
