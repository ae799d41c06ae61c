"""COCO's ways to write a mask: polygons, run lengths as numbers, and run lengths as a string."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyposeext.errors import InputError

Segmentation = list[Any] | dict[str, Any]


def encode_mask(mask: NDArray[np.uint8] | NDArray[np.bool_]) -> dict[str, Any]:
    """A mask [H, W] of 0 and 1 as {"size": [H, W], "counts": str}, ready for JSON."""
    from faster_coco_eval.core import mask as library

    encoded: dict[str, Any] = library.encode(np.asfortranarray(mask, dtype=np.uint8))
    return _json_ready(encoded)


def encode_segmentation(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """What an annotation or a result holds as its ``segmentation``, as {"size": [height, width], "counts": str}.

    Args:
        segmentation: a list of polygons [x, y, x, y, ...], whose union is the mask, or run lengths of either kind.
        height, width: of the image.

    Raises:
        InputError: neither of these, or run lengths of an image of another size.
    """
    from faster_coco_eval.core import mask as library

    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if isinstance(polygon, list) and len(polygon) >= 6]
        if len(polygons) < len(segmentation) or any(len(polygon) % 2 for polygon in polygons):
            raise InputError("segmentation must hold polygons of three or more points, x and y in turn")
        if not polygons:
            return encode_mask(np.zeros((height, width), np.uint8))
        return _json_ready(library.merge(library.frPyObjects(polygons, height, width)))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise InputError(f"segmentation must be polygons or run lengths, got {type(segmentation).__name__}")
    if list(segmentation["size"]) != [height, width]:
        raise InputError(f"segmentation must be of an image of {[height, width]}, got {list(segmentation['size'])}")
    if isinstance(segmentation["counts"], list):
        if sum(segmentation["counts"]) != height * width:
            raise InputError(f"segmentation must have runs over {height * width} pixels, got another sum")
        return _json_ready(library.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation["counts"], str | bytes):
        raise InputError(f"segmentation must have counts, got {type(segmentation['counts']).__name__}")
    try:
        library.area(segmentation)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"segmentation must be run lengths of an image of {[height, width]}: {error}") from error
    return _json_ready(segmentation)


def decode_segmentation(segmentation: Segmentation, height: int, width: int) -> NDArray[np.uint8]:
    """The mask [height, width] of 0 and 1 that `encode_segmentation` would write."""
    from faster_coco_eval.core import mask as library

    encoded = encode_segmentation(segmentation, height, width)
    try:
        mask: NDArray[np.uint8] = library.decode(encoded)
    except ValueError as error:  # runs that end before the image does
        raise InputError(f"segmentation must be run lengths of an image of {[height, width]}: {error}") from error
    return np.ascontiguousarray(mask)


def mask_area(encoded: dict[str, Any]) -> float:
    """How many pixels are set in run lengths that `encode_segmentation` gives."""
    from faster_coco_eval.core import mask as library

    return float(library.area(encoded))


def _json_ready(encoded: dict[str, Any]) -> dict[str, Any]:
    counts = encoded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in encoded["size"]], "counts": text}
