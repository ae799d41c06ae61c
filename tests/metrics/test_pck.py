"""PCK against computed by hand and values of mmpose's published test."""

from __future__ import annotations

import numpy as np
import pytest

from pyposeext.errors import InputError
from pyposeext.metrics import PCK, box_size, head_size, torso_size


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
