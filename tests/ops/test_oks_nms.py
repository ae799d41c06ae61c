from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyposeext import ops
from pyposeext.skeletons import COCO17
from tests.ops.harness import DEVICES, OpCase, contract_tests

reference = importlib.import_module("pyposeext.ops.oks_nms").reference
SIGMAS = list(COCO17.sigmas)


def random_poses(count: int, joints: int = 17) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Poses in clusters of about six, exact in bfloat16, with ties among scores; areas; groups."""
    centre = torch.randint(0, 20, (count // 6 + 1, joints, 2)).repeat_interleave(6, 0)[:count] * 8
    points = centre + torch.randint(-6, 7, (count, joints, 2))
    seen = torch.randint(0, 5, (count, joints, 1)).double() / 4
    areas = torch.randint(20, 60, (count,)).double() * 256
    poses = torch.cat([points.double(), seen], dim=2).to(torch.bfloat16).double()
    return poses, torch.randint(0, 16, (count,)).double() / 16, areas, torch.randint(-1, 2, (count,)) * 10**15


def make(seed: int, size: str) -> tuple[object, ...]:
    torch.manual_seed(seed)
    poses, scores, areas, groups = random_poses(12 if size == "small" else 150)
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
    return poses, scores, areas, 0.57, sigmas, [groups, None][seed % 2], ["none", "mmpose"][seed % 2], 0.3


def padded_reference(*arguments):
    kept = reference(*arguments)
    padding = kept.new_full((len(arguments[0]) - len(kept),), -1)
    return torch.cat([kept, padding]), torch.tensor(len(kept))


def published(poses: np.ndarray, scores: np.ndarray, areas: np.ndarray, threshold: float, visibility: str) -> list[int]:
    """The greedy loop of HRNet and MMPose in NumPy, with a stable order and joints seen above 0.3."""
    variance = (np.array(SIGMAS) * 2) ** 2
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        similarity = np.zeros(len(rest))
        for n, other in enumerate(rest):
            offset = poses[other, :, :2] - poses[best, :, :2]
            mean_area = (areas[best] + areas[other]) / 2 + np.spacing(1)
            exponent = (offset[:, 0] ** 2 + offset[:, 1] ** 2) / variance / mean_area / 2
            if visibility != "none":
                exponent = exponent[(poses[other, :, 2] > 0.3) & ((visibility == "hrnet") | (poses[best, :, 2] > 0.3))]
            similarity[n] = np.sum(np.exp(-exponent)) / len(exponent) if len(exponent) else 0.0
        order = rest[similarity <= threshold]
    return kept


def nothing(device: str) -> tuple[torch.Tensor, ...]:
    return torch.zeros(0, 17, 3, device=device), torch.zeros(0, device=device), torch.zeros(0, device=device)


def wrong(**changed: object) -> object:
    arguments: dict[str, object] = {
        "keypoints": torch.zeros(2, 17, 3),
        "scores": torch.zeros(2),
        "areas": torch.ones(2),
        "oks_threshold": 0.9,
        "sigmas": SIGMAS,
    }
    return ops.oks_nms(**{**arguments, **changed})  # type: ignore[arg-type]


shared = {
    "make": make,
    "raw": lambda *arguments: arguments,
    "data": (0, 1),
    "differentiable": (),
    "exact": True,
    "keeps_layout": False,
}
TestOksNms = contract_tests(
    OpCase(
        name="oks_nms",
        capturable=False,  # the number of rows is read back
        function=ops.oks_nms,
        reference=reference,
        empty=[(lambda device: ops.oks_nms(*nothing(device), 0.5, SIGMAS), [[0]])],
        errors=[
            (lambda: wrong(keypoints=torch.zeros(2, 17, 2)), r"keypoints must be \[N, K, 3\], got shape \[2, 17, 2\]"),
            (lambda: wrong(scores=torch.zeros(3)), r"scores must be \[2\], got shape \[3\]"),
            (lambda: wrong(areas=torch.ones(2, 1)), r"areas must be \[2\], got shape \[2, 1\]"),
            (lambda: wrong(areas=torch.ones(2).int()), "areas must be float32, float64"),
            (lambda: wrong(sigmas=SIGMAS[1:]), r"sigmas must be \[17\], got shape \[16\]"),
            (lambda: wrong(oks_threshold=float("nan")), "oks_threshold must be a number, got NaN"),
            (lambda: wrong(visibility="all"), "visibility must be 'none', 'hrnet' or 'mmpose', got 'all'"),
            (lambda: wrong(visibility_threshold=float("nan")), "visibility_threshold must be a number, got NaN"),
            (lambda: wrong(indices=torch.zeros(3).long()), r"indices must be int64 \[2\], got shape \[3\]"),
        ],
        **shared,
    )
)
TestOksNmsPadded = contract_tests(
    OpCase(
        name="oks_nms_padded",
        function=ops.oks_nms_padded,
        reference=padded_reference,
        empty=[(lambda device: ops.oks_nms_padded(*nothing(device), 0.5, SIGMAS), [[0], []])],
        **shared,
    )
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("visibility", ["none", "hrnet", "mmpose"])
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.5, 0.9, 1.0, 1.5])
def test_equals_the_published_loop_in_float64(device: str, visibility: str, threshold: float) -> None:
    torch.manual_seed(0)
    for count in (1, 30, 120):
        poses, scores, areas, _ = random_poses(count)
        poses[..., :2] += torch.rand(count, 17, 2)
        poses[::5] = poses[0].clone()  # exact duplicates, of similarity 1
        arguments = [tensor.to(device) for tensor in (poses, scores, areas)]
        kept = ops.oks_nms(*arguments, threshold, SIGMAS, None, visibility, 0.3)
        assert kept.tolist() == published(poses.numpy(), scores.numpy(), areas.numpy(), threshold, visibility)


@pytest.mark.parametrize("device", DEVICES)
def test_one_of_two_duplicates_stays(device: str) -> None:
    torch.manual_seed(0)
    pose, _, _, _ = random_poses(1)
    poses = torch.cat([pose, pose]).to(device)
    scores, areas = torch.tensor([0.5, 0.9], device=device), torch.tensor([900.0, 900.0], device=device)
    assert ops.oks_nms(poses, scores, areas, 0.999, SIGMAS).tolist() == [1]
    assert ops.oks_nms(poses, scores, areas, 1.0, SIGMAS).tolist() == [1, 0]
    apart = torch.tensor([0, 1], device=device)
    assert ops.oks_nms(poses, scores, areas, 0.999, SIGMAS, apart).tolist() == [1, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_scale_changes_nothing(device: str) -> None:
    torch.manual_seed(2)
    poses, scores, areas, groups = (tensor.to(device) for tensor in random_poses(100))
    larger = poses * torch.tensor([4.0, 4.0, 1.0], device=device)
    have = ops.oks_nms(larger, scores, areas * 16, 0.6, SIGMAS, groups)
    assert torch.equal(have, ops.oks_nms(poses, scores, areas, 0.6, SIGMAS, groups))


@pytest.mark.parametrize("device", DEVICES)
def test_the_candidate_decides_which_joints_count_in_hrnet(device: str) -> None:
    poses = torch.zeros(2, 2, 3, device=device)
    poses[1, 1, 0] = 1000  # one joint agrees, one does not
    poses[:, :, 2] = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    scores, areas = torch.tensor([0.9, 0.8], device=device), torch.tensor([100.0, 100.0], device=device)
    assert len(ops.oks_nms(poses, scores, areas, 0.9, [0.1, 0.1], None, "none")) == 2
    assert len(ops.oks_nms(poses, scores, areas, 0.9, [0.1, 0.1], None, "hrnet")) == 1
    assert len(ops.oks_nms(poses, scores.flip(0), areas, 0.9, [0.1, 0.1], None, "hrnet")) == 2
    assert len(ops.oks_nms(poses, scores.flip(0), areas, 0.9, [0.1, 0.1], None, "mmpose")) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_broken_numbers_resemble_nothing(device: str) -> None:
    torch.manual_seed(3)
    pose, _, _, _ = random_poses(1)
    poses = pose.repeat(5, 1, 1)
    poses[1, 16, 0], poses[2, 0, 1] = float("nan"), float("inf")
    scores, areas = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), torch.tensor([900.0, 900, 900, float("nan"), 900])
    kept = ops.oks_nms(poses.to(device), scores.to(device), areas.to(device), 0.95, SIGMAS)
    assert kept.tolist() == [0, 1, 2, 3]
    zero = torch.zeros(5, device=device)  # areas of 0: only equal poses resemble each other
    assert ops.oks_nms(poses.to(device), scores.to(device), zero, 0.95, SIGMAS).tolist() == [0, 1, 2]


@pytest.mark.parametrize("device", DEVICES)
def test_no_joints(device: str) -> None:
    poses, scores, areas = (
        torch.zeros(3, 0, 3, device=device),
        torch.rand(3, device=device),
        torch.ones(3, device=device),
    )
    assert len(ops.oks_nms(poses, scores, areas, 0.5, [])) == 3


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-2, 5)] * 9), max_size=40),
    st.sampled_from([-1.0, 0.0, 1 / 3, 0.5, 1.0, 2.0]),
    st.sampled_from(["none", "hrnet", "mmpose"]),
)
def test_equals_the_reference_on_any_poses(rows: list[tuple[int, ...]], threshold: float, visibility: str) -> None:
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 9)
    poses, scores, areas, groups = table[:, :6].reshape(-1, 2, 3), table[:, 6], table[:, 7] * 8, table[:, 8].long() // 3
    have = ops.oks_nms(poses, scores, areas, threshold, [0.3, 0.2], groups, visibility, 0.0)
    assert torch.equal(have, reference(poses, scores, areas, threshold, [0.3, 0.2], groups, visibility, 0.0))
