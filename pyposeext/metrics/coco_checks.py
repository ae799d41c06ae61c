"""What a COCO truth and a line of a results file must hold before anything is measured with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyposeext.errors import InputError
from pyposeext.io.coco_fields import are_finite, check_numbers, is_whole
from pyposeext.io.rle import encode_segmentation

# COCO's people have so many joints, where no OKS constants say otherwise.
COCO_JOINTS = 17


def read_truth(truth: str | Path | dict[str, Any]) -> dict[str, Any]:
    """The content of a truth, which may be a file, with COCO's lists.

    Raises:
        InputError: no such file, no JSON, or a list is missing.
    """
    content = truth
    if not isinstance(truth, dict):
        try:
            content = json.loads(Path(truth).read_text())
        except OSError as error:
            raise InputError(f"truth {str(truth)!r} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise InputError(f"truth {str(truth)!r} is not a JSON file: {error}") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"truth must hold COCO's lists images, annotations and categories, but {key} is none")
    assert isinstance(content, dict)
    return content


def checked_truth(content: dict[str, Any], kind: str, category_id: int | None, joints: int) -> dict[str, Any]:
    """The truth, its masks as run lengths where masks are measured.

    Args:
        content: with COCO's lists.
        kind: "boxes", "masks" or "keypoints".
        category_id: annotations of this category alone count; None: all.
        joints: 0 for COCO's 17.

    Raises:
        InputError: an image or an annotation that cannot be measured against; the sentence names it.
    """
    for index, image in enumerate(content["images"]):
        if not is_whole(image.get("id")):
            raise InputError(f"truth: image {index} must have an id, a whole number, got {image.get('id')!r}")
        size = (image.get("height"), image.get("width"))
        if kind == "masks" and not all(is_whole(side) and side > 0 for side in size):
            raise InputError(f"truth: image {image['id']} must have height and width for masks, got {size}")
    seen: set[int] = set()
    for index, annotation in enumerate(content["annotations"]):
        for key in ("id", "image_id", "category_id"):
            if not is_whole(annotation.get(key)):
                raise InputError(
                    f"truth: annotation {index} in the list must have {key}, a whole number, "
                    f"got {annotation.get(key)!r}"
                )
        number = annotation["id"]
        if number in seen:
            raise InputError(f"truth: annotations must each have their own id, but {number} comes twice")
        seen.add(number)
        if category_id is None or annotation["category_id"] == category_id:
            _check_annotation(annotation, kind, joints or COCO_JOINTS)
    if kind == "masks":
        return {**content, "annotations": _with_run_lengths(content, category_id)}
    return content


def check_result(number: int, row: Any, key: str, images: dict[int, Any], joints: int) -> None:
    """Raises an InputError that names result `number` where it cannot be measured.

    Args:
        number: in its list.
        row: of a results file.
        key: "bbox", "segmentation" (which is not looked into) or "keypoints".
        images: the truth's, by id.
        joints: 0 for COCO's 17.
    """
    needed = ("image_id", "category_id", "score", key)
    missing = [name for name in needed if not isinstance(row, dict) or name not in row]
    if missing:
        raise InputError(f"result {number} must hold {', '.join(needed)}, but has no {missing[0]}")
    if not is_whole(row["image_id"]) or row["image_id"] not in images:
        raise InputError(f"result {number}: image_id must be one of the ground truth's, got {row['image_id']!r}")
    if not is_whole(row["category_id"]):
        raise InputError(f"result {number}: category_id must be a whole number, got {row['category_id']!r}")
    if not are_finite([row["score"]]):
        raise InputError(f"result {number}: score must be a finite number, got {row['score']!r}")
    if key != "segmentation":
        check_numbers(f"result {number}: {key}", row[key], 4 if key == "bbox" else 3 * (joints or COCO_JOINTS))


def _check_annotation(annotation: dict[str, Any], kind: str, joints: int) -> None:
    where = f"truth: annotation {annotation['id']}"
    if not are_finite([annotation.get("area")]):
        raise InputError(f"{where}: area must be a finite number, got {annotation.get('area')!r}")
    if kind == "masks":
        if not annotation.get("segmentation"):
            raise InputError(f"truth must have masks, but annotation {annotation['id']} has none")
        return
    check_numbers(f"{where}: bbox", annotation.get("bbox"), 4)
    if kind == "keypoints" and annotation.get("keypoints"):
        check_numbers(f"{where}: keypoints", annotation["keypoints"], 3 * joints)


def _with_run_lengths(content: dict[str, Any], category_id: int | None) -> list[dict[str, Any]]:
    """The annotations that count, with every mask in the encoding that this package makes of it everywhere."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    encoded = []
    for annotation in content["annotations"]:
        if annotation["image_id"] not in sizes or category_id not in (None, annotation["category_id"]):
            continue
        try:
            mask = encode_segmentation(annotation["segmentation"], *sizes[annotation["image_id"]])
        except InputError as error:
            raise InputError(f"truth: annotation {annotation['id']}: {error}") from error
        encoded.append({**annotation, "segmentation": mask})
    return encoded
