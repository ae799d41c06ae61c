"""How labelled data is named on the command line: ANNOTATIONS.json:IMAGES, or a data set's name and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyposeext.errors import InputError

if TYPE_CHECKING:
    from pyposeext.datasets import CocoKeypoints, ImageDataset

_FORMS = "ANNOTATIONS.json:IMAGES, mpii:ANNOTATIONS.json:IMAGES, lsp:ROOT or lsp_extended:ROOT"
# How many parts the entries of data sets that are named have, without their weight.
_PREFIXES = {"lsp": 2, "lsp_extended": 2, "mpii": 3}


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


def open_to_measure(entry: str) -> ImageDataset:
    """The data set of an entry without a weight; LSP's is the test split."""
    parts = entry.split(":")
    if parts[0] == "lsp" and len(parts) == 2:
        from pyposeext.datasets import open_dataset

        return open_dataset("lsp", root=parts[1], split="test")
    return _open(entry, parts, {})


def open_coco(entry: str) -> CocoKeypoints:
    """The file in COCO's layout of an ANNOTATIONS.json:IMAGES entry."""
    from pyposeext.datasets import CocoKeypoints

    dataset = open_to_measure(entry)
    if not isinstance(dataset, CocoKeypoints):
        raise InputError(f"data must be ANNOTATIONS.json:IMAGES in COCO's layout here, got {entry!r}")
    return dataset


def located(entry: str) -> str:
    """The entry with its paths in full: it names the same files from whatever folder it was given in."""
    return ":".join(
        str(Path(part).resolve()) if part not in _PREFIXES and Path(part).exists() else part
        for part in entry.split(":")
    )


def coco_options(model: Any) -> dict[str, Any]:
    """What an R-CNN needs of a file in COCO's layout: masks for a mask branch, all categories for many classes."""
    options: dict[str, Any] = {"masks": model.has_masks}
    if model.num_classes > 2:
        options["categories"] = "all"
    return options


def _length(parts: Sequence[str]) -> int:
    """How many parts an entry that begins so has, without its weight."""
    return _PREFIXES.get(parts[0], 2)


def _open(entry: str, parts: Sequence[str], options: dict[str, Any]) -> ImageDataset:
    from pyposeext.datasets import CocoKeypoints, list_datasets, open_dataset

    if len(parts) != _length(parts):
        raise InputError(f"data must be {_FORMS}, got {entry!r}")
    if parts[0] not in list_datasets() or parts[0] == "coco":
        return CocoKeypoints(parts[0], parts[1], **options)
    if parts[0] == "mpii":
        return open_dataset("mpii", annotations=parts[1], images=parts[2])
    return open_dataset(parts[0], root=parts[1])
