from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyposeext import ops
from tests.ops.harness import DEVICES, DTYPES, OpCase, contract_tests

module = importlib.import_module("pyposeext.ops.gaussian_heatmaps")
nan, inf = float("nan"), float("inf")
OPTIONS: list[dict[str, Any]] = [{"mode": "msra", "background": "last"}, {"mode": "unbiased", "cutoff": 0.01}]


def make(seed: int, size: str) -> tuple[object, ...]:
    """Keypoints in steps of 1/8, which every dtype holds exactly, on the map and around it."""
    torch.manual_seed(seed)
    batch, people, joints, height, width = (2, 2, 3, 7, 6) if size == "small" else (2, 3, 7, 41, 33)
    keypoints = torch.randint(-60, 8 * width + 60, (batch, people, joints, 2)).double() / 8
    weights = torch.randint(0, 3, (batch, people, joints)).double() / 2
    return keypoints, weights, (height, width), 1.5 if size == "small" else 2.0, OPTIONS[seed % 2]


def call(function: Any, keypoints: torch.Tensor, weights: torch.Tensor, size: Any, sigma: float, options: Any) -> Any:
    return function(keypoints, weights, size, sigma, dtype=keypoints.dtype, **options)


def raw(keypoints: torch.Tensor, weights: torch.Tensor, size: Any, sigma: float, options: Any) -> tuple[Any, ...]:
    rest = (options["mode"], 1.0, options.get("cutoff", 0.0), options.get("background", "none"), False)
    return keypoints, weights, *size, sigma, *rest, str(keypoints.dtype)[6:], False


def draw(keypoints: object = ((4.0, 3.0),), weights: object = None, size: Any = (8, 9), **options: Any) -> Any:
    given = torch.as_tensor(keypoints, dtype=torch.float32)
    return ops.gaussian_heatmaps(given[None] if given.dim() == 2 else given, weights, size, **options)


def draw_nothing(shape: tuple[int, ...], size: tuple[int, int], device: str) -> Any:
    return ops.gaussian_heatmaps(torch.zeros(shape, device=device), None, size, background="last")


class TestContract(
    contract_tests(
        OpCase(
            name="gaussian_heatmaps",
            function=partial(call, ops.gaussian_heatmaps),
            reference=partial(call, module.reference),
            make=make,
            raw=raw,
            differentiable=(),
            keeps_layout=False,
            tolerance={torch.float32: 1e-6, torch.float64: 1e-14, torch.float16: 5e-4, torch.bfloat16: 4e-3},
            empty=[
                (partial(draw_nothing, (0, 3, 2), (4, 5)), [[0, 4, 4, 5], [0, 3]]),
                (partial(draw_nothing, (2, 0, 2), (4, 5)), [[2, 1, 4, 5], [2, 0]]),
                (partial(draw_nothing, (2, 0, 3, 2), (4, 5)), [[2, 4, 4, 5], [2, 3]]),
                (partial(draw_nothing, (2, 3, 2), (0, 5)), [[2, 4, 0, 5], [2, 3]]),
                (partial(draw_nothing, (2, 3, 2), (4, 0)), [[2, 4, 4, 0], [2, 3]]),
            ],
            errors=[
                (
                    lambda: ops.gaussian_heatmaps(torch.zeros(3, 2), None, (4, 5)),
                    r"keypoints must be \[B, K, 2\] or \[B, N, K, 2\], got shape \[3, 2\]",
                ),
                (lambda: ops.gaussian_heatmaps(torch.zeros(1, 3, 3), None, (4, 5)), "keypoints must be"),
                (lambda: ops.gaussian_heatmaps(torch.zeros(1, 3, 2).int(), None, (4, 5)), "keypoints must be float32"),
                (
                    lambda: ops.gaussian_heatmaps(torch.zeros(1, 3, 2), torch.zeros(1, 2), (4, 5)),
                    r"weights must have the shape of keypoints without its last dimension, \[1, 3, 2\], got shape",
                ),
                (
                    lambda: draw(size=(-1, 5)),
                    "size must be two numbers from 0 with a product of at most 2\\^30, got -1 and 5",
                ),
                (lambda: draw(size=(1 << 20, 1 << 20)), "size must be two numbers"),
                (lambda: draw(sigma=0.0), "sigma must be a positive number, got 0"),
                (lambda: draw(sigma=nan), "sigma must be a positive number, got nan"),
                (lambda: draw(amplitude=-1.0), "amplitude must be a positive number, got -1"),
                (lambda: draw(cutoff=-1.0), "cutoff must be 0 or a positive number, got -1"),
                (lambda: draw(mode="gauss"), "mode must be msra, udp or unbiased, got gauss"),
                (lambda: draw(background="middle"), "background must be none, first or last, got middle"),
                (lambda: draw(outside="drop"), "outside must be ignore or keep, got drop"),
                (lambda: draw(dtype=torch.int32), "dtype must be float32, float64, float16 or bfloat16, got int32"),
            ],
        )
    )
):
    pass


def hrnet_target(
    joints: np.ndarray, visible: np.ndarray, size: tuple[int, int], sigma: int
) -> tuple[np.ndarray, np.ndarray]:
    """The published patch by patch target, one person."""
    height, width = size
    reach, weights = 3 * sigma, visible.copy()
    target = np.zeros((len(joints), height, width), np.float32)
    for k, joint in enumerate(joints):
        x, y = (math.floor(value + 0.5) for value in joint)
        left, top, right, bottom = x - reach, y - reach, x + reach + 1, y + reach + 1
        if left >= width or top >= height or right < 0 or bottom < 0:
            weights[k] = 0
            continue
        if weights[k] <= 0.5:
            continue
        steps = np.arange(2 * reach + 1, dtype=np.float32)
        patch = np.exp(-((steps - reach) ** 2 + (steps[:, None] - reach) ** 2) / (2 * sigma**2))
        for row in range(max(0, top), min(bottom, height)):
            for column in range(max(0, left), min(right, width)):
                target[k, row, column] = patch[row - top, column - left]
    return target, weights


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("size", "sigma"), [((64, 48), 2), ((96, 72), 3), ((64, 64), 2)])
def test_equals_the_published_patches(device: str, size: tuple[int, int], sigma: int) -> None:
    generator = np.random.default_rng(0)
    joints = generator.uniform(-25, 105, (40, 17, 2)).astype(np.float32)
    visible = (generator.random((40, 17)) < 0.8).astype(np.float32)
    maps, weights = ops.gaussian_heatmaps(
        torch.from_numpy(joints).to(device), torch.from_numpy(visible).to(device), size, sigma
    )
    want = [hrnet_target(*sample, size, sigma) for sample in zip(joints, visible, strict=True)]
    np.testing.assert_allclose(maps.cpu().numpy(), np.stack([target for target, _ in want]), rtol=0, atol=2e-7)
    np.testing.assert_array_equal(weights.cpu().numpy(), np.stack([weight for _, weight in want]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("sigma", "side"), [(2, 13), (3, 19)])
def test_a_patch_inside_the_map(device: str, sigma: int, side: int) -> None:
    keypoints = torch.tensor([[[24.0, 30.0], [23.6, 30.4]]], device=device)
    maps, weights = ops.gaussian_heatmaps(keypoints, None, (64, 48), sigma)
    assert weights.tolist() == [[1, 1]]
    assert torch.equal(maps[0, 0], maps[0, 1])  # the centre is rounded
    map = maps[0, 0]
    assert float(map[30, 24]) == 1
    assert int((map > 0).sum()) == side * side
    reach = side // 2
    patch = map[30 - reach : 31 + reach, 24 - reach : 25 + reach]
    for mirrored in (patch.flip(0), patch.flip(1), patch.T):
        assert torch.equal(patch, mirrored)


@pytest.mark.parametrize("device", DEVICES)
def test_patches_at_and_beyond_the_border(device: str) -> None:
    """At sigma 2: the patch of -7 ends just before the map and keeps its weight, as published; that of -8 does not."""
    x = [-6.0, -7.0, -8.0, 53.0, 54.0, 0.0, -0.5, 47.5]
    keypoints = torch.tensor([[[value, 10.0] for value in x]], device=device)
    maps, weights = ops.gaussian_heatmaps(keypoints, None, (64, 48), 2.0)
    assert weights[0].tolist() == [1, 1, 0, 1, 0, 1, 1, 1]
    assert [int((map > 0).sum()) for map in maps[0]] == [13, 0, 0, 13, 0, 7 * 13, 7 * 13, 6 * 13]
    assert float(maps[0, 5, 10, 0]) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_rounding_halves_up(device: str) -> None:
    keypoints = torch.tensor([[[2.5, 3.49999], [-1.0, -0.50001]]], device=device)
    maps, _ = ops.gaussian_heatmaps(keypoints, None, (8, 8), 1.0)
    assert float(maps[0, 0, 3, 3]) == 1
    torch.testing.assert_close(float(maps[0, 1, 0, 0]), math.exp(-1.0), rtol=1e-6, atol=0)  # centre (-1, -1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["msra", "udp", "unbiased"])
@pytest.mark.parametrize("outside", ["ignore", "keep"])
def test_keypoints_and_weights_without_meaning(device: str, mode: Any, outside: Any) -> None:
    keypoints = torch.tensor([[[nan, 3], [3, inf], [-inf, nan], [1e30, 3], [-1e30, -1e30], [3, 3], [3, 3], [3, 3]]])
    weights = torch.tensor([[1, 1, 1, 1, 1, 0, -1, nan]])
    maps, have = ops.gaussian_heatmaps(keypoints.to(device), weights.to(device), (8, 9), 2.0, mode, outside=outside)
    assert int((maps != 0).sum()) == 0
    assert have[0].tolist() == [float(outside == "keep")] * 5 + [0, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_several_people_are_combined_by_the_maximum(device: str, channels_last: bool) -> None:
    keypoints = torch.tensor([[[[5.0, 5.0]], [[8.0, 6.0]], [[7.0, 7.0]]]], device=device)
    weights = torch.tensor([[[1.0], [0.5], [0.0]]], device=device)
    maps, have = ops.gaussian_heatmaps(keypoints, weights, (16, 16), 2.0, channels_last=channels_last)
    apart = [ops.gaussian_heatmaps(keypoints[:, n], None, (16, 16), 2.0)[0] for n in (0, 1)]
    assert torch.equal(maps, torch.maximum(*apart))
    assert have.tolist() == [[1.0]]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert maps.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("device", DEVICES)
def test_dark_unbiased(device: str) -> None:
    """The whole map around the real centre, and the published test of the 3-sigma box."""
    x = [10.3, -7.0, -7.01, 54.0, 53.99]
    keypoints = torch.tensor([[[value, 20.6] for value in x]], dtype=torch.float64, device=device)
    maps, weights = ops.gaussian_heatmaps(keypoints, None, (64, 48), 2.0, "unbiased", dtype=torch.float64)
    assert weights[0].tolist() == [1, 1, 0, 0, 1]
    steps = torch.arange(64, dtype=torch.float64, device=device)
    for k in (0, 1, 4):
        want = torch.exp(-((steps[:48] - x[k]) ** 2 + (steps[:, None] - 20.6) ** 2) / 8)
        torch.testing.assert_close(maps[0, k], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_udp(device: str) -> None:
    """The patch of the rounded centre around the real one."""
    maps, _ = ops.gaussian_heatmaps(torch.tensor([[[10.4, 20.6]]], device=device), None, (64, 48), 2.0, "udp")
    rows, columns = torch.arange(64.0, device=device)[:, None], torch.arange(48.0, device=device)
    want = torch.exp(-((columns - 10.4) ** 2 + (rows - 20.6) ** 2) / 8)
    want = torch.where(((columns - 10).abs() <= 6) & ((rows - 21).abs() <= 6), want, 0.0)
    torch.testing.assert_close(maps[0, 0], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_flowing_convnets(device: str) -> None:
    """Peak 1.0638 at a joint's exact cell; a full bump sums to 4 sigma sqrt(2 pi) = 15.04; always drawn."""
    sigma = 1.5
    keypoints = torch.tensor([[[32.0, 32.0], [-8.0, 30.0]]], device=device)
    amplitude = 4 / (sigma * math.sqrt(2 * math.pi))
    maps, weights = ops.gaussian_heatmaps(keypoints, None, 64, sigma, "unbiased", amplitude=amplitude, outside="keep")
    assert abs(float(maps[0, 0, 32, 32]) - 1.0638) < 1e-4
    assert abs(float(maps[0, 0].sum()) - 15.04) < 5e-3
    torch.testing.assert_close(float(maps[0, 1, 30, 0]), amplitude * math.exp(-64 / (2 * sigma**2)), rtol=1e-4, atol=0)
    assert weights.tolist() == [[1, 1]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_unipose(device: str, channels_last: bool) -> None:
    """Real centres, a cut-off at 0.0099, and the background first: 1 - the maximum over the joints."""
    keypoints = torch.tensor([[[10.5, 20.25], [30.0, 5.0], [12.0, 21.0]]], device=device)
    maps, _ = ops.gaussian_heatmaps(
        keypoints, None, 46, 3.0, "unbiased", cutoff=0.0099, background="first", channels_last=channels_last
    )
    assert maps.shape == (1, 4, 46, 46)
    rows, columns = torch.arange(46.0, device=device)[:, None], torch.arange(46.0, device=device)
    for k, (x, y) in enumerate(keypoints[0].tolist()):
        want = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
        want = torch.where(want < 0.0099, 0.0, want)
        torch.testing.assert_close(maps[0, 1 + k], want, rtol=0, atol=1e-6)
    assert torch.equal(maps[0, 0], 1 - maps[0, 1:].amax(dim=0))
    assert float(maps[0, 1].max()) < 1
    assert float(maps[0, 2].max()) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_lstm_pose_machines(device: str) -> None:
    """At distance d pixels exp(-d^2 / 98), in cells of 8 pixels; the background last; an absent joint is a zero map."""
    pixels = torch.tensor([[[100.0, 60.0], [200.0, 210.0]]], device=device)
    weights = torch.tensor([[1.0, 0.0]], device=device)
    maps, _ = ops.gaussian_heatmaps(
        (pixels - 3.5) / 8, weights, 46, 7 / 8, "unbiased", cutoff=0.01, background="last", outside="keep"
    )
    cells = torch.arange(46.0, device=device) * 8 + 3.5
    want = torch.exp(-((cells - 100) ** 2 + (cells[:, None] - 60) ** 2) / 98)
    torch.testing.assert_close(maps[0, 0], torch.where(want < 0.01, 0.0, want), rtol=0, atol=1e-6)
    assert int((maps[0, 1] != 0).sum()) == 0
    torch.testing.assert_close(maps[0, 2] + maps[0, 0], torch.ones_like(want), rtol=0, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_absent_person_asks_for_an_empty_map(device: str, dtype: torch.dtype) -> None:
    maps, weights = ops.gaussian_heatmaps(
        torch.full((1, 3, 2), nan, device=device), None, 8, outside="keep", dtype=dtype
    )
    assert maps.dtype == dtype
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert int((maps != 0).sum()) == 0
    assert weights.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("device", DEVICES)
def test_large_maps_and_odd_sizes(device: str) -> None:
    """Maps of several blocks, rows that are no multiple of a vector, and enough bytes to go past the caches."""
    torch.manual_seed(0)
    for batch, joints, size in ((1, 1, (368, 369)), (2, 3, (131, 257)), (40, 17, (97, 73)), (1, 300, (5, 7))):
        keypoints = torch.rand(batch, joints, 2) * torch.tensor([size[1], size[0]])
        for channels_last in (False, True):
            options: dict[str, Any] = {"background": "last", "channels_last": channels_last}
            have, _ = ops.gaussian_heatmaps(keypoints.to(device), None, size, 2.5, **options)
            want, _ = module.reference(keypoints, None, size, 2.5, **options)
            torch.testing.assert_close(have.cpu(), want, rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 4)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.lists(st.floats(width=32) | st.floats(-30, 50, width=32), min_size=1, max_size=12),
    st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0, nan, inf]), min_size=1, max_size=6),
    st.sampled_from([0.3, 1.0, 2.0, 7.5]),
    st.sampled_from(["msra", "udp", "unbiased"]),
    st.sampled_from([0.0, 0.01, 2.0]),
    st.sampled_from(["none", "first", "last"]),
    st.sampled_from(["ignore", "keep"]),
    st.booleans(),
)
def test_any_keypoints(
    shape: tuple[int, int, int],
    size: tuple[int, int],
    values: list[float],
    marks: list[float],
    sigma: float,
    mode: Any,
    cutoff: float,
    background: Any,
    outside: Any,
    channels_last: bool,
) -> None:
    count = math.prod(shape)
    keypoints = torch.tensor((values * 2 * count)[: 2 * count], dtype=torch.float64).reshape(*shape, 2)
    weights = torch.tensor((marks * count)[:count], dtype=torch.float64).reshape(shape)
    options: dict[str, Any] = {"cutoff": cutoff, "background": background, "outside": outside, "dtype": torch.float64}
    options["channels_last"] = channels_last
    have = ops.gaussian_heatmaps(keypoints, weights, size, sigma, mode, **options)
    want = module.reference(keypoints, weights, size, sigma, mode, **options)
    for a, b in zip(have, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
