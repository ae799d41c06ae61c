from __future__ import annotations

import importlib

import pytest
import torch

from pyposeext import ops
from tests.ops.harness import DEVICES, LAYOUTS, OpCase, contract_tests, with_layout

module = importlib.import_module("pyposeext.ops.scale_add")


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    shape = (2, 3, 4, 5) if size == "small" else (2, 33, 31, 37)
    return torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64), [0.5, -3.0][seed % 2]


def zeros(*shape: int, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, device=device)


TestContract = contract_tests(
    OpCase(
        name="scale_add",
        function=ops.scale_add,
        reference=module.reference,
        make=make,
        raw=lambda *arguments: arguments,
        data=(0, 1),
        differentiable=(0, 1),
        empty=[
            (lambda device: ops.scale_add(*[zeros(0, 3, 4, 5, device=device)] * 2, 1.0), [[0, 3, 4, 5]]),
            (lambda device: ops.scale_add(*[zeros(2, 3, 0, 5, device=device)] * 2, 1.0), [[2, 3, 0, 5]]),
        ],
        errors=[
            (
                lambda: ops.scale_add(zeros(3, 4, 5), zeros(3, 4, 5), 1.0),
                r"x must be \[B, C, H, W\], got shape \[3, 4, 5\]",
            ),
            (
                lambda: ops.scale_add(zeros(1, 3, 4, 5), zeros(1, 3, 5, 4), 1.0),
                r"y must have the shape of x, \[1, 3, 4, 5\], got shape \[1, 3, 5, 4\]",
            ),
            (lambda: ops.scale_add(zeros(1, 3, 4, 5).int(), zeros(1, 3, 4, 5), 1.0), "x must be float32, float64"),
            (lambda: ops.scale_add(zeros(1, 3, 4, 5), zeros(1, 3, 4, 5).half(), 1.0), "y must have the dtype of x"),
        ],
    )
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("y_layout", [*LAYOUTS, "expanded"])
@pytest.mark.parametrize("x_layout", LAYOUTS)
def test_layouts_may_differ(device: str, x_layout: str, y_layout: str) -> None:
    x, y, _ = make(0, "small")
    y = y[:, :1].expand_as(x) if y_layout == "expanded" else with_layout(y, y_layout)
    result = ops.scale_add(with_layout(x, x_layout).to(device), y.to(device), 2.0).cpu()
    torch.testing.assert_close(result, x + 2 * y, rtol=0, atol=1e-15)


def test_the_sum_of_half_precision_is_rounded_once() -> None:
    x, y = torch.full((1, 1, 1, 1), 2048.0).half(), torch.full((1, 1, 1, 1), 1.0).half()
    assert float(ops.scale_add(x, y, 1.5)) == 2050  # 2049.5 in float32; 1.5 * 1 and 2049 are no neighbours in float16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("count", [1, 7, 64, 1003])
def test_any_count_at_any_address(device: str, count: int, dtype: torch.dtype) -> None:
    """Wide accesses take what lies on their boundaries; the rest is the same sum."""
    values = torch.arange(2 * count + 2, dtype=dtype, device=device) % 32
    for x_start, y_start in ((0, 0), (1, 0), (0, 1)):
        x = values[x_start : x_start + count].reshape(1, 1, 1, count)
        y = values[count + y_start : 2 * count + y_start].reshape(1, 1, 1, count)
        assert torch.equal(ops.scale_add(x, y, 2.0), x + 2 * y)
