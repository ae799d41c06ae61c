"""Small checks of what stands in the fields of COCO's files, fast: some have 100,000s of entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pyposeext.errors import InputError


def check_numbers(name: str, values: Any, count: int) -> None:
    """Raises an InputError, beginning with `name`, where `values` are not so many finite numbers."""
    if not isinstance(values, Sequence) or len(values) != count:
        got = f"{len(values)}" if isinstance(values, list | tuple) else repr(values)
        raise InputError(f"{name} must be {count} numbers, got {got}")
    if not are_finite(values):
        raise InputError(f"{name} must be {count} finite numbers, got {str(list(values))[:80]}")


def are_finite(values: Sequence[Any]) -> bool:
    """Whether all are finite numbers."""
    # One sum is NaN or infinite where a number is.
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def is_whole(value: Any) -> bool:
    """Whether a value can be an id: a whole number, 1.0 for 1 too, as in COCO's own tools."""
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
