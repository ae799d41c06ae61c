"""COCO's ways to write a mask: polygons, run lengths as numbers, and run lengths as a string."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyposeext.errors import InputError
from pyposeext.io.coco_fields import are_finite

Segmentation = list[Any] | dict[str, Any]

# Three points. COCO's own tools would take a list of four numbers for a box.
_SMALLEST_POLYGON = 6


def encode_mask(mask: NDArray[np.uint8] | NDArray[np.bool_]) -> dict[str, Any]:
    """A mask [H, W] of 0 and 1 as {"size": [H, W], "counts": str}, ready for JSON."""
    from faster_coco_eval.core import mask as library

    encoded: dict[str, Any] = library.encode(np.asfortranarray(mask, dtype=np.uint8))
    return _json_ready(encoded)


def encode_segmentation(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """What an annotation or a result holds as its ``segmentation``, as {"size": [height, width], "counts": str}.

    Args:
        segmentation: a list of polygons [x, y, x, y, ...], whose union is the mask, or run lengths of either kind. A
            polygon of fewer than three points encloses nothing.
        height, width: of the image.

    Raises:
        InputError: neither of these, or run lengths of another number of pixels.
    """
    from faster_coco_eval.core import mask as library

    check_segmentation(segmentation, height, width)
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= _SMALLEST_POLYGON]
        if not polygons:
            return encode_mask(np.zeros((height, width), np.uint8))
        return _json_ready(library.merge(library.frPyObjects(polygons, height, width)))
    if isinstance(segmentation["counts"], list):
        return _json_ready(library.frPyObjects(segmentation, height, width))
    return _json_ready(segmentation)


def check_segmentation(segmentation: Any, height: int, width: int) -> None:
    """Raises the InputError of `encode_segmentation`, without the work."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2 or not are_finite(polygon):
                raise InputError("segmentation must hold polygons of finite numbers, x and y in turn")
        return
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise InputError(f"segmentation must be polygons or run lengths, got {type(segmentation).__name__}")
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise InputError(f"segmentation must be of an image of {[height, width]}, got {size}")
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts):
            raise InputError("segmentation must have runs that are whole numbers from 0 on")
        if sum(counts) != height * width:
            raise InputError(f"segmentation must have runs over {height * width} pixels, got another sum")
        return
    if not isinstance(counts, str | bytes):
        raise InputError(f"segmentation must have counts, got {type(counts).__name__}")
    from faster_coco_eval.core import mask as library

    try:
        library.area(segmentation)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"segmentation must be run lengths of an image of {[height, width]}: {error}") from error


def decode_segmentation(segmentation: Segmentation, height: int, width: int) -> NDArray[np.uint8]:
    """The mask [height, width] of 0 and 1 that `encode_segmentation` would write."""
    from faster_coco_eval.core import mask as library

    encoded = encode_segmentation(segmentation, height, width)
    try:
        mask: NDArray[np.uint8] = library.decode(encoded)
    except ValueError as error:  # runs that end before the image does
        raise InputError(f"segmentation must be run lengths of an image of {[height, width]}: {error}") from error
    return np.ascontiguousarray(mask)


def mask_area(encoded: Mapping[str, Any]) -> int:
    """How many pixels are set in run lengths that `encode_segmentation` gives."""
    from faster_coco_eval.core import mask as library

    return int(library.area(dict(encoded)))


def _json_ready(encoded: dict[str, Any]) -> dict[str, Any]:
    counts = encoded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in encoded["size"]], "counts": text}
