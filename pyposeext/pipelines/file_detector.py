"""Detections from a JSON file: COCO's results, a whole COCO file, or what this package wrote."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np

from pyposeext.errors import InputError
from pyposeext.io.coco import load_json
from pyposeext.io.weights import file_sha256
from pyposeext.pipelines.detectors import PERSON, Detections
from pyposeext.pipelines.inputs import InputImage

_LAST_NUMBER = re.compile(r"(\d+)\D*$")
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
_NAMELESS = "detections {} are found by an image's name, but this image has none"
# Nothing in an image is farther away than this, in pixels, nor anything in a video, in seconds.
_LARGEST = 1e9
# In seconds: files round times.
_LEAST_TOLERANCE = 1e-3


class UnknownImageError(InputError):
    """A file of detections does not say which of its boxes are an image's."""


class FileDetector:
    """The people whose boxes a file holds.

    The file is either COCO's results, a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}, or
    a COCO file, an object with "images" and "annotations" (a missing score is 1, crowds are left out), such as
    NAME.coco.json or NAME.posetrack.json of an earlier run. People are the entries of category 1, or in a COCO file
    those of the categories that are named "person" or have keypoints. Boxes without an area are left out.

    Where the boxes of an image stand:

    * A frame of a video is known by its time, where every image of a COCO file has a `time` in seconds, as those of
      this package have: the nearest counts, up to half a frame away, at least 1 ms. (How long a frame is, the numbers
      in the images' names tell, else it is 1 ms alone.) So a video may be read from another start than it was then.
    * Otherwise it is known by its number, counted from 0 at the first frame read. In a COCO file that is the last
      number in an image's `file_name` (clip/000012.jpg is frame 12), or its id where the name has none; in a list it is
      the `image_id`.
    * Another image is known by its file's name. In a COCO file that is the `file_name`, with or without folders; in a
      list, whose `image_id` are numbers, it is the last number in the name (000000000139.jpg has the id 139).

    A frame without entries has nobody in it, nor has an image without entries in a list. An image that a COCO file does
    not know is an error, and so is one that more than one image of the file may be. Ids may be numbers or, as some
    tools write them, numbers as text.

    Args:
        path: the file.

    Raises:
        InputError: no such file, not JSON, or not one of the two layouts; the sentence names the entry.
    """

    def __init__(self, path: str | Path) -> None:
        content = load_json(path)
        self._path = path
        self.source: dict[str, Any] = {"file": str(path), "sha256": file_sha256(path)}
        self._images: _Images | None = None
        if isinstance(content, list):
            self._by_id = _people(content, {PERSON}, path, numbered=True)
            return
        if not isinstance(content, dict) or not all(
            isinstance(content.get(k), list) for k in ("images", "annotations")
        ):
            raise InputError(
                f"detections {path} must be a list of boxes with image_id, category_id, bbox and score, or an object "
                f"with images and annotations, got {type(content).__name__}"
            )
        self._by_id = _people(content["annotations"], _person_categories(content, path), path)
        self._images = _Images(content["images"], path)

    def of_image(self, image_id: int) -> Detections:
        """The boxes of the image with that id; nobody where it has none."""
        return self._by_id.get(image_id) or Detections.none()

    def detect(self, inputs: Sequence[InputImage]) -> list[Detections]:
        """As `pyposeext.pipelines.detectors.Detector`.

        Raises:
            UnknownImageError: an image without a name, one that the file does not know, or one that it knows twice.
        """
        return [self.of_image(self._id_of(each)) for each in inputs]

    def _id_of(self, image: InputImage) -> Any:
        if self._images is not None:
            return self._images.id_of(image)
        if image.number is not None:
            return image.number
        if not image.name:
            raise UnknownImageError(_NAMELESS.format(self._path))
        number = _last_number(image.name)
        if number is None:
            raise UnknownImageError(f"detections {self._path} name images by number, but {image.name!r} has none")
        return number


class _Images:
    """The ids of a COCO file's images by time, number and name.

    Raises:
        InputError: an image without an id, or two with the same.
    """

    def __init__(self, images: Sequence[Any], path: str | Path) -> None:
        self._path = path
        self._names: defaultdict[str, list[Any]] = defaultdict(list)
        self._last_parts: defaultdict[str, list[Any]] = defaultdict(list)
        self._numbers: defaultdict[Any, list[Any]] = defaultdict(list)
        times, numbered, seen = [], [], set()
        for index, image in enumerate(images):
            own = _identifier(image.get("id")) if isinstance(image, dict) else None
            if own is None:
                raise InputError(f"detections {path}: image {index} must have an id")
            if own in seen:
                raise InputError(f"detections {path}: image {index} must have an id of its own, but {own} came before")
            seen.add(own)
            name = str(image.get("file_name", ""))
            number = _last_number(name)
            self._numbers[own if number is None else number].append(own)
            if name:
                self._names[name].append(own)
                self._last_parts[Path(name).name].append(own)
            time = image.get("time")
            if _is_small(time):
                times.append((float(time), own))
                numbered += [] if number is None else [(number, float(time))]
        # Where only some have a time, the others could not be found by it.
        self._times = sorted(times, key=lambda each: each[0]) if len(times) == len(images) else []
        self._tolerance = max(_LEAST_TOLERANCE, _seconds_per_frame(numbered) / 2)

    def id_of(self, image: InputImage) -> Any:
        """The id of that image; None where a frame is not there."""
        if image.number is not None and image.time is not None and self._times:
            return self._at(image.time)
        if image.number is not None:
            return self._only(self._numbers.get(image.number, []), f"of the number {image.number}")
        if not image.name:
            raise UnknownImageError(_NAMELESS.format(self._path))
        found = self._names.get(image.name) or self._last_parts.get(Path(image.name).name)
        if not found:
            raise UnknownImageError(f"detections {self._path} know no image of the name {image.name!r}")
        return self._only(found, f"of the name {image.name!r}")

    def _at(self, time: float) -> Any:
        place = bisect_left(self._times, time, key=lambda each: each[0])
        near = min(self._times[max(0, place - 1) : place + 1], key=lambda each: abs(each[0] - time))[0]
        if abs(near - time) > self._tolerance:
            return None
        first = bisect_left(self._times, near, key=lambda each: each[0])
        return self._only([own for at, own in self._times[first : first + 2] if at == near], f"of the time {near}")

    def _only(self, found: Sequence[Any], which: str) -> Any:
        if len(found) > 1:
            raise UnknownImageError(
                f"detections {self._path} have more than one image {which}, so it is not known which is meant"
            )
        return found[0] if found else None


def _seconds_per_frame(numbered: Sequence[tuple[int, float]]) -> float:
    """From frames' numbers and times; 0 where these do not tell."""
    if not numbered:
        return 0.0
    first, last = min(numbered), max(numbered)
    return max(0.0, (last[1] - first[1]) / (last[0] - first[0])) if last[0] > first[0] else 0.0


def _last_number(name: str) -> int | None:
    found = _LAST_NUMBER.search(Path(name).stem)
    return None if found is None else int(found.group(1))


def _person_categories(content: Mapping[str, Any], path: str | Path) -> set[Any]:
    categories = content.get("categories") or []
    people = set()
    for index, category in enumerate(categories if isinstance(categories, list) else [categories]):
        own = _identifier(category.get("id")) if isinstance(category, dict) else None
        if own is None:
            raise InputError(f"detections {path}: category {index} must be an object with an id, got {short(category)}")
        if category.get("name") == "person" or category.get("keypoints"):
            people.add(own)
    return people or {PERSON}


def _people(
    entries: Sequence[Any], categories: set[Any], path: str | Path, numbered: bool = False
) -> dict[Any, Detections]:
    """The people by the images' ids, which are numbers in any case where they are `numbered`."""
    boxes: defaultdict[Any, list[list[float]]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or "image_id" not in entry or "bbox" not in entry:
            raise InputError(f"detections {path}: entry {index} must have image_id and bbox")
        image, category = _identifier(entry["image_id"]), _identifier(entry.get("category_id", PERSON))
        for name, value in (("image_id", image), ("category_id", category)):
            if value is None or (numbered and isinstance(value, str)):
                raise InputError(
                    f"detections {path}: entry {index} must have a number as {name}, got {short(entry[name])}"
                )
        if category not in categories or entry.get("iscrowd"):
            continue
        box, score = entry["bbox"], entry.get("score", 1.0)
        numbers = [*box, score] if isinstance(box, list) else []
        if len(numbers) != 5 or not all(_is_small(value) for value in numbers):
            raise InputError(
                f"detections {path}: entry {index} must have a bbox of 4 numbers and a score, none above "
                f"{_LARGEST:g}, got {short(box)} and {short(score)}"
            )
        x, y, width, height = box
        if width > 0 and height > 0:
            boxes[image].append([x, y, x + width, y + height, score])
    tables = {key: np.array(rows, dtype=np.float32) for key, rows in boxes.items()}
    return {key: Detections(table[:, :4], table[:, 4]) for key, table in tables.items()}


def _identifier(value: Any) -> int | str | None:
    """An id as the number that it is, also where it is written 139.0 or "139"; else as text; None where it is none."""
    if isinstance(value, str):
        return int(value) if _WHOLE_NUMBER.fullmatch(value) else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_small(value: Any) -> bool:
    """Whether it is a number that arithmetic in float32 can be done with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
