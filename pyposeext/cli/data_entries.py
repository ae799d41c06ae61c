"""How labelled data is named on the command line: ANNOTATIONS.json:IMAGES, or a data set's name and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyposeext.errors import InputError

if TYPE_CHECKING:
    from pyposeext.datasets import CocoKeypoints, ImageDataset

_FORMS = "ANNOTATIONS.json:IMAGES, mpii:ANNOTATIONS.json:IMAGES, lsp:ROOT or lsp_extended:ROOT"


def open_weighted(entries: Sequence[str], **options: Any) -> tuple[list[ImageDataset], list[float]]:
    """The data sets of entries that may end in :WEIGHT, and those weights (1 where there is none)."""
    datasets, weights = [], []
    for entry in entries:
        parts = entry.split(":")
        weight = "1"
        if len(parts) > _length(parts):
            *parts, weight = parts
        try:
            weights.append(float(weight))
        except ValueError:
            raise InputError(f"data: the weight in {entry!r} must be a number, got {weight!r}") from None
        datasets.append(_open(entry, parts, options))
    return datasets, weights


def open_coco(entry: str) -> CocoKeypoints:
    """The file in COCO's layout that an ANNOTATIONS.json:IMAGES entry names, to measure with."""
    from pyposeext.datasets import CocoKeypoints

    dataset = _open(entry, entry.split(":"), {})
    if not isinstance(dataset, CocoKeypoints):
        raise InputError(f"data must be ANNOTATIONS.json:IMAGES in COCO's layout here, got {entry!r}")
    return dataset


def coco_options(model: Any) -> dict[str, Any]:
    """What an R-CNN needs of a file in COCO's layout: masks for a mask branch, all categories for many classes."""
    options: dict[str, Any] = {"masks": model.has_masks}
    if model.num_classes > 2:
        options["categories"] = "all"
    return options


def _length(parts: Sequence[str]) -> int:
    """How many parts an entry that begins so has, without its weight."""
    return {"lsp": 2, "lsp_extended": 2, "mpii": 3}.get(parts[0], 2)


def _open(entry: str, parts: Sequence[str], options: dict[str, Any]) -> ImageDataset:
    from pyposeext.datasets import CocoKeypoints, list_datasets, open_dataset

    if len(parts) != _length(parts):
        raise InputError(f"data must be {_FORMS}, got {entry!r}")
    if parts[0] not in list_datasets() or parts[0] == "coco":
        return CocoKeypoints(parts[0], parts[1], **options)
    if parts[0] == "mpii":
        return open_dataset("mpii", annotations=parts[1], images=parts[2])
    return open_dataset(parts[0], root=parts[1])
