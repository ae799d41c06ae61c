from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pyposeext import ops
from tests.ops.harness import DEVICES, OpCase, contract_tests

module = importlib.import_module("pyposeext.ops.crop_affine")
nan, inf = float("nan"), float("inf")
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # grey levels as they are


def random_frames(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)


def random_matrices(count: int, size: tuple[int, int]) -> torch.Tensor:
    """Turned and scaled crops, their centre somewhere in and around a frame of about the same size."""
    angle, scale = torch.randn(count, dtype=torch.float64), torch.exp(torch.randn(count, dtype=torch.float64) * 0.5)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([cosine, sine, -sine, cosine * 1.1], dim=1).reshape(count, 2, 2)
    linear[0, 0, 1] = linear[0, 1, 0] = 0  # one that is not turned
    centre = torch.rand(count, 2, dtype=torch.float64) * torch.tensor(size[::-1])
    return torch.cat([linear, (torch.tensor(size[::-1]) / 2 - (linear @ centre[..., None])[..., 0])[..., None]], dim=2)


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    count, height, width = (3, 9, 12) if size == "small" else (5, 41, 83)
    index = torch.randint(0, 2, (count,))
    # Numbers that bfloat16 holds, so that every dtype of the matrices has the same crops.
    matrices = random_matrices(count, (height, width)).bfloat16().double()
    return random_frames(2, height + 3, width), matrices, (height, width), index


def raw(frames, matrices, size, index):
    mean, std = list(module.IMAGENET_MEAN), list(module.IMAGENET_STD)
    return frames, matrices, index, *size, mean, std, "float32", False, False, False


def eye(count: int) -> torch.Tensor:
    return torch.eye(2, 3).expand(count, 2, 3)


black = torch.zeros(1, 4, 5, 3, dtype=torch.uint8)
TestContract = contract_tests(
    OpCase(
        name="crop_affine",
        function=ops.crop_affine,
        reference=module.reference,
        make=make,
        raw=raw,
        data=(1,),
        differentiable=(),
        # The matrices' dtype is not the result's: that is float32, whatever they are.
        tolerance=dict.fromkeys((torch.float32, torch.float64, torch.float16, torch.bfloat16), 2e-6),
        keeps_layout=False,
        empty=[
            (lambda device: ops.crop_affine(black.to(device), eye(0).to(device), (4, 5)), [[0, 3, 4, 5]]),
            (lambda device: ops.crop_affine(black[:0].to(device), eye(0).to(device), (4, 5)), [[0, 3, 4, 5]]),
            (lambda device: ops.crop_affine(black.to(device), eye(2).to(device), (0, 5)), [[2, 3, 0, 5]]),
            (lambda device: ops.crop_affine(black[:, :0].to(device), eye(2).to(device), (4, 5)), [[2, 3, 4, 5]]),
        ],
        errors=[
            (lambda: ops.crop_affine(black[..., 0], eye(1), (4, 5)), r"frames must be \[F, H, W, 3\], got shape"),
            (lambda: ops.crop_affine(black.float(), eye(1), (4, 5)), "frames must be uint8"),
            (lambda: ops.crop_affine(black, eye(1)[0], (4, 5)), r"matrices must be \[N, 2, 3\], got shape \[2, 3\]"),
            (lambda: ops.crop_affine(black, eye(1).long(), (4, 5)), "matrices must be float32, float64"),
            (lambda: ops.crop_affine(black, eye(1), (4, -5)), r"size must be in 0\.\.2\^30, got 4 x -5"),
            (lambda: ops.crop_affine(black, eye(1), (4, 5), mean=(0, 0)), "mean must be 3 numbers, got 2"),
            (lambda: ops.crop_affine(black, eye(1), (4, 5), mean=(0, 0, inf)), "mean must be finite, got inf"),
            (lambda: ops.crop_affine(black, eye(1), (4, 5), std=(1, 0, 1)), "std must be positive, got 0"),
            (
                lambda: ops.crop_affine(black, eye(1), (4, 5), dtype=torch.float64),
                "dtype must be float32, float16 or bfloat16, got float64",
            ),
            (
                lambda: ops.crop_affine(black.expand(2, 4, 5, 3), eye(1), (4, 5)),
                "frame_index must be given for 2 frames",
            ),
            (
                lambda: ops.crop_affine(black, eye(1), (4, 5), torch.tensor([0, 0])),
                r"frame_index must be \[1\], int64, got shape \[2\]",
            ),
            (
                lambda: ops.crop_affine(black, eye(1), (4, 5), torch.tensor([1])),
                r"frame_index\[0\] must be in 0\.\.0, got 1",
            ),
        ],
    )
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("swap_channels", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_options(dtype: torch.dtype, swap_channels: bool, channels_last: bool, device: str) -> None:
    torch.manual_seed(0)
    options = {"swap_channels": swap_channels, "channels_last": channels_last, "mean": (0.1, 0.2, 0.3)}
    # Widths that fill vectors, that do not, and that hold more than one segment.
    for width in (1, 3, 16, 37, 64, 300):
        frames, matrices = random_frames(60, 90), random_matrices(3, (20, width))
        result = ops.crop_affine(frames.to(device), matrices.to(device), (20, width), dtype=dtype, **options)
        expected = module.reference(frames, matrices, (20, width), **options)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=layout)
        tolerance = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
        torch.testing.assert_close(result.cpu().double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_any_strides(device: str) -> None:
    torch.manual_seed(0)
    height, width = 30, 40
    matrices = random_matrices(4, (height, width)).to(device)
    planar, wide = random_frames(height, width).permute(2, 0, 1).contiguous(), random_frames(height, 2 * width)
    rgba = torch.randint(0, 256, (height, width, 4), dtype=torch.uint8)
    views = (
        planar.permute(1, 2, 0),
        wide[:, 5 : 5 + width],
        wide[:, ::2],
        wide[::2],
        rgba[..., :3],
        random_frames(height, 1).expand(height, width, 3),
    )
    for frames in views:
        result = ops.crop_affine(frames.to(device), matrices, (height, width))
        assert torch.equal(result, ops.crop_affine(frames.contiguous().to(device), matrices, (height, width)))


@pytest.mark.parametrize("device", DEVICES)
def test_the_identity_returns_the_frame(device: str) -> None:
    frames = random_frames(3, 19, 23).to(device)
    index = torch.tensor([2, 0, 1], device=device)
    result = ops.crop_affine(frames, eye(3).to(device), (19, 23), index, **PLAIN)
    torch.testing.assert_close(result, frames[index].permute(0, 3, 1, 2).float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_direction_of_the_matrix(device: str) -> None:
    frame = torch.zeros(8, 9, 3, dtype=torch.uint8, device=device)
    frame[2, 3] = 200
    shift = torch.tensor([[[1.0, 0, 4], [0, 1, 1]]], device=device)  # crop = frame + (4, 1)
    forward, inverse = (
        ops.crop_affine(frame, shift, (8, 9), inverse_map=inverse_map, **PLAIN)[0, 0].round()
        for inverse_map in (False, True)
    )
    assert torch.nonzero(forward).tolist() == [[3, 7]]
    assert torch.count_nonzero(inverse) == 0  # the pixel lies at (-1, 1) of that crop
    back = torch.tensor([[[1.0, 0, -4], [0, 1, -1]]], device=device)
    assert torch.equal(ops.crop_affine(frame, back, (8, 9), inverse_map=True, **PLAIN)[0, 0].round(), forward)


@pytest.mark.parametrize("device", DEVICES)
def test_matrices_that_lead_nowhere_give_black(device: str) -> None:
    ones = torch.full((7, 8, 3), 255, dtype=torch.uint8, device=device)
    matrices = torch.tensor(
        [
            [[0, 0, 0], [0, 0, 0]],
            [[1, 2, 0], [2, 4, 0]],
            [[nan, 0, 0], [0, 1, 0]],
            [[1, 0, inf], [0, 1, 0]],
            [[1, 0, 1e300], [0, 1, 0]],
            [[1, 0, 0], [0, 1, -1e300]],
        ],
        dtype=torch.float64,
        device=device,
    )
    result = ops.crop_affine(ones, matrices, (5, 6), **PLAIN)
    assert torch.count_nonzero(result) == 0
    result = ops.crop_affine(ones, matrices[2:], (5, 6), inverse_map=True, **PLAIN)
    assert torch.count_nonzero(result) == 0
    normalised = ops.crop_affine(ones, matrices[:1], (5, 6))[0, :, 0, 0].cpu()
    expected = -torch.tensor(module.IMAGENET_MEAN) / torch.tensor(module.IMAGENET_STD)
    torch.testing.assert_close(normalised, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="on the CPU a wrong index is an error")
def test_a_wrong_frame_index_gives_black_on_a_gpu() -> None:
    ones = torch.full((2, 7, 8, 3), 255, dtype=torch.uint8, device="cuda")
    index = torch.tensor([-1, 2, 1], device="cuda")
    result = ops.crop_affine(ones, eye(3).cuda(), (7, 8), index, **PLAIN)
    assert torch.count_nonzero(result[:2]) == 0
    assert float(result[2].min()) > 254


def test_no_read_past_the_frame() -> None:
    """The frame ends with its memory: pixels at its right and lower edge still come out right."""
    torch.manual_seed(0)
    frame = random_frames(5, 6)
    for offset in (0.0, 0.25, 0.99):
        matrices = torch.tensor([[[1.0, 0, offset], [0, 1, offset]]], dtype=torch.float64)
        for inverse_map in (False, True):
            result = ops.crop_affine(frame, matrices, (5, 6), inverse_map=inverse_map)
            expected = module.reference(frame, matrices, (5, 6), inverse_map=inverse_map)
            torch.testing.assert_close(result.double(), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("turned", [False, True])
def test_equals_cv2_within_a_grey_level(turned: bool) -> None:
    cv2 = pytest.importorskip("cv2")
    torch.manual_seed(0)
    noise = torch.rand(1, 3, 24, 32) * 255
    frame = F.interpolate(noise, size=(240, 320), mode="bilinear")[0].permute(1, 2, 0).round().byte().contiguous()
    for angle, scale in ((0.0, 0.7), (0.0, 1.6)) if not turned else ((0.4, 0.7), (-2.0, 1.3)):
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        matrix = np.array([[cosine, sine, 10.0 - 80 * sine], [-sine, cosine, 20 + 90 * sine]])
        expected = cv2.warpAffine(frame.numpy(), matrix, (96, 128), flags=cv2.INTER_LINEAR)
        result = ops.crop_affine(frame, torch.from_numpy(matrix)[None], (128, 96), **PLAIN)[0].permute(1, 2, 0)
        assert float((result - torch.from_numpy(expected).float()).abs().max()) <= 2.0


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(0, 12),
    width=st.integers(0, 12),
    size=st.tuples(st.integers(0, 9), st.integers(0, 70)),
    matrix=st.lists(st.floats(-3, 3) | st.sampled_from([0.0, 1.0, nan, inf, 1e200]), min_size=6, max_size=6),
    inverse_map=st.booleans(),
)
def test_any_matrix(height, width, size, matrix, inverse_map) -> None:
    frame = random_frames(height, width)
    matrices = torch.tensor(matrix, dtype=torch.float64).reshape(1, 2, 3)
    result = ops.crop_affine(frame, matrices, size, inverse_map=inverse_map, **PLAIN)
    assert bool(torch.isfinite(result).all())
    linear = matrices[0, :, :2]
    if inverse_map or abs(float(torch.linalg.det(torch.nan_to_num(linear)))) > 1e-2:
        expected = module.reference(frame, matrices, size, inverse_map=inverse_map, **PLAIN)
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-3)
