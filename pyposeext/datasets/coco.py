"""COCO keypoints (Lin et al. 2014) and every set in its layout: one JSON file and a folder of images."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from pyposeext.datasets.sample import Sample, check_index, read_image, stack_boxes
from pyposeext.errors import InputError
from pyposeext.skeletons import COCO17
from pyposeext.structures import Skeleton

LICENCE = "COCO: annotations CC BY 4.0, each image under the Flickr licence its record names; other sets: their owners'"


class CocoKeypoints:
    """A COCO keypoint file: ``images``, ``annotations`` with ``keypoints``, and the ``person`` category.

    Construction reads the JSON file only; `sample` decodes one image. Boxes are clipped to their image, and those
    without width or height are dropped. Crowds (``iscrowd`` 1) are regions to ignore. People without a labelled joint
    stay, with all visibilities 0: a detector needs their boxes.
    """

    licence = LICENCE

    def __init__(self, annotations: str | Path, images: str | Path | None = None, people_only: bool = False) -> None:
        """Indexes a file.

        Args:
            annotations: the JSON file.
            images: the folder of the images; None where only the records are wanted (then `sample` raises).
            people_only: leaves out images without any person.

        Raises:
            InputError: the file is missing, is not JSON, or lacks a COCO list.
        """
        self.path = Path(annotations)
        self.name = self.path.stem
        self.content = _read(self.path)
        self._folder = None if images is None else Path(images)
        if self._folder is not None and not self._folder.is_dir():
            raise InputError(f"images must be a folder, got {str(images)!r}")
        self.skeleton = _skeleton(self.content, self.path)
        people = [category["id"] for category in self.content["categories"] if "keypoints" in category]
        self.person_category = int(people[0]) if people else 1
        self._annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in self.content["annotations"]:
            if annotation.get("category_id") in people:
                self._annotations[annotation["image_id"]].append(annotation)
        self._images = [
            image
            for image in sorted(self.content["images"], key=lambda image: image["id"])
            if not people_only or any(not entry.get("iscrowd") for entry in self._annotations[image["id"]])
        ]

    def __len__(self) -> int:
        return len(self._images)

    def count_people(self, index: int) -> int:
        """How many annotations of people, crowds included, image `index` has."""
        check_index(self.name, index, len(self))
        return len(self._annotations[self._images[index]["id"]])

    def sample(self, index: int) -> Sample:
        """Image `index` in the order of image ids, decoded."""
        check_index(self.name, index, len(self))
        if self._folder is None:
            raise InputError(f"{self.name}: no folder of images was given, so image {index} cannot be read")
        record = self._images[index]
        image = read_image(self._folder / record["file_name"])
        return _sample(record, self._annotations[record["id"]], image, len(self.skeleton))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"annotations {str(path)!r} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"annotations {str(path)!r} is not a JSON file: {error}") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
        raise InputError(f"annotations {str(path)!r} must hold the COCO lists images, annotations and categories")
    return content


def _skeleton(content: dict[str, Any], path: Path) -> Skeleton:
    """COCO17 where the names are COCO's, else the file's own joints, paired by ``left_`` and ``right_``."""
    for category in content["categories"]:
        names = tuple(category.get("keypoints", ()))
        if not names or names == COCO17.names:
            continue
        mirrored = [name.replace("left", "\0").replace("right", "left").replace("\0", "right") for name in names]
        pairs = tuple((a, names.index(b)) for a, b in enumerate(mirrored) if b in names and a < names.index(b))
        edges = tuple((a - 1, b - 1) for a, b in category.get("skeleton", ()))
        return Skeleton(path.stem, names, edges, pairs)
    return COCO17


def _sample(record: dict[str, Any], annotations: list[dict[str, Any]], image: Any, joints: int) -> Sample:
    height, width = image.shape[:2]
    boxes, keypoints, areas, ignore = [], [], [], []
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        box = np.clip([x, y, x + w, y + h], 0, [width, height, width, height])
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        if annotation.get("iscrowd"):
            ignore.append(box)
            continue
        boxes.append(box)
        points = np.asarray(annotation.get("keypoints", ()) or np.zeros(3 * joints), dtype=np.float32)
        if points.size != 3 * joints:
            raise InputError(
                f"annotation {annotation.get('id')}: keypoints must hold {3 * joints} numbers, got {points.size}"
            )
        keypoints.append(points.reshape(joints, 3))
        # Where no segment was drawn, COCO's people fill about 53 % of their boxes (mmpose's rule).
        areas.append(annotation.get("area") or 0.53 * float((box[2] - box[0]) * (box[3] - box[1])))
    return Sample(
        image=image,
        boxes=stack_boxes(boxes),
        keypoints=np.asarray(keypoints, dtype=np.float32).reshape(-1, joints, 3),
        ignore=stack_boxes(ignore),
        name=record["file_name"],
        image_id=int(record["id"]),
        areas=np.asarray(areas, dtype=np.float32),
    )
