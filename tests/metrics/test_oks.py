"""OKS against a value that pycocotools gives."""

from __future__ import annotations

import numpy as np
import pytest

from pyposeext.errors import InputError
from pyposeext.metrics import MeanOKS, oks, oks_matrix
from pyposeext.skeletons import COCO17

JOINT = np.arange(17)
VISIBILITY = np.array([2, 1, 2, 0, 0, 2, 2, 2, 1, 2, 2, 2, 2, 0, 2, 2, 2])
TRUTH = np.stack([100 + 7 * JOINT, 50 + 5 * (JOINT % 6), VISIBILITY], axis=1).astype(float)[None]
PREDICTED = TRUTH[:, :, :2] + np.stack([JOINT % 4, -(JOINT % 3)], axis=1)


def test_reference_value() -> None:
    value = oks(PREDICTED, TRUTH, [5000], [[90, 40, 230, 90]], COCO17.sigmas)
    assert value[0] == pytest.approx(0.9588324479067121, abs=1e-14)


def test_without_labels_the_enlarged_box_counts() -> None:
    bare = np.zeros((1, 17, 3))
    inside = np.full((1, 17, 2), [35.0, 15.0])  # the box 10..20, enlarged by its width, ends at 30
    inside[..., 0] = 29
    box = [[10, 10, 20, 20]]
    assert oks(inside, bare, [100], box, COCO17.sigmas)[0] == 1
    outside = inside.copy()
    outside[..., 0] = 33
    expected = np.mean(np.exp(-(3.0**2) / (2 * np.array(COCO17.sigmas)) ** 2 / 100 / 2))
    assert oks(outside, bare, [100], box, COCO17.sigmas)[0] == pytest.approx(expected)


def test_matrix_holds_every_pair() -> None:
    both = np.concatenate([TRUTH, TRUTH + np.array([30, 0, 0])])
    matrix = oks_matrix(both, both, [5000, 5000], [[0, 0, 1, 1]] * 2, COCO17.sigmas)
    assert matrix[0, 0] == matrix[1, 1] == 1
    assert matrix[0, 1] == pytest.approx(matrix[1, 0])
    assert matrix[0, 1] < 0.9


def test_mean_merges() -> None:
    box = [[90, 40, 230, 90]]
    first, second = MeanOKS(COCO17.sigmas), MeanOKS(COCO17.sigmas)
    first.update(PREDICTED, TRUTH, [5000], box)
    second.update(TRUTH, TRUTH, [5000], box)
    second.update(TRUTH, np.zeros((1, 17, 3)), [5000], box)  # nobody labelled: not counted
    first.merge(second)
    result = first.compute()
    assert result["count"] == 2
    assert result["mean"] == pytest.approx((0.9588324479067121 + 1) / 2)
    assert result["at_0.75"] == 1


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"truth must be \[G, 17, 3\]"):
        oks_matrix(PREDICTED, PREDICTED, [1], [[0, 0, 1, 1]], COCO17.sigmas)
    with pytest.raises(InputError, match="one row per person"):
        oks(np.concatenate([PREDICTED] * 2), TRUTH, [1], [[0, 0, 1, 1]], COCO17.sigmas)
