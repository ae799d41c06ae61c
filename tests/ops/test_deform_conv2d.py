from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pyposeext import ops
from tests.ops.harness import DEVICES, DTYPES, LAYOUTS, OpCase, contract_tests, with_layout

module = importlib.import_module("pyposeext.ops.deform_conv2d")
nan, inf = float("nan"), float("inf")


def random_offset(*shape: int, reach: int = 3) -> torch.Tensor:
    """Whole pixels plus a fraction well inside (0, 1): away from the kinks, where there is one derivative."""
    return torch.randint(-reach, reach, shape).double() + 0.15 + 0.7 * torch.rand(shape, dtype=torch.float64)


def out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def arguments(
    shape: tuple[int, int, int, int],
    outputs: int,
    kernel: tuple[int, int] = (3, 3),
    groups: int = 1,
    offset_groups: int = 1,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> tuple[object, ...]:
    batch, channels, *size = shape
    out = [out_size(size[d], kernel[d], stride[d], padding[d], dilation[d]) for d in (0, 1)]
    samples = offset_groups * kernel[0] * kernel[1]
    weight = torch.randn(outputs, channels // groups, *kernel, dtype=torch.float64)
    return (
        torch.randn(shape, dtype=torch.float64),
        random_offset(batch, 2 * samples, *out),
        weight / weight[0].numel() ** 0.5,
        torch.randn(outputs, dtype=torch.float64),
        stride,
        padding,
        dilation,
        torch.rand(batch, samples, *out, dtype=torch.float64),
    )


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    if size == "small":
        return arguments((2, 4, 4, 5), 2, (2, 2), 2, [1, 4][seed % 2], padding=(1, 0), stride=(2, 1))
    if seed % 2:
        return arguments((2, 40, 13, 19), 35, padding=(2, 3), dilation=(2, 3))
    return arguments((3, 24, 17, 19), 18, (3, 2), 2, 3, (1, 2), (2, 1), (2, 1))


def raw(input, offset, weight, bias, stride, padding, dilation, mask):
    return input, offset, weight, bias, mask, list(stride), list(padding), list(dilation)


def zeros(*shape: int, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, device=device)


def refused(offset=(2, 18, 5, 6), weight=(4, 3, 3, 3), **changed):
    """A call of zeros with wrong shapes or other arguments."""
    values = {"input": zeros(2, 3, 5, 6), "padding": 1, **changed}
    return lambda: ops.deform_conv2d(values.pop("input"), zeros(*offset), zeros(*weight), **values)


CASE = OpCase(
    name="deform_conv2d",
    function=ops.deform_conv2d,
    reference=module.reference,
    make=make,
    raw=raw,
    data=(0, 1, 2, 3, 7),
    ignores_autocast=False,  # it follows the rule of a convolution, which a test below checks
    differentiable=(0, 1, 2, 3, 7),
    double_backward=False,
    empty=[
        (
            lambda device: ops.deform_conv2d(
                *[zeros(*shape, device=device) for shape in ((0, 3, 5, 6), (0, 18, 3, 4), (4, 3, 3, 3))]
            ),
            [[0, 4, 3, 4]],
        )
    ],
    errors=[
        (refused(input=zeros(3, 5, 6)), r"input must be \[N, C, H, W\], got shape \[3, 5, 6\]"),
        (refused(input=zeros(2, 3, 5, 6).int()), "input must be float32, float64"),
        (refused(input=zeros(2, 4, 5, 6)), "the channels of input, 4, must be a multiple of those of weight, 3"),
        (
            refused(input=zeros(2, 6, 5, 6), weight=(5, 3, 3, 3)),
            "outputs of weight, 5, must be a multiple of the 2 weight",
        ),
        (refused(weight=(4, 3, 3)), "weight must be"),
        (refused(weight=(4, 3, 0, 3)), "weight must have no size of 0"),
        (refused(weight=(4, 3, 9, 3)), "the kernel must fit into the padded input"),
        (refused(offset=(2, 17, 5, 6)), r"offset must have a multiple of 2 \* 9 channels, got shape \[2, 17, 5, 6\]"),
        (refused(offset=(2, 36, 5, 6)), "the channels of input, 3, must be a multiple of the 2 offset groups"),
        (refused(offset=(2, 18, 5, 5)), r"offset must be \[2, 18, 5, 6\], got shape \[2, 18, 5, 5\]"),
        (refused(mask=zeros(2, 18, 5, 6)), r"mask must be \[2, 9, 5, 6\], got shape \[2, 18, 5, 6\]"),
        (refused(mask=zeros(2, 9, 5, 6).half()), "mask must have the dtype of input"),
        (refused(bias=zeros(3)), r"bias must be \[4\], got shape \[3\]"),
        (refused(stride=(0, 1)), "stride must be two numbers of at least 1"),
        (refused(input=zeros(2, 3, 0, 6)), r"input must have at least one pixel, got shape \[2, 3, 0, 6\]"),
        (refused(padding=2**40), r"padding must be below 2\^24, got 1099511627776 and 1099511627776"),
        (refused(padding=(-1, 1)), "padding must be two numbers of at least 0"),
        (refused(dilation=0), "dilation must be two numbers of at least 1"),
    ],
)


TestContract = contract_tests(CASE)


def both(values: tuple[object, ...], device: str, other=module.reference) -> list[list[torch.Tensor]]:
    """Result and gradients of the op and of another function, with the same random gradient."""
    results = []
    for function in (ops.deform_conv2d, other):
        moved = [value.detach().to(device) if isinstance(value, torch.Tensor) else value for value in values]
        leaves = [value.requires_grad_(True) for value in moved if isinstance(value, torch.Tensor)]
        result = function(*moved)
        direction = torch.linspace(-1, 1, result.numel(), dtype=result.dtype, device=device).reshape(result.shape)
        results.append([result.detach(), *torch.autograd.grad(result, leaves, direction)])
    return results


def assert_equal_results(have: list[torch.Tensor], want: list[torch.Tensor], tolerance: float) -> None:
    for left, right in zip(have, want, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=tolerance * max(1.0, float(right.abs().max())))


SHAPES = {
    "one channel in a group": ((2, 17, 13, 11), 17, (3, 3), 1, 17, (1, 1), (3, 3), (3, 3)),
    "four channels in a group": ((2, 48, 9, 8), 48, (3, 3), 1, 12, (1, 1), (3, 3), (3, 3)),
    "depthwise": ((2, 24, 8, 9), 24, (3, 3), 24, 4, (2, 2), (1, 1), (1, 1)),
    "more channels than fit a chunk": ((1, 1100, 4, 5), 40, (1, 1), 1, 1, (1, 1), (0, 0), (1, 1)),
    "groups that meet no chunk": ((1, 600, 4, 4), 16, (3, 3), 2, 3, (1, 1), (1, 1), (1, 1)),
    "more outputs than fit a piece": ((1, 20, 5, 4), 1200, (3, 3), 2, 1, (1, 1), (1, 1), (1, 1)),
    "slices that share an offset group": ((1, 256, 7, 8), 40, (3, 3), 1, 1, (1, 1), (1, 1), (1, 1)),
    "more images than one call takes elsewhere": ((33, 6, 6, 5), 4, (3, 3), 2, 2, (2, 1), (1, 1), (1, 1)),
    "one pixel": ((1, 3, 1, 1), 5, (3, 3), 1, 1, (1, 1), (1, 1), (1, 1)),
    "a large kernel": ((1, 2, 12, 13), 3, (7, 6), 1, 2, (3, 2), (3, 2), (1, 2)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_every_kind_of_group(device: str, name: str, masked: bool) -> None:
    torch.manual_seed(1)
    values = arguments(*SHAPES[name])
    if not masked:
        values = values[:7]
    assert_equal_results(*both(values, device), 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("groups", [1, 2])
def test_zero_offsets_make_a_convolution(device: str, groups: int) -> None:
    input, offset, weight, bias, stride, padding, dilation, _ = arguments(
        (2, 12, 11, 9), 6, (3, 2), groups, 2, (2, 1), (1, 2), (1, 3)
    )
    offset = torch.zeros_like(offset)

    def convolution(input, offset, weight, bias):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups) + 0 * offset.sum()

    def deformable(input, offset, weight, bias):
        return ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation)

    values = (input, offset, weight, bias)
    leaves = [[value.to(device).requires_grad_(True) for value in values] for _ in range(2)]
    results = [function(*given) for function, given in zip((deformable, convolution), leaves, strict=True)]
    direction = torch.randn_like(results[0])
    gradients = [torch.autograd.grad(r, given, direction) for r, given in zip(results, leaves, strict=True)]
    for position in (0, 2, 3):
        torch.testing.assert_close(gradients[0][position], gradients[1][position], rtol=0, atol=1e-12)
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_whole_offsets_move_the_input(device: str) -> None:
    input, offset, weight, *_ = arguments((2, 5, 9, 8), 3)
    offset[:, 0::2], offset[:, 1::2] = 2, -1
    moved = torch.zeros_like(input)
    moved[:, :, :-2, 1:] = input[:, :, 2:, :-1]
    inner = (slice(None), slice(None), slice(1, -3), slice(2, -1))
    have = ops.deform_conv2d(input.to(device), offset.to(device), weight.to(device), padding=1).cpu()
    torch.testing.assert_close(have[inner], F.conv2d(moved, weight, padding=1)[inner], rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_where_samples_end(device: str, dtype: torch.dtype) -> None:
    """-1 < y < H: half a pixel outside is half the edge, a whole one is 0; so is what is not finite."""
    input = torch.ones(1, 1, 3, 3, dtype=dtype, device=device)
    weight = torch.ones(1, 1, 1, 1, dtype=dtype, device=device)
    wanted = {-0.5: 0.5, -1.0: 0.0, -0.75: 0.25, 2.0: 1.0, 2.75: 0.25, 3.0: 0.0, nan: 0.0, inf: 0.0, -inf: 0.0}
    wanted |= {1e30: 0.0, -1e30: 0.0, 3e9: 0.0, -3e9: 0.0, 2.0**31: 0.0}
    steps = torch.arange(3, dtype=dtype, device=device)
    for position, value in wanted.items():
        for axis in (0, 1):
            offset = torch.zeros(1, 2, 3, 3, dtype=dtype, device=device)
            offset[0, axis] = position - (steps[:, None] if axis == 0 else steps)
            result = ops.deform_conv2d(input, offset.requires_grad_(True), weight)
            assert (result == value).all()
            result.sum().backward()
            assert torch.isfinite(offset.grad).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_outside_the_samples_are_not_read(device: str, dtype: torch.dtype) -> None:
    """NaN in a pixel reaches only the outputs that sample it, whatever the offsets are."""
    input = torch.ones(1, 9, 4, 5, dtype=dtype, device=device)
    input[:, :, 0, 0] = nan
    offset = torch.full((1, 2, 4, 5), 1e10, device=device)
    weight = torch.ones(2, 9, 1, 1, dtype=dtype, device=device)
    assert (ops.deform_conv2d(input, offset, weight) == 0).all()
    offset.zero_()
    result = ops.deform_conv2d(input, offset, weight)
    assert torch.isnan(result[:, :, 0, 0]).all()
    assert torch.isfinite(result.flatten(2)[:, :, 6:]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_layouts_may_differ(device: str) -> None:
    values = make(0, "medium")
    want = ops.deform_conv2d(*values)
    for layouts in (LAYOUTS, LAYOUTS[1:] + LAYOUTS[:1], LAYOUTS[2:] + LAYOUTS[:2]):
        named = dict(zip((0, 1, 7), layouts, strict=True))
        given = [
            with_layout(value, named.get(i, "sliced")).to(device) if isinstance(value, torch.Tensor) else value
            for i, value in enumerate(values)
        ]
        torch.testing.assert_close(ops.deform_conv2d(*given).cpu(), want, rtol=0, atol=1e-13)
        assert_equal_results(*both(tuple(given), device), 1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_offsets_of_another_dtype(device: str) -> None:
    input, offset, weight, *rest = make(0, "medium")
    half = [input.half().to(device), offset.float().to(device).requires_grad_(True), weight.half().to(device)]
    result = ops.deform_conv2d(*half, None, *rest[1:4])
    want = module.reference(*[value.detach().cpu().double() for value in half], None, *rest[1:4])
    torch.testing.assert_close(result.detach().cpu().double(), want, rtol=0, atol=2e-3 * float(want.abs().max()))
    result.float().sum().backward()
    assert half[1].grad.dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lower", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_is_that_of_a_convolution(device: str, lower: torch.dtype) -> None:
    """All but the offset go to the lower dtype, gradients come back in the dtype of their tensors; float64 stays."""
    values = [value.float().to(device) if isinstance(value, torch.Tensor) else value for value in make(0, "medium")]
    leaves = [value.requires_grad_(True) for value in values if isinstance(value, torch.Tensor)]
    with torch.autocast(device, dtype=lower):
        result = ops.deform_conv2d(*values)
    lowered = [
        value.to(lower) if isinstance(value, torch.Tensor) and i != 1 else value for i, value in enumerate(values)
    ]
    assert result.dtype == lower
    assert torch.equal(result, ops.deform_conv2d(*lowered))
    result.float().square().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)
    with torch.autocast(device, dtype=lower):
        assert (
            ops.deform_conv2d(
                *[value.to(device) if isinstance(value, torch.Tensor) else value for value in make(0, "small")]
            ).dtype
            == torch.float64
        )


@pytest.mark.parametrize("device", DEVICES)
def test_only_the_wanted_gradients(device: str) -> None:
    values = [value.to(device) if isinstance(value, torch.Tensor) else value for value in make(1, "medium")]
    _, want = both(tuple(values), device)
    for number, position in enumerate((0, 1, 2, 3, 7)):
        given = [value.detach() if isinstance(value, torch.Tensor) else value for value in values]
        given[position].requires_grad_(True)
        result = ops.deform_conv2d(*given)
        direction = torch.linspace(-1, 1, result.numel(), dtype=result.dtype, device=device).reshape(result.shape)
        (gradient,) = torch.autograd.grad(result, given[position], direction)
        assert_equal_results([gradient], [want[number + 1]], 1e-12)


def test_no_images_give_gradients_of_zero() -> None:
    weight, bias = zeros(4, 3, 3, 3).requires_grad_(True), zeros(4).requires_grad_(True)
    ops.deform_conv2d(zeros(0, 3, 5, 6), zeros(0, 18, 3, 4), weight, bias).sum().backward()
    assert (weight.grad == 0).all()
    assert (bias.grad == 0).all()


def test_the_second_derivative_is_refused() -> None:
    values = make(0, "small")
    values[0].requires_grad_(True)
    (gradient,) = torch.autograd.grad(ops.deform_conv2d(*values).square().sum(), values[0], create_graph=True)
    with pytest.raises(RuntimeError, match="its gradient cannot be differentiated again"):
        gradient.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
def test_equals_torchvision(device: str) -> None:
    peer = pytest.importorskip("torchvision.ops").deform_conv2d
    assert_equal_results(*both(make(0, "medium"), device, peer), 1e-12)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("device", DEVICES)
def test_any_sizes_and_offsets(device: str, data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 99)))
    offset_groups, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    channels = offset_groups * groups * draw(st.integers(1, 6))
    kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    steps = [(draw(st.integers(1, 2)), draw(st.integers(1, 2))) for _ in range(2)]
    size = [1 + steps[1][d] * (kernel[d] - 1) + draw(st.integers(0, 6)) for d in (0, 1)]
    values = list(
        arguments(
            (draw(st.integers(1, 3)), channels, *size),
            groups * draw(st.integers(1, 9)),
            kernel,
            groups,
            offset_groups,
            steps[0],
            (draw(st.integers(0, 2)), draw(st.integers(0, 2))),
            steps[1],
        )
    )
    offset = values[1]
    strange = torch.tensor([0.0, -1.0, 1.0, 1e6, -1e6, 1e20, nan, inf, -inf], dtype=torch.float64)
    chosen = torch.rand(offset.shape) < 0.2
    offset[chosen] = strange[torch.randint(len(strange), (int(chosen.sum()),))]
    have, want = both(tuple(values), device)
    assert_equal_results(have, [torch.nan_to_num(value) for value in want], 1e-11)
