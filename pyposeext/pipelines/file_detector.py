"""Detections from a JSON file: COCO's results, a whole COCO file, or what this package wrote."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyposeext.errors import InputError
from pyposeext.io.coco import load_json
from pyposeext.io.weights import file_sha256
from pyposeext.pipelines.detectors import PERSON, Detections
from pyposeext.pipelines.inputs import InputImage

_LAST_NUMBER = re.compile(r"(\d+)\D*$")


class FileDetector:
    """The people whose boxes a file holds.

    The file is either COCO's results, a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}, or
    a COCO file, an object with "images" and "annotations" (a missing score is 1, crowds are left out), such as
    NAME.coco.json or NAME.posetrack.json of an earlier run. People are the entries of category 1, or in a COCO file
    those of the categories that are named "person" or have keypoints. Boxes without an area are left out.

    Where the boxes of an image stand:

    * A frame of a video is known by its number, counted from 0 at the first frame read. In a COCO file that is the
      last number in an image's `file_name` (clip/000012.jpg is frame 12), or its id where the name has none; in a list
      it is the `image_id`.
    * Another image is known by its file's name. In a COCO file that is the `file_name`, with or without folders; in a
      list, whose `image_id` are numbers, it is the last number in the name (000000000139.jpg has the id 139).

    A frame without entries has nobody in it, nor has an image without entries in a list. An image that a COCO file does
    not know is an error.

    Args:
        path: the file.

    Raises:
        InputError: no such file, not JSON, or not one of the two layouts; the sentence names the entry.
    """

    def __init__(self, path: str | Path) -> None:
        content = load_json(path)
        self._path = path
        self.source: dict[str, Any] = {"file": str(path), "sha256": file_sha256(path)}
        if isinstance(content, list):
            self._by_id = _people(content, {PERSON}, path)
            self._numbers: Mapping[int, Any] | None = None
            self._names: Mapping[str, Any] = {}
            return
        if not isinstance(content, dict) or not all(
            isinstance(content.get(k), list) for k in ("images", "annotations")
        ):
            raise InputError(
                f"detections {path} must be a list of boxes with image_id, category_id, bbox and score, or an object "
                f"with images and annotations, got {type(content).__name__}"
            )
        self._by_id = _people(content["annotations"], _person_categories(content), path)
        self._names = _by_file_name(content["images"], path)
        self._numbers = {}
        for image in content["images"]:
            number = _last_number(str(image.get("file_name", "")))
            self._numbers[image["id"] if number is None else number] = image["id"]

    def of_image(self, image_id: int) -> Detections:
        """The boxes of the image with that id; nobody where it has none."""
        return self._by_id.get(image_id) or Detections.none()

    def detect(self, inputs: Sequence[InputImage]) -> list[Detections]:
        """As `pyposeext.pipelines.detectors.Detector`.

        Raises:
            InputError: an image without a name, or one that the file does not know.
        """
        return [self.of_image(self._id_of(each)) for each in inputs]

    def _id_of(self, image: InputImage) -> Any:
        if image.number is not None:
            return image.number if self._numbers is None else self._numbers.get(image.number)
        if not image.name:
            raise InputError(f"detections {self._path} are found by an image's name, but this image has none")
        if self._numbers is None:
            number = _last_number(image.name)
            if number is None:
                raise InputError(f"detections {self._path} name images by number, but {image.name!r} has none")
            return number
        for name in (image.name, Path(image.name).name):
            if name in self._names:
                return self._names[name]
        raise InputError(f"detections {self._path} know no image of the name {image.name!r}")


def _last_number(name: str) -> int | None:
    found = _LAST_NUMBER.search(Path(name).stem)
    return None if found is None else int(found.group(1))


def _person_categories(content: Mapping[str, Any]) -> set[Any]:
    people = {
        category.get("id")
        for category in content.get("categories") or []
        if category.get("name") == "person" or category.get("keypoints")
    }
    return people or {PERSON}


def _by_file_name(images: Sequence[Mapping[str, Any]], path: str | Path) -> dict[str, Any]:
    """Ids by file name, and by its last part where that is the name of one image alone."""
    names: dict[str, Any] = {}
    parts: defaultdict[str, list[Any]] = defaultdict(list)
    for index, image in enumerate(images):
        if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
            raise InputError(f"detections {path}: image {index} must have an id")
        if "file_name" in image:
            names[str(image["file_name"])] = image["id"]
            parts[Path(str(image["file_name"])).name].append(image["id"])
    return {**{name: ids[0] for name, ids in parts.items() if len(ids) == 1}, **names}


def _people(entries: Sequence[Any], categories: set[Any], path: str | Path) -> dict[Any, Detections]:
    boxes: defaultdict[Any, list[list[float]]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or "image_id" not in entry or "bbox" not in entry:
            raise InputError(f"detections {path}: entry {index} must have image_id and bbox")
        image = entry["image_id"]
        if not isinstance(image, (int, str)):
            raise InputError(f"detections {path}: entry {index} must have a number as image_id, got {image}")
        if entry.get("category_id", PERSON) not in categories or entry.get("iscrowd"):
            continue
        box, score = entry["bbox"], entry.get("score", 1.0)
        numbers = [*box, score] if isinstance(box, list) else []
        if len(numbers) != 5 or not all(_is_finite(value) for value in numbers):
            raise InputError(
                f"detections {path}: entry {index} must have a bbox of 4 numbers and a score, got {box} and {score}"
            )
        x, y, width, height = box
        if width > 0 and height > 0:
            boxes[image].append([x, y, x + width, y + height, score])
    tables = {key: np.array(rows, dtype=np.float32) for key, rows in boxes.items()}
    return {key: Detections(table[:, :4], table[:, 4]) for key, table in tables.items()}


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
