from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyposeext import ops
from tests.ops.harness import DEVICES, DTYPES, LAYOUTS, OpCase, contract_tests, with_layout

module = importlib.import_module("pyposeext.ops.gaussian_mse_loss")
nan, inf = float("nan"), float("inf")
OPTIONS: list[dict[str, Any]] = [{"mode": "msra", "background": "last"}, {"mode": "unbiased", "cutoff": 0.01}]


def make(reduction: str, seed: int, size: str) -> tuple[object, ...]:
    """Keypoints in steps of 1/8 and weights in steps of 1/2, which every dtype holds exactly."""
    torch.manual_seed(seed)
    batch, people, joints, height, width = (2, 2, 3, 4, 5) if size == "small" else (3, 2, 19, 47, 33)
    keypoints = torch.randint(-60, 8 * width + 60, (batch, people, joints, 2)).double() / 8
    weights = torch.randint(0, 4, (batch, people, joints)).double() / 2
    prediction = torch.randn(batch, joints + 1 - seed % 2, height, width, dtype=torch.float64)
    return prediction, keypoints, weights, 2.0, {**OPTIONS[seed % 2], "reduction": reduction}


def call(function: Any, prediction: Tensor, keypoints: Tensor, weights: Tensor, sigma: float, options: Any) -> Tensor:
    return function(prediction, keypoints, weights, sigma, **options)


def raw(prediction: Tensor, keypoints: Tensor, weights: Tensor, sigma: float, options: Any) -> tuple[Any, ...]:
    rest = (options["mode"], 1.0, options.get("cutoff", 0.0), options.get("background", "none"), False)
    return prediction, keypoints, weights, sigma, *rest, options["reduction"]


def zeros(*shape: int, device: str = "cpu") -> Tensor:
    return torch.zeros(shape, device=device)


def loss(prediction: Any = None, keypoints: Any = None, weights: Any = None, **options: Any) -> Tensor:
    prediction = zeros(1, 3, 4, 5) if prediction is None else prediction
    return ops.gaussian_mse_loss(prediction, zeros(1, 3, 2) if keypoints is None else keypoints, weights, **options)


def loss_of_nothing(shape: tuple[int, int, int, int], reduction: Any, device: str) -> Tensor:
    result = loss(zeros(*shape, device=device), zeros(*shape[:2], 2, device=device), reduction=reduction)
    assert int((result != 0).sum()) == 0
    return result


shared: dict[str, Any] = {
    "name": "gaussian_mse_loss",
    "function": partial(call, ops.gaussian_mse_loss),
    "reference": partial(call, module.reference),
    "raw": raw,
    "keeps_layout": False,
    "empty": [
        (partial(loss_of_nothing, shape, reduction), [list(shape[:2]) if reduction == "none" else []])
        for shape in ((0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0))
        for reduction in ("none", "mean", "sum")
    ],
    "errors": [
        (lambda: loss(zeros(3, 4, 5)), r"prediction must be \[B, K, H, W\], got shape \[3, 4, 5\]"),
        (lambda: loss(zeros(1, 3, 4, 5).int()), "prediction must be float32, float64"),
        (
            lambda: loss(zeros(1, 4, 4, 5)),
            r"prediction must be \[1, 3, H, W\] for these keypoints, got shape \[1, 4, 4, 5\]",
        ),
        (lambda: loss(background="first"), r"prediction must be \[1, 4, H, W\] for these keypoints"),
        (lambda: loss(zeros(2, 3, 4, 5)), r"prediction must be \[1, 3, H, W\]"),
        (lambda: loss(keypoints=zeros(1, 3, 3)), r"keypoints must be \[B, K, 2\] or \[B, N, K, 2\]"),
        (lambda: loss(weights=zeros(1, 2)), "weights must have the shape of keypoints without its last dimension"),
        (lambda: loss(sigma=-1.0), "sigma must be a positive number, got -1"),
        (lambda: loss(mode="gauss"), "mode must be msra, udp or unbiased, got gauss"),
        (lambda: loss(outside="drop"), "outside must be ignore or keep, got drop"),
        (lambda: loss(reduction="max"), "reduction must be none, mean or sum, got max"),
    ],
}
TestMean = contract_tests(OpCase(make=partial(make, "mean"), **shared))
TestSum = contract_tests(OpCase(make=partial(make, "sum"), **shared))
TestNone = contract_tests(OpCase(make=partial(make, "none"), **shared))


def joints_mse_loss(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """JointsMSELoss as published: joint after joint."""
    joints, total = prediction.shape[1], prediction.new_zeros(())
    for k in range(joints):
        weight = weights[:, k, None]
        difference = prediction[:, k].flatten(1) * weight - target[:, k].flatten(1) * weight
        total = total + 0.5 * (difference**2).mean()
    return total / joints


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "sigma"), [((64, 48), 2.0), ((96, 72), 3.0)])
def test_equals_the_published_loss(device: str, layout: str, size: tuple[int, int], sigma: float) -> None:
    torch.manual_seed(0)
    keypoints = torch.rand(6, 17, 2) * 90 - 15
    weights = torch.tensor([0.0, 1.0, 1.2, 1.5])[torch.randint(0, 4, (6, 17))]
    prediction = with_layout(torch.rand(6, 17, *size), layout).to(device).requires_grad_(True)
    target, drawn = ops.gaussian_heatmaps(keypoints.to(device), weights.to(device), size, sigma)
    have = ops.gaussian_mse_loss(prediction, keypoints.to(device), weights.to(device), sigma)
    want = joints_mse_loss(prediction, target, drawn)
    torch.testing.assert_close(have, want, rtol=1e-5, atol=0)
    of_have, of_want = (torch.autograd.grad(value, prediction)[0] for value in (have, want))
    torch.testing.assert_close(of_have, of_want, rtol=1e-5, atol=1e-12)
    if layout == "channels_last":
        assert of_have.is_contiguous(memory_format=torch.channels_last)
    each = ops.gaussian_mse_loss(prediction, keypoints.to(device), weights.to(device), sigma, reduction="none")
    torch.testing.assert_close(each.mean(), want, rtol=1e-5, atol=0)
    every = ops.gaussian_mse_loss(prediction, keypoints.to(device), weights.to(device), sigma, reduction="sum")
    torch.testing.assert_close(every, each.sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("background", ["none", "first", "last"])
@pytest.mark.parametrize("mode", ["msra", "udp", "unbiased"])
def test_the_loss_of_the_target_is_nothing(device: str, layout: str, background: Any, mode: Any) -> None:
    """Both ops have the same target, to the bit."""
    torch.manual_seed(0)
    keypoints = (torch.rand(2, 2, 17, 2) * 60 - 8).to(device)
    for dtype in (torch.float32, torch.float64):
        target, _ = ops.gaussian_heatmaps(keypoints, None, (49, 41), 2.0, mode, background=background, dtype=dtype)
        prediction = with_layout(target, layout).requires_grad_(True)
        result = ops.gaussian_mse_loss(prediction, keypoints, None, 2.0, mode, background=background)
        assert float(result.detach()) == 0
        result.backward()
        assert int((prediction.grad != 0).sum()) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_vectors_of_the_definition(device: str) -> None:
    """Half of the mean square for one joint of weight 1; half of it when half of the samples have weight 0."""
    keypoints = torch.full((4, 1, 2), nan, device=device)
    prediction = torch.randn(4, 1, 8, 8, device=device)
    have = ops.gaussian_mse_loss(prediction, keypoints, outside="keep")
    torch.testing.assert_close(have, 0.5 * prediction.square().mean(), rtol=1e-6, atol=0)
    weights = torch.tensor([[1.0], [0.0], [1.0], [0.0]], device=device)
    have = ops.gaussian_mse_loss(prediction, keypoints, weights, outside="keep")
    torch.testing.assert_close(have, 0.5 * prediction[::2].square().mean() / 2, rtol=1e-6, atol=0)
    have = ops.gaussian_mse_loss(prediction, keypoints, 1.5 * torch.ones_like(weights), outside="keep")
    torch.testing.assert_close(have, 2.25 * 0.5 * prediction.square().mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_the_losses_of_other_systems(device: str) -> None:
    """Sums of squares and plain means come from the same numbers."""
    torch.manual_seed(0)
    keypoints, prediction = torch.rand(3, 7, 2, device=device) * 40, torch.randn(3, 8, 46, 46, device=device)
    options: dict[str, Any] = {"cutoff": 0.0099, "background": "first"}
    target, _ = ops.gaussian_heatmaps(keypoints, None, 46, 3.0, "unbiased", **options)
    mean = ops.gaussian_mse_loss(prediction, keypoints, None, 3.0, "unbiased", **options)
    torch.testing.assert_close(2 * mean, torch.nn.functional.mse_loss(prediction, target), rtol=1e-5, atol=0)
    prediction.requires_grad_(True)
    total = 46 * 46 * ops.gaussian_mse_loss(prediction, keypoints, None, 3.0, "unbiased", reduction="sum", **options)
    (gradient,) = torch.autograd.grad(total, prediction)
    torch.testing.assert_close(gradient, (prediction - target).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_map_of_weight_0_is_not_looked_at(device: str, dtype: torch.dtype, layout: str) -> None:
    torch.manual_seed(0)
    keypoints, weights = torch.rand(2, 19, 2) * 9, torch.ones(2, 19)
    prediction = torch.randn(2, 19, 11, 9).to(dtype)
    weights[0, 3] = weights[1, 18] = 0
    keypoints[1, 4, 0] = nan
    clean = prediction.clone()
    for b, k, value in ((0, 3, nan), (1, 18, inf), (1, 4, nan)):
        prediction[b, k], clean[b, k] = value, 0
    results = []
    for maps in (prediction, clean):
        leaf = with_layout(maps, layout).to(device).requires_grad_(True)
        result = ops.gaussian_mse_loss(leaf, keypoints.to(device), weights.to(device))
        results += [result.detach(), torch.autograd.grad(result, leaf)[0]]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])
    assert torch.isfinite(results[1]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_second_derivatives_with_a_map_of_weight_0(device: str) -> None:
    keypoints = torch.tensor([[[2.0, 1.0], [nan, 0.0]]], device=device)
    prediction = torch.randn(1, 2, 3, 4, dtype=torch.float64, device=device)
    prediction[0, 1] = nan
    prediction.requires_grad_(True)
    (gradient,) = torch.autograd.grad(ops.gaussian_mse_loss(prediction, keypoints), prediction, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), prediction)
    want = 2 * (1 / 24) * gradient.detach()
    torch.testing.assert_close(second, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_same_bits_for_any_thread_count_on_large_maps(device: str, layout: str) -> None:
    torch.manual_seed(0)
    keypoints = torch.rand(16, 17, 2, device=device) * 72
    prediction = with_layout(torch.randn(16, 17, 96, 72, device=device), layout).requires_grad_(True)
    results: list[list[Tensor]] = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        result = ops.gaussian_mse_loss(prediction, keypoints, None, 3.0)
        results.append([result.detach(), torch.autograd.grad(result, prediction)[0]])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_offsets_beyond_32_bits() -> None:
    """Images 2^31 elements apart; only the pages that are read exist."""
    storage = torch.empty(2**31 + 64, dtype=torch.float16)
    prediction = storage.as_strided((2, 2, 3, 4), (2**31, 12, 4, 1))
    prediction.copy_(torch.randn(2, 2, 3, 4))
    keypoints = torch.rand(2, 2, 2) * 3
    assert torch.equal(
        ops.gaussian_mse_loss(prediction, keypoints), ops.gaussian_mse_loss(prediction.clone(), keypoints)
    )


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 18)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.lists(st.floats(width=32) | st.floats(-10, 30, width=32), min_size=1, max_size=12),
    st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0, nan]), min_size=1, max_size=6),
    st.sampled_from(["msra", "udp", "unbiased"]),
    st.sampled_from(["none", "first", "last"]),
    st.sampled_from(["none", "mean", "sum"]),
    st.sampled_from(LAYOUTS),
)
def test_any_keypoints(
    shape: tuple[int, int, int],
    size: tuple[int, int],
    values: list[float],
    marks: list[float],
    mode: Any,
    background: Any,
    reduction: Any,
    layout: str,
) -> None:
    count = math.prod(shape)
    keypoints = torch.tensor((values * 2 * count)[: 2 * count], dtype=torch.float64).reshape(*shape, 2)
    weights = torch.tensor((marks * count)[:count], dtype=torch.float64).reshape(shape)
    channels = shape[2] + (background != "none")
    prediction = with_layout(torch.randn(shape[0], channels, *size, dtype=torch.float64), layout).requires_grad_(True)
    results = []
    for function in (ops.gaussian_mse_loss, module.reference):
        result = function(prediction, keypoints, weights, 1.5, mode, background=background, reduction=reduction)
        results.append([result.detach(), torch.autograd.grad(result.square().sum(), prediction)[0]])
    for have, want in zip(*results, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-11, atol=1e-13)
