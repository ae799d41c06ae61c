"""Which person now is which person before: one-to-one pairs from a cost matrix [P, C]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def assign_hungarian(cost: NDArray[np.floating[Any]], maximum_cost: float | None = None) -> Pairs:
    """Pairs (rows, columns) of the least total cost.

    Without `maximum_cost` as many pairs are made as fit, at any cost. With it, a pair that costs more is never made,
    and leaving two people unpaired costs as much as pairing them at the maximum.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    if maximum_cost is not None:
        cost = np.minimum(cost, maximum_cost + 1e-6)
    rows, columns = linear_sum_assignment(cost)
    if maximum_cost is not None:
        near = cost[rows, columns] <= maximum_cost
        rows, columns = rows[near], columns[near]
    return rows, columns


def assign_greedy(cost: NDArray[np.floating[Any]], maximum_cost: float | None = None) -> Pairs:
    """Pairs (rows, columns), the cheapest first; of equal costs the first in row-major order.

    A pair that costs more than `maximum_cost` is not made.
    """
    row_free = np.ones(cost.shape[0], dtype=bool)
    column_free = np.ones(cost.shape[1], dtype=bool)
    pairs = []
    for flat in np.argsort(cost, axis=None, kind="stable").tolist():
        row, column = divmod(flat, cost.shape[1])
        if maximum_cost is not None and cost[row, column] > maximum_cost:
            break
        if row_free[row] and column_free[column]:
            row_free[row] = column_free[column] = False
            pairs.append((row, column))
            if len(pairs) == min(cost.shape):
                break
    found = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


ASSIGNMENTS: dict[str, Callable[..., Pairs]] = {"hungarian": assign_hungarian, "greedy": assign_greedy}
