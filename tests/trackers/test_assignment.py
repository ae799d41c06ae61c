"""Pairs from costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pyposeext.trackers.assignment import assign_greedy, assign_hungarian

BOTH = pytest.mark.parametrize("assign", [assign_hungarian, assign_greedy])


def total(cost, pairs):
    return float(cost[pairs].sum())


def test_hungarian_is_the_least_of_all():
    cost = np.random.default_rng(0).uniform(0, 1, (4, 5))
    least = min(
        sum(cost[row, column] for row, column in enumerate(columns)) for columns in itertools.permutations(range(5), 4)
    )
    assert total(cost, assign_hungarian(cost)) == pytest.approx(least)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (20, 20)])
def test_hungarian_costs_at_most_what_greedy_does(shape):
    rng = np.random.default_rng(1)
    for _ in range(20):
        cost = rng.uniform(0, 1, shape)
        hungarian, greedy = assign_hungarian(cost), assign_greedy(cost)
        assert len(hungarian[0]) == len(greedy[0]) == min(shape)
        assert total(cost, hungarian) <= total(cost, greedy) + 1e-12


def test_greedy_takes_the_cheapest_first_and_ties_in_order():
    rows, columns = assign_greedy(np.array([[0.3, 0.1], [0.2, 0.0]]))
    assert list(zip(rows, columns, strict=True)) == [(0, 0), (1, 1)]
    rows, columns = assign_greedy(np.full((3, 2), 0.5))
    assert list(zip(rows, columns, strict=True)) == [(0, 0), (1, 1)]


@BOTH
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_nobody_gives_no_pairs(assign, shape):
    for maximum in (None, 0.5):
        rows, columns = assign(np.zeros(shape), maximum)
        assert len(rows) == len(columns) == 0


@BOTH
def test_the_maximum_forbids_pairs(assign):
    cost = np.array([[0.9, 0.2], [0.8, 0.9]])
    rows, columns = assign(cost, 0.5)
    assert (rows.tolist(), columns.tolist()) == ([0], [1])
    assert len(assign(cost)[0]) == 2


def test_a_forbidden_pair_does_not_push_a_good_one_aside():
    # Ungated, the diagonal is cheapest in total; its second pair is forbidden, so the good off-diagonal one is taken.
    cost = np.array([[0.4, 0.1], [3.0, 2.8]])
    rows, columns = assign_hungarian(cost, 0.5)
    assert (rows.tolist(), columns.tolist()) == ([0], [1])
