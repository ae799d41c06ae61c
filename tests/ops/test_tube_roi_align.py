from __future__ import annotations

import importlib

import pytest
import torch

from pyposeext import ops
from tests.ops.harness import DEVICES, OpCase, contract_tests
from tests.ops.test_roi_align import random_rois

module = importlib.import_module("pyposeext.ops.tube_roi_align")


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    batch, channels, frames, height, width, count = (2, 2, 2, 5, 4, 3) if size == "small" else (2, 17, 3, 9, 11, 5)
    input = torch.randn(batch, channels, frames, height, width, dtype=torch.float64)
    tubes = random_rois(count * frames, batch, 2 * max(height, width))[:, 1:].reshape(count, frames, 4)
    options = [(2, 0.5, 2, False), (2, 0.5, -1, True)][seed % 2]
    return input, tubes, torch.randint(batch, (count,)), *options


def raw(input, tubes, index, size, scale, ratio, aligned):
    return input, tubes, index, size, size, scale, ratio, aligned


def pool(tubes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return ops.tube_roi_align(torch.zeros(1, 2, 3, 4, 4), tubes, index, 2)


case = OpCase(
    name="tube_roi_align",
    function=ops.tube_roi_align,
    reference=module.reference,
    make=make,
    raw=raw,
    empty=[
        (
            lambda device: ops.tube_roi_align(
                torch.zeros(1, 2, 3, 4, 4, device=device),
                torch.zeros(0, 3, 4, device=device),
                torch.zeros(0, dtype=torch.long, device=device),
                7,
            ),
            [[0, 2, 3, 7, 7]],
        ),
        (
            lambda device: ops.tube_roi_align(
                torch.zeros(1, 2, 0, 4, 4, device=device),
                torch.zeros(5, 0, 4, device=device),
                torch.zeros(5, dtype=torch.long, device=device),
                7,
            ),
            [[5, 2, 0, 7, 7]],
        ),
    ],
    errors=[
        (
            lambda: pool(torch.zeros(1, 2, 4), torch.zeros(1).long()),
            r"tubes must be \[N, 3, 4\], got shape \[1, 2, 4\]",
        ),
        (
            lambda: pool(torch.zeros(1, 3, 4), torch.zeros(2).long()),
            r"batch_index must be int64 \[1\], got shape \[2\]",
        ),
        (lambda: pool(torch.zeros(1, 3, 4), torch.zeros(1)), r"batch_index must be int64 \[1\]"),
        (lambda: pool(torch.zeros(1, 3, 4), torch.ones(1).long()), r"batch_index\[0\] must be in 0..0, got 1"),
        (
            lambda: ops.tube_roi_align(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4), torch.zeros(1).long(), 2),
            r"input must be \[B, C, T, H, W\]",
        ),
    ],
)
TestContract = contract_tests(case)


@pytest.mark.parametrize("device", DEVICES)
def test_equals_roi_align_frame_by_frame(device: str) -> None:
    input, tubes, index, size, *options = make(0, "medium")
    pooled = ops.tube_roi_align(input.to(device), tubes.to(device), index.to(device), size, *options)
    for t in range(input.shape[2]):
        rois = torch.cat([index[:, None].double(), tubes[:, t]], dim=1).to(device)
        assert torch.equal(pooled[:, :, t], ops.roi_align(input[:, :, t].to(device), rois, size, *options))


def test_permuting_frames_of_clip_and_tubes_permutes_the_result() -> None:
    input, tubes, index, size, *options = make(1, "medium")
    order = torch.tensor([2, 0, 1])
    want = ops.tube_roi_align(input, tubes, index, size, *options)[:, :, order]
    assert torch.equal(ops.tube_roi_align(input[:, :, order], tubes[:, order], index, size, *options), want)


def test_a_frame_gets_gradient_only_from_its_own_boxes() -> None:
    input = torch.randn(1, 2, 3, 6, 6, requires_grad=True)
    pooled = ops.tube_roi_align(input, torch.tensor([0.0, 0, 5, 5]).expand(2, 3, 4), torch.zeros(2).long(), 2)
    pooled[:, :, 1].sum().backward()
    touched = input.grad.abs().sum(dim=(0, 1, 3, 4)) > 0
    assert touched.tolist() == [False, True, False]
