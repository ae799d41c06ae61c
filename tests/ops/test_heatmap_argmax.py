from __future__ import annotations

import importlib
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyposeext import _C, ops
from pyposeext.errors import InputError
from tests.ops.harness import DEVICES, DTYPES, LAYOUTS, OpCase, contract_tests, with_layout

module = importlib.import_module("pyposeext.ops.heatmap_argmax")
nan, inf = float("nan"), float("inf")


def gaussians(
    batch: int, joints: int, height: int, width: int, noise: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps with one peak of sigma 2 each, float64, and where it is."""
    centres = torch.rand(batch, joints, 2, dtype=torch.float64) * torch.tensor([width - 1, height - 1])
    x = torch.arange(width) - centres[..., :1]
    y = torch.arange(height) - centres[..., 1:]
    maps = torch.exp(-(x[..., None, :] ** 2 + y[..., :, None] ** 2) / 8)
    return maps + noise * (torch.rand(maps.shape, dtype=torch.float64) - 0.5), centres


def make_coarse(refine: str, seed: int, size: str) -> tuple[object, ...]:
    """Few different values, exact in every dtype, so that ties are many."""
    torch.manual_seed(seed)
    shape = (2, 3, 5, 4) if size == "small" else (2, 19, 33, 29)
    return torch.randint(-8, 8, shape).double() / 8, refine


def make_peaks(refine: str, seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    maps, _ = gaussians(*((2, 2, 12, 9) if size == "small" else (2, 19, 33, 29)), noise=[0.05, 0.4][seed % 2])
    return maps, refine


def raw(heatmaps: torch.Tensor, refine: str) -> tuple[object, ...]:
    return heatmaps, refine, 11, "hrnet", "keep", None, None, 0, None


def call(refine: str = "none", **options: object) -> object:
    return ops.heatmap_argmax(torch.zeros(1, 1, 4, 4), refine, **options)


def call_flipped(
    shape: tuple[int, ...] = (1, 2, 4, 4),
    permutation: list[int] | None = [1, 0],  # noqa: B006
    dtype: torch.dtype = torch.float32,
    flip_shift: int = 0,
) -> object:
    indices = None if permutation is None else torch.tensor(permutation)
    flipped = torch.zeros(shape, dtype=dtype)
    maps = torch.zeros(1, 2, 4, 4)
    return ops.heatmap_argmax(maps, flipped=flipped, flip_permutation=indices, flip_shift=flip_shift)


def decode_nothing(shape: tuple[int, ...], refine: str, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return ops.heatmap_argmax(torch.zeros(shape, device=device), refine)


shared = {
    "name": "heatmap_argmax",
    "function": ops.heatmap_argmax,
    "reference": module.reference,
    "raw": raw,
    "differentiable": (),
    "keeps_layout": False,
    "empty": [
        (partial(decode_nothing, shape, refine), [[*shape[:2], 2], [*shape[:2]]])
        for shape in ((0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0))
        for refine in ("none", "quarter", "dark", "dark_udp", "soft")
    ],
    "errors": [
        (
            lambda: ops.heatmap_argmax(torch.zeros(3, 4, 5)),
            r"heatmaps must be \[B, K, H, W\], got shape \[3, 4, 5\]",
        ),
        (lambda: ops.heatmap_argmax(torch.zeros(1, 1, 4, 5).int()), "heatmaps must be float32, float64"),
        (lambda: call("mean"), "refine must be one of none, quarter, dark, dark_udp, got mean"),
        (lambda: call(blur_kernel=10), "blur_kernel must be odd, from 1 to 31, got 10"),
        (lambda: call(blur_kernel=33), "blur_kernel must be odd, from 1 to 31, got 33"),
        (
            lambda: call(quarter_guard="none"),
            "quarter_guard must be one of hrnet, mmpose, inside, separate, got none",
        ),
        (lambda: call(nonpositive="drop"), "nonpositive must be one of keep, zero, minus_one, got drop"),
        (lambda: call_flipped(permutation=None), "flipped and flip_permutation must be given together"),
        (
            lambda: call_flipped(shape=(1, 2, 4, 5)),
            r"flipped must have the shape of heatmaps, \[1, 2, 4, 4\], got shape",
        ),
        (lambda: call_flipped(dtype=torch.float64), "flipped must have the dtype of heatmaps"),
        (lambda: call_flipped(permutation=[0]), r"flip_permutation must be \[2\], got shape \[1\]"),
        (lambda: call_flipped(permutation=[0, 2]), r"flip_permutation must hold each of 0..1 once, got 2 at 1"),
        (lambda: call_flipped(permutation=[1, 1]), r"flip_permutation must hold each of 0..1 once, got 1 at 1"),
        (lambda: call_flipped(flip_shift=2), "flip_shift must be 0 or 1, got 2"),
        (lambda: call(affine=torch.zeros(1, 3, 3)), r"affine must be \[1, 2, 3\], got shape \[1, 3, 3\]"),
        (lambda: call(affine=torch.zeros(1, 2, 3).int()), "affine must be float32, float64"),
        (lambda: call("soft", temperature=0.0), "temperature must be a positive number, got 0"),
        (lambda: call("soft", temperature=nan), "temperature must be a positive number, got nan"),
    ],
}
TestNone = contract_tests(OpCase(make=partial(make_coarse, "none"), exact=True, **shared))
TestQuarter = contract_tests(OpCase(make=partial(make_coarse, "quarter"), exact=True, **shared))
# Relative to coordinates of up to 33 pixels: 1e-4 pixels.
within = dict.fromkeys(DTYPES, 3e-6) | {torch.float64: 1e-11}
TestDark = contract_tests(OpCase(make=partial(make_peaks, "dark"), tolerance=within, **shared))
TestDarkUdp = contract_tests(OpCase(make=partial(make_peaks, "dark_udp"), tolerance=within, **shared))


def make_soft(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    shape = (2, 2, 3, 4) if size == "small" else (2, 19, 33, 29)
    return torch.randn(shape, dtype=torch.float64) * 3, [1.0, 2.5][seed % 2]


def soft(heatmaps: torch.Tensor, temperature: float) -> torch.Tensor:
    return ops.heatmap_argmax(heatmaps, "soft", temperature=temperature)[0]


class TestSoft(
    contract_tests(
        OpCase(
            name="heatmap_soft_argmax",
            function=soft,
            reference=lambda maps, temperature: module.reference(maps, "soft", temperature=temperature)[0],
            make=make_soft,
            raw=lambda *arguments: (*arguments, None, None, 0, None),
            double_backward=False,
            keeps_layout=False,
        )
    )
):
    def test_registration(self, device: str) -> None:
        maps = make_soft(0, "small")[0].float().to(device)
        expected = ops.heatmap_argmax(maps, "soft", temperature=2.0)
        options = (2.0, None, None, 0, None)
        torch.library.opcheck(torch.ops.pyposeext.heatmap_soft_argmax.default, (maps.requires_grad_(True), *options))
        for have, want in zip(_C.heatmap_soft_argmax(maps.detach(), *options), expected, strict=False):
            assert torch.equal(have, want)
        compiled = torch.compile(soft, fullgraph=True, backend="aot_eager")
        gradients = [torch.autograd.grad(function(maps, 2.0).square().sum(), maps)[0] for function in (compiled, soft)]
        torch._dynamo.reset()
        assert torch.equal(*gradients)


def make_flip(refine: str, seed: int, size: str) -> tuple[object, ...]:
    """Maps, maps of the mirrored image, a permutation without meaning, a shift, an affine map per image."""
    torch.manual_seed(seed)
    shape = (2, 3, 5, 4) if size == "small" else (2, 19, 33, 29)
    maps, flipped = torch.randint(-8, 8, (2, *shape)).double() / 8
    if refine in ("dark", "dark_udp"):
        maps = gaussians(*shape)[0] + 0.1
        flipped = maps.roll(1, dims=1).flip(3) * 0.75
    affine = torch.tensor([[[4.0, 0.5, 10.0], [-0.25, 4.0, 20.0]], [[2.0, 0, 1], [0, 2, 1]]]).double()
    return maps, flipped, torch.randperm(shape[1]), seed % 2, affine, refine


def flip_options(permutation: object, shift: object, affine: object) -> dict[str, object]:
    return {"flip_permutation": permutation, "flip_shift": shift, "affine": affine}


def decode_flipped(function: object, maps, flipped, permutation, shift, affine, refine):  # type: ignore[no-untyped-def]
    return function(maps, refine, flipped=flipped, **flip_options(permutation, shift, affine))


def raw_flip(maps, flipped, permutation, shift, affine, refine):  # type: ignore[no-untyped-def]
    return maps, refine, 11, "hrnet", "keep", flipped, permutation, shift, affine


flip_case = {
    "function": partial(decode_flipped, ops.heatmap_argmax),
    "reference": partial(decode_flipped, module.reference),
    "data": (0, 1),
    "keeps_layout": False,
}
flip_quarter = OpCase(
    name="heatmap_argmax",
    make=partial(make_flip, "quarter"),
    raw=raw_flip,
    differentiable=(),
    tolerance=dict.fromkeys(DTYPES, 1e-6) | {torch.float64: 1e-12},
    **flip_case,
)
flip_dark = OpCase(
    name="heatmap_argmax",
    make=partial(make_flip, "dark"),
    raw=raw_flip,
    differentiable=(),
    tolerance=dict.fromkeys(DTYPES, 3e-6) | {torch.float64: 1e-11},
    **flip_case,
)
flip_soft = OpCase(
    name="heatmap_soft_argmax",
    function=lambda *arguments: decode_flipped(ops.heatmap_argmax, *arguments, "soft")[0],
    reference=lambda *arguments: decode_flipped(module.reference, *arguments, "soft")[0],
    make=lambda seed, size: make_flip("soft", seed, size)[:5],
    raw=lambda maps, flipped, *options: (maps, 1.0, flipped, *options),
    data=(0, 1),
    differentiable=(0, 1),
    double_backward=False,
    keeps_layout=False,
)
TestFlipQuarter = contract_tests(flip_quarter)
TestFlipDark = contract_tests(flip_dark)


class TestFlipSoft(contract_tests(flip_soft)):
    def test_registration(self, device: str) -> None:
        maps, flipped, *options = flip_soft.arguments(0, "small", torch.float32, "contiguous", device)
        leaves = [maps.requires_grad_(True), flipped.requires_grad_(True)]
        torch.library.opcheck(torch.ops.pyposeext.heatmap_soft_argmax.default, (maps, 1.0, flipped, *options))
        compiled = torch.compile(flip_soft.function, fullgraph=True, backend="aot_eager")
        gradients = [
            torch.autograd.grad(function(maps, flipped, *options).square().sum(), leaves)
            for function in (compiled, flip_soft.function)
        ]
        torch._dynamo.reset()
        for have, want in zip(*gradients, strict=True):
            assert torch.equal(have, want)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 17, 30, 37), (1, 2, 3, 1), (2, 3, 1, 2), (1, 4, 40, 16)], ids=str)
def test_the_flip_test_is_that_of_the_averaged_maps(device: str, layout: str, shape: tuple[int, ...]) -> None:
    """Bit for bit where averages are compared; 16-bit maps are averaged in float32."""
    torch.manual_seed(1)
    permutation = torch.randperm(shape[1], device=device)
    for dtype in DTYPES:
        maps, flipped = (with_layout(torch.randn(shape).to(dtype), layout).to(device) for _ in range(2))
        wide = maps.float() if dtype != torch.float64 else maps
        for shift in (0, 1):
            average = module.flip_average(wide, flipped.to(wide), permutation, shift)
            given_flip = {"flipped": flipped, "flip_permutation": permutation, "flip_shift": shift}
            for refine in ("none", "quarter", "dark", "dark_udp", "soft"):
                have = ops.heatmap_argmax(maps, refine, **given_flip)
                want = ops.heatmap_argmax(average, refine)
                torch.testing.assert_close(have, want, rtol=0, atol=0 if refine in ("none", "quarter") else 1e-4)


def test_the_shift_is_hrnets() -> None:
    """The published lines on maps of the mirrored image: flip, swap, then move by a pixel from a copy."""
    maps, flipped, pairs = torch.rand(2, 4, 6, 5), torch.rand(2, 4, 6, 5), [(0, 2), (1, 3)]
    back = flipped.numpy()[..., ::-1].copy()
    for left, right in pairs:
        back[:, [left, right]] = back[:, [right, left]]
    shifted = torch.from_numpy(back)
    shifted[..., 1:] = shifted.clone()[..., :-1]
    want = ops.heatmap_argmax((maps + shifted) * 0.5)
    have = ops.heatmap_argmax(maps, flipped=flipped, flip_permutation=torch.tensor([2, 3, 0, 1]), flip_shift=1)
    for result, expected in zip(have, want, strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("refine", ["none", "dark", "soft"])
def test_affine_maps_every_place(device: str, refine: str) -> None:
    """Also those of maps without a maximum; the scores stay, and the matrices get no gradient."""
    maps = gaussians(2, 5, 20, 16)[0].float()
    maps[1, 2] = nan
    affine = torch.randn(2, 2, 3, requires_grad=True)
    plain, scores = ops.heatmap_argmax(maps.to(device), refine)
    mapped, same = ops.heatmap_argmax(maps.to(device), refine, affine=affine.to(device))
    want = plain.cpu() @ affine[:, :, :2].mT + affine[:, None, :, 2]
    torch.testing.assert_close(mapped.cpu(), want.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(same, scores)
    assert not mapped.requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_soft_gradients_keep_the_layout_and_stop_at_the_second(device: str) -> None:
    maps = make_soft(0, "medium")[0].float().to(device).contiguous(memory_format=torch.channels_last)
    maps.requires_grad_(True)
    coordinates, scores = ops.heatmap_argmax(maps, "soft")
    assert coordinates.requires_grad
    assert not scores.requires_grad
    (gradient,) = torch.autograd.grad(coordinates.square().sum(), maps, create_graph=True)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="refine='soft' cannot be differentiated again"):
        gradient.square().sum().backward()


def opencv_dark(maps: np.ndarray, size: int, udp: bool) -> np.ndarray:
    """The published computation on whole maps [K, H, W] with OpenCV's blur: coordinates [K, 2]."""
    joints, height, width = maps.shape
    result = np.zeros((joints, 2), maps.dtype)
    for k, heatmap in enumerate(maps):
        y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
        result[k] = x, y
        blurred = cv2.GaussianBlur(np.pad(heatmap, size // 2), (size, size), 0)
        if size > 1:
            blurred = blurred[size // 2 : -(size // 2), size // 2 : -(size // 2)]
        blurred = blurred * (heatmap.max() / (blurred.max() + 1e-12))
        log = np.log(np.clip(blurred, 1e-3, 50) if udp else np.maximum(blurred, 1e-10))
        if udp:
            w = np.pad(log, 1, mode="edge")[y : y + 3, x : x + 3]
            gradient = np.array([w[1, 2] - w[1, 0], w[2, 1] - w[0, 1]]) / 2
            xx, yy = w[1, 2] - 2 * w[1, 1] + w[1, 0], w[2, 1] - 2 * w[1, 1] + w[0, 1]
            xy = (w[2, 2] - w[1, 2] - w[2, 1] + 2 * w[1, 1] - w[1, 0] - w[0, 1] + w[0, 0]) / 2
            hessian = np.array([[xx, xy], [xy, yy]]) + np.finfo(np.float32).eps * np.eye(2)
        elif 1 < x < width - 2 and 1 < y < height - 2:
            w = log[y - 2 : y + 3, x - 2 : x + 3]
            gradient = np.array([w[2, 3] - w[2, 1], w[3, 2] - w[1, 2]]) / 2
            xx, yy = (w[2, 4] - 2 * w[2, 2] + w[2, 0]) / 4, (w[4, 2] - 2 * w[2, 2] + w[0, 2]) / 4
            xy = (w[3, 3] - w[1, 3] - w[3, 1] + w[1, 1]) / 4
            hessian = np.array([[xx, xy], [xy, yy]])
        else:
            continue
        if np.linalg.det(hessian) != 0:
            result[k] -= np.linalg.solve(hessian, gradient)
    return result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [1, 3, 5, 7, 9, 11, 17, 31])
@pytest.mark.parametrize("refine", ["dark", "dark_udp"])
@pytest.mark.parametrize("kind", ["peaks", "noise"])
def test_dark_equals_the_published_computation(device: str, refine: str, size: int, kind: str) -> None:
    """Of peaks only the window is blurred. Around maxima of noise values meet the logarithm's floor: whole maps are."""
    maps = gaussians(1, 40, 40, 32, noise=0.02)[0] + 0.03 if kind == "peaks" else torch.randn(1, 40, 40, 32).double()
    want = opencv_dark(maps[0].numpy(), size, refine == "dark_udp")
    have, _ = ops.heatmap_argmax(maps.to(device), refine, blur_kernel=size)
    torch.testing.assert_close(have[0].cpu(), torch.from_numpy(want), rtol=1e-6, atol=1e-8)
    if kind == "peaks" and size >= 9:
        have, _ = ops.heatmap_argmax(maps.float().to(device), refine, blur_kernel=size)
        exact = opencv_dark(maps.float().double()[0].numpy(), size, refine == "dark_udp")
        assert float((have[0].cpu() - torch.from_numpy(exact)).abs().max()) < 1e-4


@pytest.mark.parametrize("device", DEVICES)
def test_udp_ceiling_at_fifty(device: str) -> None:
    maps, _ = gaussians(1, 20, 24, 24)
    maps = maps * 60
    want = opencv_dark(maps[0].numpy(), 11, True)
    have, _ = ops.heatmap_argmax(maps.to(device), "dark_udp")
    torch.testing.assert_close(have[0].cpu(), torch.from_numpy(want), rtol=0, atol=1e-7)


@pytest.mark.parametrize("refine", ["dark", "dark_udp"])
def test_dark_finds_the_centre_of_a_gaussian(refine: str) -> None:
    maps, centres = gaussians(1, 50, 40, 40)
    inner = ((centres > 6) & (centres < 33)).all(dim=2)
    have, scores = ops.heatmap_argmax(maps.float(), refine)
    assert float((have - centres)[inner].abs().max()) < 0.02
    assert torch.equal(scores, maps.float().amax(dim=(2, 3)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("refine", ["dark", "dark_udp"])
@pytest.mark.parametrize("width", [8.0, 1.0], ids=["window", "whole map"])
def test_nan_far_away_changes_nothing(device: str, refine: str, width: float) -> None:
    """It is not read, or left out of the whole map's maximum where a narrow peak is among negative values."""
    x, y = torch.arange(40.0) - 12.3, torch.arange(40.0) - 9.6
    maps = (torch.exp(-(x**2 + y[:, None] ** 2) / width) - 0.1)[None, None].double().to(device)
    want, _ = ops.heatmap_argmax(maps, refine, blur_kernel=3)
    maps[0, 0, 39, 39] = nan
    have, _ = ops.heatmap_argmax(maps, refine, blur_kernel=3)
    assert torch.equal(have, want)
    assert (have != have.round()).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("refine", ["dark", "dark_udp"])
@pytest.mark.parametrize("broken", [nan, -inf])
def test_a_broken_window_is_not_refined(device: str, refine: str, broken: float) -> None:
    maps, _ = gaussians(1, 1, 21, 21)
    maps[0, 0] = maps[0, 0] * 0 + torch.exp(-((torch.arange(21) - 10.2) ** 2)[:, None] / 8)
    maps[0, 0, :, 10] += 0.5
    maps[0, 0, 12, 13] = broken
    coordinates, scores = ops.heatmap_argmax(maps.to(device), refine)
    assert coordinates.tolist() == [[[10.0, 10.0]]]
    assert float(scores) == float(maps[0, 0, 10, 10])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("refine", ["none", "quarter", "dark", "dark_udp", "soft"])
def test_maps_without_a_maximum(device: str, layout: str, refine: str) -> None:
    """All NaN, all minus infinity, one number among NaN, plus infinity, all equal: each has a defined result."""
    maps = torch.full((1, 18, 3, 4), nan)
    maps[0, 1] = -inf
    maps[0, 2, 1, 2] = -3.0
    maps[0, 3], maps[0, 3, 2, 1], maps[0, 3, 2, 3] = 1.0, inf, inf
    maps[0, 4] = -inf
    maps[0, 4, 0, 3] = 5.0
    coordinates, scores = ops.heatmap_argmax(with_layout(maps, layout).to(device), refine)
    want = torch.full((1, 18, 2), -1.0)
    want[0, 2], want[0, 3], want[0, 4] = torch.tensor([[2.0, 1], [1, 2], [3, 0]])
    assert torch.equal(coordinates.cpu(), want)
    assert scores[0, :5].tolist() == [-inf, -inf, -3.0, inf, 5.0]


@pytest.mark.parametrize("device", DEVICES)
def test_no_weight_where_soft_has_no_meaning(device: str) -> None:
    maps = torch.tensor([[[[nan, nan]], [[inf, 3.0]], [[nan, 2.0]], [[-inf, 2.0]]]], device=device, requires_grad=True)
    coordinates, _ = ops.heatmap_argmax(maps, "soft")
    assert coordinates.tolist() == [[[-1, -1], [0, 0], [1, 0], [1, 0]]]
    coordinates.sum().backward()
    assert (maps.grad == 0).all()


def test_soft_of_large_logits_and_of_flat_maps() -> None:
    maps = torch.zeros(1, 2, 5, 9)
    maps[0, 0, 3, 7] = 1e4
    coordinates, _ = ops.heatmap_argmax(maps, "soft")
    assert coordinates.tolist() == [[[7, 3], [4, 2]]]


@pytest.mark.parametrize("device", DEVICES)
def test_nonpositive_maxima(device: str) -> None:
    maps = torch.full((1, 2, 6, 6), -1.0)
    maps[0, 0, 3, 2], maps[0, 1, 3, 2] = 0.0, 0.5
    maps[0, :, 3, 3] = -0.5
    for rule, place in (("keep", [2.25, 3.0]), ("zero", [0.0, 0.0]), ("minus_one", [-1.0, -1.0])):
        coordinates, scores = ops.heatmap_argmax(maps.to(device), "quarter", nonpositive=rule)
        assert coordinates[0].tolist() == [place, [2.25, 3.0]]
        assert scores[0].tolist() == [0.0, 0.5]
    with pytest.raises(InputError, match="nonpositive must be keep with refine='soft', got zero"):
        ops.heatmap_argmax(maps, "soft", nonpositive="zero")


@pytest.mark.parametrize("guard", ["hrnet", "mmpose", "inside", "separate"])
def test_quarter_guards_at_every_pixel(guard: str) -> None:
    """The published loops, for a maximum at each pixel of a map that rises to the right and down."""
    height, width = 6, 5
    base = torch.arange(height)[:, None] * 0.01 + torch.arange(width) * 0.001
    for y in range(height):
        for x in range(width):
            heatmap = base.clone()
            heatmap[y, x] = 9.0
            dx = dy = 0.0
            if guard == "hrnet" and 1 < x < width - 1 and 1 < y < height - 1:
                dx = dy = 0.25
            if guard == "mmpose":
                dx = 0.25 if 1 < x < width - 1 and 0 < y < height else 0.0
                dy = 0.25 if 1 < y < height - 1 and 0 < x < width else 0.0
            if guard == "inside" and 0 < x < width - 1 and 0 < y < height - 1:
                dx = dy = 0.25
            if guard == "separate":
                dx = 0.25 if 1 < x < width - 1 else 0.0
                dy = 0.25 if 1 < y < height - 1 else 0.0
            coordinates, _ = ops.heatmap_argmax(heatmap[None, None], "quarter", quarter_guard=guard)
            assert coordinates[0, 0].tolist() == [x + dx, y + dy]


def test_offsets_beyond_32_bits() -> None:
    """Images 2^31 elements apart; only the pages that are read exist."""
    storage = torch.empty(2**31 + 64, dtype=torch.float16)
    maps = storage.as_strided((2, 1, 4, 5), (2**31, 20, 5, 1))
    maps.zero_()
    maps[1, 0, 2, 3] = 1.0
    assert ops.heatmap_argmax(maps)[0].tolist() == [[[0, 0]], [[3, 2]]]


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 17]), st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(LAYOUTS),
    st.floats(0, 0.5),
    st.integers(0, 2**31),
)
def test_the_first_maximum_wins(shape: tuple[int, ...], layout: str, share: float, seed: int) -> None:
    """Equal to NumPy's argmax with NaN as minus infinity, in every layout, with many ties; refinements stay near."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 6, shape, generator=generator).float()
    maps[torch.rand(shape, generator=generator) < share] = nan
    filled = np.nan_to_num(maps.flatten(2).numpy(), nan=-np.inf)
    given_maps = with_layout(maps, layout)
    coordinates, scores = ops.heatmap_argmax(given_maps)
    found = filled.max(axis=2) > -np.inf
    index = filled.argmax(axis=2)
    want = np.stack([index % shape[3], index // shape[3]], axis=2)
    assert (coordinates.numpy()[found] == want[found]).all()
    assert (scores.numpy() == filled.max(axis=2)).all()
    quarter, _ = ops.heatmap_argmax(given_maps, "quarter")
    assert float((quarter - coordinates).abs().max()) in (0.0, 0.25)
    for refine in ("dark", "dark_udp"):
        assert torch.isfinite(ops.heatmap_argmax(given_maps, refine)[0]).all()
    soft_place, _ = ops.heatmap_argmax(given_maps, "soft")
    limit = torch.tensor([shape[3] - 1.0, shape[2] - 1.0]) + 1e-4
    inside = (soft_place >= -1e-4) & (soft_place <= limit)
    assert inside[torch.from_numpy(found)].all()
