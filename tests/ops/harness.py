"""The contract every op is held to, run for each `OpCase` on the CPU and, where there is one, on a GPU.

An op's test file describes its inputs once (`OpCase`) and calls `contract_tests(case)`; what only that op promises it
tests beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels_last", "sliced"]


def with_layout(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout; "sliced" has gaps between its elements in every dimension."""
    if layout == "channels_last" and tensor.dim() in (4, 5):
        return tensor.contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)
    if layout == "sliced":
        padded = tensor.new_full([2 * size + 1 for size in tensor.shape], float("nan"))
        view = padded[tuple(slice(1, 2 * size, 2) for size in tensor.shape)]
        view.copy_(tensor)
        return view
    return tensor.clone()


@dataclass
class OpCase:
    """One op as the harness sees it.

    Attributes:
        name: the registered op, `torch.ops.pyposeext.<name>`.
        function: the public function; `reference` takes the same arguments.
        make: (seed, size) -> positional arguments in float64 on the CPU; size is "small" or "medium".
        data: positions of the arguments (tensors or lists of tensors) that take every dtype and layout.
        differentiable: positions among `data` that get a gradient; () for ops that promise none.
        double_backward: whether the gradient is differentiable itself.
        raw: positional arguments of the public call -> those of the registered op.
        empty: calls that must return without touching memory, with the shapes they return.
        errors: (call, part of the message) pairs of wrong input.
        tolerance: largest error against float64, relative to the largest value, for each dtype.
        exact: results (indices) must be equal, not close.
        keeps_layout: channels_last in, channels_last out.
        ignores_autocast: under autocast the result is that of the plain call.
        capturable: nothing is read back, so that a CUDA graph can hold the op.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    make: Callable[[int, str], tuple[Any, ...]]
    raw: Callable[..., tuple[Any, ...]]
    data: Sequence[int] = (0,)
    differentiable: Sequence[int] = (0,)
    double_backward: bool = True
    empty: Sequence[tuple[Callable[[str], Any], list[Any]]] = ()
    errors: Sequence[tuple[Callable[[], Any], str]] = ()
    tolerance: dict[torch.dtype, float] = field(
        default_factory=lambda: {torch.float32: 2e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}
    )
    exact: bool = False
    keeps_layout: bool = True
    ignores_autocast: bool = True
    capturable: bool = True

    def arguments(self, seed: int, size: str, dtype: torch.dtype, layout: str, device: str) -> list[Any]:
        """`make`'s arguments with the data in this dtype and layout and everything on the device."""

        def place(value: Any, is_data: bool) -> Any:
            if isinstance(value, list) and all(isinstance(part, Tensor) for part in value):
                return [place(part, is_data) for part in value]
            if not isinstance(value, Tensor):
                return value
            if is_data:
                return with_layout(value.to(dtype), layout).to(device)
            return value.to(device)

        return [place(value, i in self.data) for i, value in enumerate(self.make(seed, size))]


def tensors_of(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def upcast(value: Any) -> Any:
    """Arguments for the reference: on the CPU, floating point in float64 with the values the op really saw."""
    if isinstance(value, list):
        return [upcast(part) for part in value]
    if isinstance(value, Tensor):
        return value.detach().cpu().double() if value.is_floating_point() else value.cpu()
    return value


def assert_close(case: OpCase, result: Any, expected: Any, dtype: torch.dtype) -> None:
    for have, want in zip(tensors_of(result), tensors_of(expected), strict=True):
        assert have.shape == want.shape
        if case.exact or not have.is_floating_point():
            assert torch.equal(have.cpu(), want.cpu().to(have.dtype))
            continue
        scale = max(float(want.abs().max()) if want.numel() else 0.0, 1e-3)
        error = float((have.detach().cpu().double() - want.double()).abs().max()) / scale if want.numel() else 0.0
        assert error <= case.tolerance[dtype], f"{case.name} {dtype}: error {error:.3g}"


def check_values(case: OpCase, device: str, dtype: torch.dtype, layout: str, size: str) -> None:
    """Equal to the float64 reference on the values the op saw; input untouched; layout kept."""
    for seed in range(2):
        arguments = case.arguments(seed, size, dtype, layout, device)
        before = [upcast(value) for value in arguments]
        result = case.function(*arguments)
        assert_close(case, result, case.reference(*before), dtype)
        for value, copy in zip(arguments, before, strict=True):
            if isinstance(value, Tensor):
                torch.testing.assert_close(upcast(value), copy, rtol=0, atol=0, equal_nan=True)
        if case.keeps_layout and layout == "channels_last":
            for have in tensors_of(result):
                form = torch.channels_last if have.dim() == 4 else torch.channels_last_3d
                assert have.is_contiguous(memory_format=form)


def gradient_inputs(case: OpCase, seed: int, device: str) -> tuple[list[Tensor], Callable[..., Any]]:
    """Leaves that want a gradient, and the op as a function of them alone."""
    arguments = case.arguments(seed, "small", torch.float64, "contiguous", device)
    leaves: list[Tensor] = []
    where: list[tuple[int, int | None]] = []
    for position in case.differentiable:
        value = arguments[position]
        for index, part in enumerate(value) if isinstance(value, list) else [(None, value)]:
            leaves.append(part.clone().requires_grad_(True))
            where.append((position, index))

    def call(*inputs: Tensor) -> Any:
        full = [list(value) if isinstance(value, list) else value for value in arguments]
        for (position, index), tensor in zip(where, inputs, strict=True):
            if index is None:
                full[position] = tensor
            else:
                full[position][index] = tensor
        return case.function(*full)

    return leaves, call


def check_gradients(case: OpCase, device: str) -> None:
    for seed in range(2):
        leaves, call = gradient_inputs(case, seed, device)
        assert torch.autograd.gradcheck(call, leaves)
        if case.double_backward:
            assert torch.autograd.gradgradcheck(call, leaves)


def check_half_gradients(case: OpCase, device: str, dtype: torch.dtype, layout: str) -> None:
    """The gradient of 16-bit input, against the reference's in float64."""
    arguments = case.arguments(0, "medium", dtype, layout, device)
    exact = [upcast(value) for value in arguments]
    gradients = []
    for function, values in ((case.function, arguments), (case.reference, exact)):
        leaves = [part for i in case.differentiable for part in _parts(values[i])]
        for leaf in leaves:
            leaf.requires_grad_(True)
        results = tensors_of(function(*values))
        weights = [torch.linspace(-1, 1, r.numel(), dtype=torch.float64).reshape(r.shape).to(dtype) for r in results]
        total = sum((r * w.to(r)).sum(dtype=torch.float64) for r, w in zip(results, weights, strict=True))
        gradients.append(torch.autograd.grad(total, leaves))
    for have, want in zip(*gradients, strict=True):
        assert_close(case, have, want, dtype)


def _parts(value: Any) -> list[Tensor]:
    return value if isinstance(value, list) else [value]


def check_no_gradient(case: OpCase, device: str) -> None:
    arguments = case.arguments(0, "small", torch.float32, "contiguous", device)
    for position in case.data:
        for part in _parts(arguments[position]):
            part.requires_grad_(True)
    assert not any(result.requires_grad for result in tensors_of(case.function(*arguments)))


def check_registration(case: OpCase, device: str) -> None:
    """opcheck, the raw pybind11 kernel, fullgraph compilation, export and autocast agree with the plain call."""
    from pyposeext import _C

    arguments = case.arguments(0, "small", torch.float32, "contiguous", device)
    expected = tensors_of(case.function(*arguments))
    raw = case.raw(*arguments)
    torch.library.opcheck(getattr(torch.ops.pyposeext, case.name).default, raw)
    for have, want in zip(tensors_of(getattr(_C, case.name)(*raw)), expected, strict=True):
        assert torch.equal(have, want)
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    compiled = torch.compile(case.function, fullgraph=True, backend="aot_eager")
    for have, want in zip(tensors_of(compiled(*arguments)), expected, strict=True):
        assert torch.equal(have, want)
    torch._dynamo.reset()
    exported = torch.export.export(_Module(case.function, arguments), tuple(_tensors_in(arguments)))
    for have, want in zip(tensors_of(exported.module()(*_tensors_in(arguments))), expected, strict=True):
        assert torch.equal(have, want)
    if not case.ignores_autocast:
        return
    with torch.autocast(device, dtype=torch.bfloat16):
        for have, want in zip(tensors_of(case.function(*arguments)), expected, strict=True):
            assert torch.equal(have, want)


def _tensors_in(arguments: Sequence[Any]) -> list[Any]:
    """The arguments that a graph takes: tensors and lists of tensors. The others are constants of it."""
    return [value for value in arguments if _is_data(value)]


def _is_data(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list) and all(isinstance(part, Tensor) for part in value))


class _Module(torch.nn.Module):
    """An op as torch.export takes it: a module whose inputs are tensors, with the constants in place."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
        super().__init__()
        self.function = function
        self.constants = [None if _is_data(value) else value for value in arguments]
        self.places = [i for i, value in enumerate(arguments) if _is_data(value)]

    def forward(self, *tensors: Any) -> Any:
        arguments = list(self.constants)
        for place, tensor in zip(self.places, tensors, strict=True):
            arguments[place] = tensor
        return self.function(*arguments)


def check_determinism(case: OpCase, device: str) -> None:
    """The same bits for one thread and two, and twice in a row; forward and backward."""

    def run(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            arguments = case.arguments(0, "medium", torch.float32, "contiguous", device)
            leaves = [part.requires_grad_(True) for i in case.differentiable for part in _parts(arguments[i])]
            results = tensors_of(case.function(*arguments))
            gradients = torch.autograd.grad([(r * r).sum() for r in results], leaves) if leaves else ()
            return [tensor.detach() for tensor in (*results, *gradients)]
        finally:
            torch.set_num_threads(before)

    first = run(1)
    for threads in (2, 2):
        for have, want in zip(run(threads), first, strict=True):
            assert torch.equal(have, want)


def check_empty(case: OpCase, device: str) -> None:
    for call, shapes in case.empty:
        assert [list(result.shape) for result in tensors_of(call(device))] == shapes


def check_cuda_streams(case: OpCase) -> None:
    """On a stream of its own, captured in a graph, and on a second device: the same values."""
    arguments = case.arguments(0, "medium", torch.float32, "contiguous", "cuda")
    expected = tensors_of(case.function(*arguments))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        results = tensors_of(case.function(*arguments))
    stream.synchronize()
    for have, want in zip(results, expected, strict=True):
        assert torch.equal(have, want)
    if case.capturable:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = tensors_of(case.function(*arguments))
        graph.replay()
        torch.cuda.synchronize()
        for have, want in zip(captured, expected, strict=True):
            assert torch.equal(have, want)
    if torch.cuda.device_count() > 1:
        there = case.arguments(0, "medium", torch.float32, "contiguous", "cuda:1")
        for have, want in zip(tensors_of(case.function(*there)), expected, strict=True):
            assert torch.equal(have.cpu(), want.cpu())


def contract_tests(case: OpCase) -> type:
    """A test class that holds `case` to the whole contract. Assign it to a name that starts with Test."""

    @pytest.mark.parametrize("device", DEVICES)
    class Contract:
        @pytest.mark.parametrize("layout", LAYOUTS)
        @pytest.mark.parametrize("dtype", DTYPES, ids=str)
        def test_equals_the_reference(self, device: str, dtype: torch.dtype, layout: str) -> None:
            for size in ("small", "medium"):
                check_values(case, device, dtype, layout, size)

        def test_gradients(self, device: str) -> None:
            if case.differentiable:
                check_gradients(case, device)
            else:
                check_no_gradient(case, device)

        @pytest.mark.parametrize("layout", LAYOUTS if case.differentiable else [])
        @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
        def test_gradients_of_each_dtype(self, device: str, dtype: torch.dtype, layout: str) -> None:
            check_half_gradients(case, device, dtype, layout)

        def test_registration(self, device: str) -> None:
            check_registration(case, device)

        def test_same_bits_for_any_thread_count(self, device: str) -> None:
            check_determinism(case, device)

        def test_empty_input(self, device: str) -> None:
            check_empty(case, device)

        def test_streams_graphs_and_devices(self, device: str) -> None:
            if device == "cpu":
                pytest.skip("streams and graphs are a matter of CUDA")
            check_cuda_streams(case)

        @pytest.mark.parametrize("index", range(len(case.errors)))
        def test_wrong_input_is_refused(self, device: str, index: int) -> None:
            call, message = case.errors[index]
            with pytest.raises((RuntimeError, ValueError), match=message):
                call()

    Contract.__name__ = f"Test{case.name}"
    return Contract
