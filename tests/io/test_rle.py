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


def test_what_has_fewer_than_three_points_encloses_nothing() -> None:
    square = [1, 1, 3, 1, 3, 3, 1, 3]
    for nothing in ([[]], [[1, 1, 5, 5]], [[], [2, 2]]):
        assert not decode_segmentation(nothing, 6, 7).any()
        assert encode_segmentation([*nothing, square], 6, 7) == encode_segmentation([square], 6, 7)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3]], "polygons of finite numbers, x and y in turn"),
        ([["a", "b", "c", "d", "e", "f"]], "polygons of finite numbers"),
        ([[float("nan")] * 6], "polygons of finite numbers"),
        (["round"], "polygons of finite numbers"),
        ({"size": [6, 7], "counts": [-5, 47]}, "runs that are whole numbers from 0 on"),
        ({"size": [6, 7], "counts": [10**12]}, "runs over 42 pixels"),
        ({"size": [6, 7], "counts": ["42"]}, "runs that are whole numbers"),
        ({"size": 42, "counts": [42]}, r"of an image of \[6, 7\], got 42"),
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
