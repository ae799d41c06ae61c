from __future__ import annotations

import importlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pyposeext import ops
from tests.ops.harness import DEVICES, LAYOUTS, OpCase, contract_tests, with_layout

module = importlib.import_module("pyposeext.ops.conv_lstm_cell")
nan, inf = float("nan"), float("inf")


def size_of(size: str) -> tuple[int, int, int, int]:
    return (2, 3, 2, 3) if size == "small" else (2, 19, 13, 11)


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    batch, channels, height, width = size_of(size)
    gates, hidden_gates = (torch.randn(batch, 4 * channels, height, width, dtype=torch.float64) for _ in range(2))
    return gates, torch.randn(batch, channels, height, width, dtype=torch.float64), hidden_gates, seed


def call(function, gates, cell, hidden_gates, seed):
    return function(gates, cell, hidden_gates, gate_order=["ifgo", "gifo"][seed % 2], store_tanh=seed % 2 == 1)


def raw(gates, cell, hidden_gates, seed):
    return gates, hidden_gates, cell, ["ifgo", "gifo"][seed % 2], seed % 2 == 1, str(gates.dtype)[6:]


def make_first(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    batch, channels, height, width = size_of(size)
    return torch.randn(batch, 3 * channels, height, width, dtype=torch.float64) * 2, seed


def call_first(function, gates, seed):
    return function(gates, gate_order="gio", store_tanh=seed % 2 == 1)


def zeros(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, device=device, dtype=dtype)


def step_nothing(shape: tuple[int, int, int, int], device: str) -> object:
    batch, channels, height, width = shape
    return ops.conv_lstm_cell(zeros(batch, 4 * channels, height, width, device=device), zeros(*shape, device=device))


TestContract = contract_tests(
    OpCase(
        name="conv_lstm_cell",
        function=partial(call, ops.conv_lstm_cell),
        reference=partial(call, module.reference),
        make=make,
        raw=raw,
        data=(0, 1, 2),
        differentiable=(0, 1, 2),
        double_backward=False,
        empty=[
            (partial(step_nothing, shape), [list(shape)] * 2)
            for shape in ((0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0))
        ],
        errors=[
            (
                lambda: ops.conv_lstm_cell(zeros(3, 4, 5)),
                r"gates must be \[B, gates \* C, H, W\], got shape \[3, 4, 5\]",
            ),
            (lambda: ops.conv_lstm_cell(zeros(1, 4, 2, 2).int()), "gates must be float32, float64"),
            (
                lambda: ops.conv_lstm_cell(zeros(1, 6, 2, 2)),
                r"gates must have a multiple of 4 channels, got shape \[1, 6, 2, 2\]",
            ),
            (
                lambda: ops.conv_lstm_cell(zeros(1, 4, 2, 2), zeros(1, 2, 2, 2)),
                r"cell must be \[1, 1, 2, 2\], got shape \[1, 2, 2, 2\]",
            ),
            (
                lambda: ops.conv_lstm_cell(zeros(1, 4, 2, 2), zeros(1, 1, 2, 2).double()),
                "the cell must be float32 with such gates, got float64",
            ),
            (
                lambda: ops.conv_lstm_cell(zeros(1, 4, 2, 2).half(), zeros(1, 1, 2, 2).bfloat16()),
                "the cell must be float16 or float32 with such gates, got bfloat16",
            ),
            (
                lambda: ops.conv_lstm_cell(zeros(1, 4, 2, 2).half(), zeros(1, 1, 2, 2), cell_dtype=torch.float16),
                "cell must be float16",
            ),
            (
                lambda: ops.conv_lstm_cell(zeros(1, 4, 2, 2), None, zeros(1, 8, 2, 2)),
                r"hidden_gates must have the shape of gates, \[1, 4, 2, 2\], got shape \[1, 8, 2, 2\]",
            ),
            (
                lambda: ops.conv_lstm_cell(zeros(1, 4, 2, 2), None, zeros(1, 4, 2, 2).half()),
                "hidden_gates must have the dtype of gates",
            ),
            (
                lambda: ops.conv_lstm_cell(zeros(1, 4, 2, 2), gate_order="ifoo"),
                "gate_order must hold the letters i, f, g and o once each, or without a cell also only i, g and o",
            ),
            (
                lambda: ops.conv_lstm_cell(zeros(1, 3, 2, 2), zeros(1, 1, 2, 2), gate_order="gio"),
                "gate_order must hold the letters i, f, g and o once each, got gio",
            ),
        ],
    )
)
TestFirstFrame = contract_tests(
    OpCase(
        name="conv_lstm_cell",
        function=partial(call_first, ops.conv_lstm_cell),
        reference=partial(call_first, module.reference),
        make=make_first,
        raw=lambda gates, seed: (gates, None, None, "gio", seed % 2 == 1, str(gates.dtype)[6:]),
        double_backward=False,
    )
)


@pytest.mark.parametrize("device", DEVICES)
def test_lstm_pose_machines(device: str) -> None:
    """Caffe's net: the first frame is the later frames' step with the hidden convolution and the cell at 0; any f."""
    torch.manual_seed(0)
    channels = 48
    x = torch.randn(1, 192, 5, 6, device=device)
    first = ops.conv_lstm_cell(x, gate_order="gifo")
    later = ops.conv_lstm_cell(x, zeros(1, channels, 5, 6, device=device), torch.zeros_like(x), gate_order="gifo")
    g, i, _, o = x.chunk(4, dim=1)
    cell = torch.sigmoid(i) * torch.tanh(g)
    for have, other, want in zip(first, later, (torch.sigmoid(o) * torch.tanh(cell), cell), strict=True):
        assert torch.equal(have, other)
        torch.testing.assert_close(have, want, rtol=0, atol=3e-7)


@pytest.mark.parametrize("device", DEVICES)
def test_unipose_lstm(device: str) -> None:
    """As the published module runs: 15 channels, the first frame's cell stored after its tanh, then plain steps."""
    torch.manual_seed(0)
    frames = torch.randn(3, 1, 15, 6, 5, device=device)
    first, x_weight, h_weight = (torch.randn(n * 15, 15, 3, 3, device=device) * 0.2 for n in (3, 4, 4))
    hidden, cell = ops.conv_lstm_cell(F.conv2d(frames[0], first, padding=1), gate_order="gio", store_tanh=True)
    g, i, o = F.conv2d(frames[0], first, padding=1).chunk(3, dim=1)
    want_cell = torch.tanh(torch.tanh(g) * torch.sigmoid(i))
    want = torch.sigmoid(o) * want_cell
    for frame in frames[1:]:
        from_x, from_h = F.conv2d(frame, x_weight, padding=1), F.conv2d(hidden, h_weight, padding=1)
        hidden, cell = ops.conv_lstm_cell(from_x, cell, from_h, gate_order="giof")
        total = F.conv2d(frame, x_weight, padding=1) + F.conv2d(want, h_weight, padding=1)
        g, i, o, f = total.chunk(4, dim=1)
        want_cell = torch.sigmoid(f) * want_cell + torch.sigmoid(i) * torch.tanh(g)
        want = torch.sigmoid(o) * torch.tanh(want_cell)
    torch.testing.assert_close(hidden, want, rtol=0, atol=5e-6)
    torch.testing.assert_close(cell, want_cell, rtol=0, atol=5e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_float32_cell_goes_with_half_gates(device: str, dtype: torch.dtype, layout: str) -> None:
    """The cell keeps its dtype and accuracy over the frames; its gradient too."""
    gates, cell, hidden_gates, _ = make(0, "medium")
    gates, hidden_gates = (
        with_layout(x.to(dtype), layout).to(device).requires_grad_(True) for x in (gates, hidden_gates)
    )
    cell = with_layout(cell.float(), layout).to(device).requires_grad_(True)
    hidden, new_cell = ops.conv_lstm_cell(gates, cell, hidden_gates)
    assert (hidden.dtype, new_cell.dtype) == (dtype, torch.float32)
    leaves = [gates, cell, hidden_gates]
    exact = [leaf.detach().double().requires_grad_(True) for leaf in leaves]
    want_hidden, want_cell = module.reference(*exact)
    torch.testing.assert_close(new_cell, want_cell.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(hidden.double(), want_hidden, rtol=0, atol=8e-3)
    have = torch.autograd.grad([hidden, new_cell], leaves, [torch.ones_like(hidden), new_cell.detach()])
    want = torch.autograd.grad(
        [want_hidden, want_cell], exact, [torch.ones_like(want_hidden), new_cell.detach().double()]
    )
    torch.testing.assert_close(have[1], want[1].float(), rtol=0, atol=1e-5)
    for of_half, of_double in zip(have, want, strict=True):
        torch.testing.assert_close(of_half.double(), of_double, rtol=1e-2, atol=1e-3)
    first = ops.conv_lstm_cell(gates.detach(), cell_dtype=torch.float32)[1]
    assert first.dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_convolutions(device: str) -> None:
    """Convolutions give bfloat16 gates under autocast, and the state stays float32."""
    frame, weight = torch.randn(1, 4, 6, 6, device=device), torch.randn(16, 4, 3, 3, device=device)
    state = zeros(1, 4, 6, 6, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        hidden, cell = ops.conv_lstm_cell(F.conv2d(frame, weight, padding=1), state)
    assert (hidden.dtype, cell.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "layouts", [("channels_last", "contiguous"), ("contiguous", "channels_last"), ("sliced", "contiguous")]
)
def test_layouts_may_differ(device: str, layouts: tuple[str, str]) -> None:
    gates, cell, hidden_gates, _ = make(0, "medium")
    want = module.reference(gates, cell, hidden_gates)
    leaves = [
        with_layout(x, layout).to(device).requires_grad_(True)
        for x, layout in zip((gates, cell, hidden_gates), (layouts[0], layouts[1], layouts[1]), strict=True)
    ]
    have = ops.conv_lstm_cell(*leaves)
    exact = [x.to(device).requires_grad_(True) for x in (gates, cell, hidden_gates)]
    for a, b in zip(have, want, strict=True):
        torch.testing.assert_close(a.detach().cpu(), b, rtol=0, atol=1e-12)
    of_have = torch.autograd.grad(sum(x.square().sum() for x in have), leaves)
    of_want = torch.autograd.grad(sum(x.square().sum() for x in module.reference(*exact)), exact)
    for a, b in zip(of_have, of_want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_either_output_alone_has_a_gradient(device: str) -> None:
    gates, cell, hidden_gates, _ = make(0, "small")
    leaves = [x.to(device).requires_grad_(True) for x in (gates, cell, hidden_gates)]
    for index in (0, 1):
        have = torch.autograd.grad(ops.conv_lstm_cell(*leaves)[index].square().sum(), leaves)
        want = torch.autograd.grad(
            module.reference(*leaves)[index].square().sum(), leaves, allow_unused=True, materialize_grads=True
        )
        for a, b in zip(have, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_second_derivative_is_refused() -> None:
    gates = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.conv_lstm_cell(gates)[0].square().sum(), gates, create_graph=True)
    with pytest.raises(RuntimeError, match="conv_lstm_cell: its gradient cannot be differentiated again"):
        gradient.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
def test_accuracy_in_float32(device: str) -> None:
    """In units in the last place, of a tanh and of a sigmoid that stand alone, also near 0 and far out."""
    near = torch.logspace(-30, 0, 2001)
    x = torch.cat([torch.linspace(-80, 80, 160001), near, -near]).to(device)
    open_gate = torch.full_like(x, 60.0)

    def alone(input: torch.Tensor, cell_gate: torch.Tensor) -> torch.Tensor:
        gates = torch.stack([input, cell_gate, open_gate])[None, :, None]
        return ops.conv_lstm_cell(gates, gate_order="igo")[1].flatten().double()

    for have, want in (
        (alone(open_gate, x), torch.tanh(x.double())),
        (alone(x, open_gate), torch.sigmoid(x.double())),
    ):
        step = 2.0 ** (want.abs().clamp(min=2.0**-126).log2().floor() - 23)
        assert float(((have - want).abs() / step).max()) < 4


@pytest.mark.parametrize("device", DEVICES)
def test_values_that_are_not_finite(device: str) -> None:
    """NaN stays where it is; infinite gates are open or shut."""
    gates = torch.zeros(1, 4, 1, 40, device=device)
    gates[0, 0, 0, 3], gates[0, 0, 0, 5], gates[0, 2, 0, 5] = nan, inf, -inf
    gates[0, 0, 0, 9], gates[0, 2, 0, 9] = -inf, inf
    hidden, cell = ops.conv_lstm_cell(gates)
    assert torch.isnan(cell[0, 0, 0]).nonzero().flatten().tolist() == [3]
    assert torch.isnan(hidden[0, 0, 0]).nonzero().flatten().tolist() == [3]
    assert float(cell[0, 0, 0, 5]) == -1
    assert 0 <= float(cell[0, 0, 0, 9]) < 1e-37


def test_offsets_beyond_32_bits() -> None:
    """Images 2^31 elements apart; only the pages that are read or written exist."""
    storage = torch.empty(2**31 + 64, dtype=torch.float16)
    gates = storage.as_strided((2, 4, 2, 3), (2**31, 6, 3, 1))
    gates.copy_(torch.randn(2, 4, 2, 3))
    for have, want in zip(ops.conv_lstm_cell(gates), ops.conv_lstm_cell(gates.clone()), strict=True):
        assert torch.equal(have, want)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 18), st.integers(1, 5), st.integers(1, 19)),
    st.permutations("ifgo"),
    st.booleans(),
    st.booleans(),
    st.sampled_from(LAYOUTS),
    st.sampled_from(LAYOUTS),
)
def test_any_call(shape: tuple[int, ...], order: list[str], has_cell: bool, store_tanh: bool, a: str, b: str) -> None:
    batch, channels, height, width = shape
    gates = with_layout(torch.randn(batch, 4 * channels, height, width, dtype=torch.float64) * 4, a)
    cell = with_layout(torch.randn(shape, dtype=torch.float64), b) if has_cell else None
    options = {"gate_order": "".join(order), "store_tanh": store_tanh}
    for have, want in zip(
        ops.conv_lstm_cell(gates, cell, **options), module.reference(gates, cell, **options), strict=True
    ):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-12)
