"""COCO's encodings of masks, one into another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyposeext.errors import InputError
from pyposeext.io.rle import decode_segmentation, encode_mask, encode_segmentation, mask_area


def test_there_and_back() -> None:
    mask = np.random.default_rng(0).random((37, 23)) < 0.4
    encoded = encode_mask(mask)
    assert encoded["size"] == [37, 23]
    assert isinstance(encoded["counts"], str)
    assert np.array_equal(decode_segmentation(encoded, 37, 23), mask)
    assert decode_segmentation(encoded, 37, 23).dtype == np.uint8
    assert mask_area(encoded) == mask.sum()
    bytes_counts = {**encoded, "counts": encoded["counts"].encode()}
    assert encode_segmentation(bytes_counts, 37, 23) == encoded


def test_runs_as_numbers_go_down_the_columns() -> None:
    runs = {"size": [3, 4], "counts": [1, 2, 4, 1, 4]}
    expected = [[0, 0, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]]
    assert decode_segmentation(runs, 3, 4).tolist() == expected


def test_polygons_are_joined() -> None:
    squares = [[1, 1, 3, 1, 3, 3, 1, 3], [2, 2, 5, 2, 5, 5, 2, 5]]
    expected = np.zeros((6, 7), np.uint8)
    expected[1:3, 1:3] = 1
    expected[2:5, 2:5] = 1
    assert np.array_equal(decode_segmentation(squares, 6, 7), expected)
    assert not decode_segmentation([], 6, 7).any()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3]], "polygons of three or more points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "x and y in turn"),
        ({"size": [6, 7]}, "polygons or run lengths, got dict"),
        ({"size": [7, 6], "counts": [42]}, r"of an image of \[6, 7\], got \[7, 6\]"),
        ({"size": [6, 7], "counts": [41]}, "runs over 42 pixels"),
        ({"size": [6, 7], "counts": 3}, "have counts, got int"),
        ({"size": [6, 7], "counts": "0"}, r"run lengths of an image of \[6, 7\]"),
        ({"size": [6, 7], "counts": "garbage!!~~~"}, r"run lengths of an image of \[6, 7\]"),
        (None, "polygons or run lengths, got NoneType"),
    ],
)
def test_anything_else_is_refused(segmentation: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"segmentation must .*{message}"):
        decode_segmentation(segmentation, 6, 7)
