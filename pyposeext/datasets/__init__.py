"""Labelled images by name: `open_dataset("coco", annotations=..., images=...)`, `list_datasets()`.

One file per data set. Each class indexes without decoding, gives one `Sample` at a time, and says its licence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyposeext.datasets.coco import CocoKeypoints
from pyposeext.datasets.lsp import LeedsSports, LeedsSportsExtended
from pyposeext.datasets.mpii import MpiiPose, MpiiTruth, read_mpii_truth
from pyposeext.datasets.sample import ImageDataset, Sample
from pyposeext.errors import InputError

__all__ = [
    "CocoKeypoints",
    "ImageDataset",
    "LeedsSports",
    "LeedsSportsExtended",
    "MpiiPose",
    "MpiiTruth",
    "Sample",
    "list_datasets",
    "open_dataset",
    "read_mpii_truth",
]

_DATASETS: dict[str, Callable[..., ImageDataset]] = {
    "coco": CocoKeypoints,
    "lsp": LeedsSports,
    "lsp_extended": LeedsSportsExtended,
    "mpii": MpiiPose,
}


def list_datasets() -> list[str]:
    """The names `open_dataset` knows."""
    return sorted(_DATASETS)


def open_dataset(name: str, **arguments: Any) -> ImageDataset:
    """The data set of that name; `arguments` are those of its class (a root folder, or annotations and images)."""
    if name not in _DATASETS:
        raise InputError(f"dataset must be one of {', '.join(list_datasets())}, got {name!r}")
    return _DATASETS[name](**arguments)
