"""PCK and PCKh against values computed by hand, mmpose's published test, and HRNet's way to compute them."""

from __future__ import annotations

import numpy as np
import pytest

from pyposeext.errors import InputError
from pyposeext.metrics import PCK, PCKh, box_size, head_size, torso_size


def visible(points: list[list[list[float]]], mask: list[bool]) -> np.ndarray:
    array = np.array(points, dtype=float)
    flags = np.broadcast_to(np.where(mask, 2.0, 0.0), array.shape[:2])
    return np.concatenate([array, flags[:, :, None]], axis=2)


PREDICTED = np.array([[[10, 0], [20, 20], [0, 0], [30, 30], [0, 10]], np.zeros((5, 2))])
TRUTH = visible(
    [[[10, 0], [10, 10], [-1, 0], [30, 30], [0, 10]], np.zeros((5, 2)).tolist()], [True, True, False, True, True]
)


def test_mmpose_example() -> None:
    metric = PCK(0.5, strict=True, pooling="joints")
    metric.update(PREDICTED, TRUTH, [10, 10])
    result = metric.compute()
    assert result["overall"] == pytest.approx(0.875)
    assert result["joints"] == pytest.approx([1, 0.5, float("nan"), 1, 1], nan_ok=True)


def test_people_without_a_size_do_not_count() -> None:
    metric = PCK(0.5, strict=True, pooling="joints")
    metric.update(PREDICTED, TRUTH, [0, 10])
    result = metric.compute()
    assert result["overall"] == 1
    assert result["count"] == 4
    nobody = PCK()
    nobody.update(PREDICTED, TRUTH, [0, 0])
    assert np.isnan(nobody.compute()["overall"])


@pytest.mark.parametrize(("strict", "expected"), [(False, [1, 1, 0]), (True, [1, 0, 0])])
def test_the_threshold_itself(strict: bool, expected: list[int]) -> None:
    metric = PCK(0.2, strict=strict)
    predicted = np.array([[[19.999, 0], [20, 0], [20.001, 0]]])
    metric.update(predicted, visible([[[0, 0]] * 3], [True] * 3), box_size([[0, 0, 40, 100]]))
    assert metric.compute()["joints"] == expected


def test_poolings_differ_as_they_should() -> None:
    # Sequence a: joint 0 hit twice, joint 1 missed once. Sequence b: joint 0 missed once.
    truth_a = visible([[[0, 0], [0, 0]], [[0, 0], [0, 0]]], [True, True])
    truth_a[1, 1, 2] = 0
    truth_b = visible([[[0, 0], [0, 0]]], [True, False])
    expected = {"all": 2 / 4, "joints": (2 / 3 + 0) / 2, "sequences": (0.5 + 0) / 2}
    for pooling, value in expected.items():
        metric = PCK(0.2, pooling=pooling)  # type: ignore[arg-type]
        metric.update([[[0, 0], [9, 9]], [[0, 0], [9, 9]]], truth_a, [10, 10], sequence="a")
        metric.update([[[9, 9], [9, 9]]], truth_b, [10], sequence="b")
        assert metric.compute()["overall"] == pytest.approx(value), pooling


def test_the_area_under_mmposes_curve() -> None:
    # The example of its test of keypoint_auc: 0.375 for a normaliser of 20 and the thresholds 0, 1/4, 1/2, 3/4.
    predicted = np.array([[[10, 4], [10, 18], [0, 0], [40, 40], [20, 10]]], float)
    truth = visible([[[10, 0], [10, 10], [0, -1], [30, 30], [0, 10]]], [True, True, False, True, True])
    shares = [0.0]  # nothing is nearer than 0
    for threshold in (0.25, 0.5, 0.75):
        metric = PCK(threshold, strict=True)
        metric.update(predicted, truth, [20])
        shares.append(metric.compute()["overall"])  # type: ignore[arg-type]
    assert np.mean(shares) == 0.375


def test_merging_equals_updating_one_object() -> None:
    generator = np.random.default_rng(0)
    predicted, truth = generator.uniform(0, 50, (20, 6, 2)), generator.uniform(0, 50, (20, 6, 3))
    truth[:, :, 2] = generator.integers(0, 3, (20, 6))
    sizes = generator.uniform(20, 200, 20)
    whole, first, second = PCK(), PCK(), PCK()
    whole.update(predicted, truth, sizes)
    first.update(predicted[:7], truth[:7], sizes[:7])
    second.update(predicted[7:], truth[7:], sizes[7:])
    first.merge(second)
    assert first.compute() == whole.compute()
    with pytest.raises(InputError, match="same threshold"):
        first.merge(PCK(0.1))


def test_sizes() -> None:
    assert box_size([[0, 0, 40, 100], [5, 5, 25, 10]]).tolist() == [100, 20]
    assert head_size([[0, 0, 30, 40]]) == pytest.approx([30])
    truth = visible([[[0, 0], [3, 4]], [[0, 0], [0.1, 0]], [[0, 0], [3, 4]]], [True, True])
    truth[2, 1, 2] = 0
    assert torso_size(truth, 0, 1) == pytest.approx([5, 0.1, 0])
    assert torso_size(truth, 0, 1, predicted=[[[0, 0], [6, 8]]] * 3) == pytest.approx([5, 10, 0])


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"truth must be \[N, K, 3\]"):
        PCK().update(PREDICTED, PREDICTED, [1, 1])
    with pytest.raises(InputError, match=r"sizes must be \[2\]"):
        PCK().update(PREDICTED, TRUTH, [1])
    with pytest.raises(InputError, match="threshold must be positive"):
        PCK(0)


HEAD = [0, 0, 30, 40]  # diagonal 50, size 30


def mpii_people(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, truth and head boxes of people some of whose joints are near and some missing."""
    generator = np.random.default_rng(seed)
    truth = generator.uniform(0, 300, (count, 16, 3))
    truth[:, :, 2] = generator.integers(0, 3, (count, 16))
    predicted = truth[:, :, :2] + generator.normal(0, 12, (count, 16, 2))
    corners = generator.uniform(0, 100, (count, 2))
    return predicted, truth, np.concatenate([corners, corners + generator.uniform(10, 60, (count, 2))], axis=1)


def published_pckh(predicted: np.ndarray, truth: np.ndarray, heads: np.ndarray) -> dict[str, float]:
    """HRNet's computation, with arrays in MPII's order [16, 2, N] and pixels from 1; groups by joint numbers."""
    positions, found = (array[:, :, :2].transpose(1, 2, 0) + 1.0 for array in (truth, predicted))
    present = (truth[:, :, 2] > 0).T.astype(float)
    sizes = np.linalg.norm(heads[:, 2:] - heads[:, :2], axis=1) * 0.6
    errors = np.linalg.norm(found - positions, axis=1) / sizes * present
    counts = present.sum(1)

    def shares(threshold: float) -> np.ndarray:
        return ((errors <= threshold) * present).sum(1) / counts

    weights = np.where(np.isin(np.arange(16), [6, 7]), 0, counts)
    weights /= weights.sum()
    half, grid = shares(0.5), np.arange(0, 0.5 + 0.01, 0.01)
    pairs = {"shoulder": (12, 13), "elbow": (11, 14), "wrist": (10, 15), "hip": (2, 3), "knee": (1, 4), "ankle": (0, 5)}
    return {
        "head": half[9],
        **{name: 0.5 * (half[a] + half[b]) for name, (a, b) in pairs.items()},
        "mean": (half * weights).sum(),
        "exact": (shares(grid[10]) * weights).sum(),
        "published": (shares(grid[11]) * weights).sum(),
    }


def test_pckh_is_the_published_one() -> None:
    predicted, truth, heads = mpii_people(40)
    expected = published_pckh(predicted, truth, heads)
    assert expected["exact"] != expected["published"]
    for tenth in ("exact", "published"):
        metric = PCKh(tenth=tenth)  # type: ignore[arg-type]
        metric.update(predicted, truth, heads)
        result = metric.compute()
        assert result["mean@0.1"] == pytest.approx(expected[tenth], abs=1e-12)
        for name, value in expected.items():
            if name not in ("exact", "published"):
                assert result[name] == pytest.approx(value, abs=1e-12), name
    others = [joint for joint in range(16) if joint not in (6, 7)]
    assert result["count"] == (truth[:, others, 2] > 0).sum()


def test_pckh_counts_pixels_from_one_where_the_truth_does() -> None:
    predicted, truth, heads = mpii_people(10)
    from_one = truth + np.array([1, 1, 0])
    metric, moved, wrong = PCKh(), PCKh(), PCKh()
    metric.update(predicted, truth, heads)
    moved.update(predicted, from_one, heads, origin=1)
    wrong.update(predicted, from_one, heads)
    assert moved.compute() == metric.compute()
    assert wrong.compute() != metric.compute()


def test_pckh_by_hand() -> None:
    truth = np.zeros((1, 16, 3))
    truth[..., 2] = 1
    predicted = np.zeros((1, 16, 2))
    # Size 30: 15 pixels are 0.5, 3 are 0.1, 3.2 lie between 0.1 and 0.11.
    predicted[0, 9], predicted[0, 12], predicted[0, 10], predicted[0, 0] = [9, 12], [15.01, 0], [3, 0], [3.2, 0]
    predicted[0, 6] = predicted[0, 7] = 1000
    truth[0, 5, 2] = 0
    results = {}
    for options in ({}, {"tenth": "published"}, {"strict": True}):
        metric = PCKh(**options)  # type: ignore[arg-type]
        metric.update(predicted, truth, [HEAD])
        results[str(options)] = metric.compute()
    exact, published, strict = results.values()
    assert (exact["head"], exact["shoulder"], exact["wrist"]) == (1, 0.5, 1)
    assert np.isnan(exact["ankle"])  # type: ignore[arg-type]
    assert (exact["mean"], exact["count"]) == (12 / 13, 13)
    assert (exact["mean@0.1"], published["mean@0.1"], strict["mean@0.1"]) == (10 / 13, 11 / 13, 9 / 13)
    assert (strict["head"], strict["mean"]) == (0, 11 / 13)
    assert exact["joints"][6:8] == [0, 0]  # type: ignore[index]


def test_pckh_merges_and_begins_with_nothing() -> None:
    predicted, truth, heads = mpii_people(12)
    whole, first, second = PCKh(), PCKh(), PCKh()
    empty = whole.compute()
    assert np.isnan(empty["mean"])  # type: ignore[arg-type]
    assert empty["count"] == 0
    whole.update(predicted, truth, heads)
    first.update(predicted[:5], truth[:5], heads[:5])
    second.update(predicted[5:], truth[5:], heads[5:])
    first.merge(second)
    assert first.compute() == whole.compute()
    # Nobody, and somebody without a head, change nothing.
    first.update(np.zeros((0, 16, 2)), np.zeros((0, 16, 3)), np.zeros((0, 4)))
    first.update(predicted[:1], truth[:1], [[5, 5, 5, 5]])
    assert first.compute() == whole.compute()
    with pytest.raises(InputError, match="same threshold, strict and tenth"):
        first.merge(PCKh(tenth="published"))


def test_pckh_refuses_what_does_not_fit() -> None:
    predicted, truth, heads = mpii_people(2)
    for arguments, sentence in (
        ((predicted, truth[:, :14], heads), r"truth must be \[N, 16, 3\], got \[2, 14, 3\]"),
        ((predicted, truth, heads[:, :3]), r"head_boxes must be \[N, 4\], got \[2, 3\]"),
        ((predicted[:1], truth, heads), r"predicted must be \[N, K, 2 or more\]"),
        ((predicted, truth, heads[:1]), r"sizes must be \[2\]"),
        ((predicted, truth, heads, 2), "origin must be 0 or 1, got 2"),
    ):
        with pytest.raises(InputError, match=sentence):
            PCKh().update(*arguments)
    with pytest.raises(InputError, match="threshold must be positive"):
        PCKh(0)
    with pytest.raises(InputError, match="tenth must be 'exact' or 'published', got 'both'"):
        PCKh(tenth="both")  # type: ignore[arg-type]
