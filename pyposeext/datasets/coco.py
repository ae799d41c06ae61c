"""COCO keypoints and instances (Lin et al. 2014) and every set in its layout: one JSON file and a folder of images."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyposeext.datasets.sample import Sample, check_index, read_image, stack_boxes
from pyposeext.errors import InputError
from pyposeext.io.coco_fields import check_numbers, is_whole
from pyposeext.io.rle import check_segmentation, decode_segmentation
from pyposeext.skeletons import COCO17
from pyposeext.structures import Skeleton

LICENCE = "COCO: annotations CC BY 4.0, each image under the Flickr licence its record names; other sets: their owners'"


class CocoKeypoints:
    """A COCO keypoint file: ``images``, ``annotations`` with ``keypoints``, and the ``person`` category.

    Construction reads the JSON file only; `sample` decodes one image. Boxes are clipped to their image, and those
    without width or height are dropped. Crowds (``iscrowd`` 1) are regions to ignore. People without a labelled joint
    stay, with all visibilities 0: a detector needs their boxes.

    Attributes:
        content: what the file holds.
        person_category: the number of the category of people.
        skeleton: of that category, COCO17 where the file says nothing.
    """

    licence = LICENCE

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        people_only: bool = False,
        *,
        masks: bool = False,
        categories: Literal["people", "all"] = "people",
    ) -> None:
        """Indexes a file.

        Args:
            annotations: the JSON file.
            images: the folder of the images; None where only the records are wanted (then `sample` raises).
            people_only: leaves out images without any person (or object, with all categories).
            masks: samples have masks, except those of images in which somebody has no ``segmentation``.
            categories: "people" alone, or "all": samples then have labels, COCO's category numbers, and what is not a
                person has no labelled joint.

        Raises:
            InputError: the file is missing, is not JSON, lacks a COCO list, or has an annotation that cannot be used.
                It is named: without its box, with another number of joints, with a mask that is none.
        """
        if categories not in ("people", "all"):
            raise InputError(f"categories must be 'people' or 'all', got {categories!r}")
        self.path = Path(annotations)
        self.name = self.path.stem
        self.content = _read(self.path)
        self._folder = None if images is None else Path(images)
        if self._folder is not None and not self._folder.is_dir():
            raise InputError(f"images must be a folder, got {str(images)!r}")
        self.skeleton = _skeleton(self.content, self.path)
        people = [category["id"] for category in self.content["categories"] if category.get("keypoints")]
        if not people:  # a file of instances
            people = [category["id"] for category in self.content["categories"] if category.get("name") == "person"]
        self.person_category = int(people[0]) if people else 1
        self._masks, self._labelled = masks, categories == "all"
        sizes = _image_sizes(self.content["images"], self._folder is not None)
        self._annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for number, annotation in enumerate(self.content["annotations"]):
            _check_ids(annotation, number)
            if self._labelled or annotation["category_id"] in people:
                _check_annotation(annotation, len(self.skeleton), sizes if masks else None)
                self._annotations[annotation["image_id"]].append(annotation)
        self._images = [
            image
            for image in sorted(self.content["images"], key=lambda image: image["id"])
            if not people_only or any(not entry.get("iscrowd") for entry in self._annotations[image["id"]])
        ]

    def __len__(self) -> int:
        return len(self._images)

    def count_people(self, index: int) -> int:
        """How many annotations of people (or objects, with all categories), crowds included, image `index` has."""
        check_index(self.name, index, len(self))
        return len(self._annotations[self._images[index]["id"]])

    def count_labelled(self, index: int) -> int:
        """How many people of image `index` have a labelled joint."""
        check_index(self.name, index, len(self))
        people = (each for each in self._annotations[self._images[index]["id"]] if not each.get("iscrowd"))
        return sum(any(visibility > 0 for visibility in (each.get("keypoints") or ())[2::3]) for each in people)

    def sample(self, index: int) -> Sample:
        """Image `index` in the order of image ids, decoded."""
        check_index(self.name, index, len(self))
        if self._folder is None:
            raise InputError(f"{self.name}: no folder of images was given, so image {index} cannot be read")
        record = self._images[index]
        image = read_image(self._folder / record["file_name"])
        kept, ignore = _placed(self._annotations[record["id"]], image)
        return Sample(
            image=image,
            boxes=stack_boxes([box for box, _ in kept]),
            keypoints=_keypoints([annotation for _, annotation in kept], len(self.skeleton)),
            ignore=stack_boxes(ignore),
            name=record["file_name"],
            image_id=int(record["id"]),
            areas=np.array([_area(annotation, box) for box, annotation in kept], dtype=np.float32),
            masks=_masks([annotation for _, annotation in kept], image) if self._masks else None,
            pose_boxes=_pose_boxes([annotation for _, annotation in kept], image),
            labels=np.array([each["category_id"] for _, each in kept], dtype=np.int64) if self._labelled else None,
        )


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
    for key in lists:
        for number, entry in enumerate(content[key]):
            if not isinstance(entry, dict) or (key != "annotations" and not is_whole(entry.get("id"))):
                needed = "objects" if key == "annotations" else "objects with an id, a whole number"
                raise InputError(f"annotations {str(path)!r}: {key} must be {needed}, but entry {number} is not")
    return content


def _image_sizes(images: list[dict[str, Any]], named: bool) -> dict[int, list[Any]]:
    """[height, width] of every image by its id, None where the file does not say; with `named` each needs its file."""
    for image in images:
        if named and not isinstance(image.get("file_name"), str):
            raise InputError(f"image {image['id']} must have its file_name, got {image.get('file_name')!r}")
    return {image["id"]: [image.get("height"), image.get("width")] for image in images}


def _check_ids(annotation: dict[str, Any], number: int) -> None:
    """Raises an InputError on an annotation that cannot be told where it belongs; `number` is its place in the list."""
    for key in ("image_id", "category_id"):
        if not is_whole(annotation.get(key)):
            name = annotation.get("id", f"{number} in the list")
            raise InputError(f"annotation {name} must have {key}, a whole number, got {annotation.get(key)!r}")


def _check_annotation(annotation: dict[str, Any], joints: int, sizes: dict[int, list[Any]] | None) -> None:
    """Raises an InputError that names an annotation which no sample could be made of; with `sizes` for its mask too."""
    where = f"annotation {annotation.get('id')}"
    check_numbers(f"{where}: bbox", annotation.get("bbox"), 4)
    if annotation.get("keypoints"):
        check_numbers(f"{where}: keypoints", annotation["keypoints"], 3 * joints)
    segmentation = annotation.get("segmentation")
    if sizes is None or not segmentation or annotation["image_id"] not in sizes:
        return
    is_runs = isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys()
    size = sizes[annotation["image_id"]]
    if is_runs and None in size:
        # The file does not say: the mask has to fit its own size here, and the image later.
        size = segmentation["size"]
    try:
        # Only decoding shows whether compressed runs end with the image.
        check = decode_segmentation if is_runs and isinstance(segmentation["counts"], str) else check_segmentation
        check(segmentation, *size)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _skeleton(content: dict[str, Any], path: Path) -> Skeleton:
    """COCO17 where the names are COCO's, else the file's own joints, paired by ``left_`` and ``right_``."""
    for category in content["categories"]:
        names = tuple(category.get("keypoints") or ())
        if not names or names == COCO17.names:
            continue
        mirrored = [name.replace("left", "\0").replace("right", "left").replace("\0", "right") for name in names]
        pairs = tuple((a, names.index(b)) for a, b in enumerate(mirrored) if b in names and a < names.index(b))
        edges = tuple((a - 1, b - 1) for a, b in category.get("skeleton") or ())
        return Skeleton(path.stem, names, edges, pairs)
    return COCO17


def _placed(annotations: list[dict[str, Any]], image: Any) -> tuple[list[tuple[Any, dict[str, Any]]], list[Any]]:
    """The annotations with a box left after clipping, each behind that box, and the boxes of crowds."""
    height, width = image.shape[:2]
    kept, ignore = [], []
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        box = np.clip([x, y, x + w, y + h], 0, [width, height, width, height])
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        if annotation.get("iscrowd"):
            ignore.append(box)
        else:
            kept.append((box, annotation))
    return kept, ignore


def _keypoints(annotations: list[dict[str, Any]], joints: int) -> NDArray[np.float32]:
    """[N, K, 3]; zeros for annotations without ``keypoints``."""
    keypoints = np.zeros((len(annotations), joints, 3), np.float32)
    for row, annotation in zip(keypoints, annotations, strict=True):
        points = annotation.get("keypoints")
        if not points:
            continue
        row[:] = np.reshape(points, (joints, 3))
    return keypoints


def _area(annotation: dict[str, Any], box: Any) -> float:
    # Where no segment was drawn, COCO's people fill about 53 % of their boxes (mmpose's rule).
    return float(annotation.get("area") or 0.53 * (box[2] - box[0]) * (box[3] - box[1]))


def _pose_boxes(annotations: list[dict[str, Any]], image: Any) -> NDArray[np.float32]:
    """[N, 4] from the first to the last pixel of each box inside the image, as HRNet's released code reads COCO."""
    last = np.array(image.shape[1::-1]) - 1
    sides = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    low = sides[:, :2].clip(0)
    high = np.minimum(last, low + (sides[:, 2:] - 1).clip(0))
    return np.concatenate([low, high], axis=1).astype(np.float32)


def _masks(annotations: list[dict[str, Any]], image: Any) -> NDArray[np.uint8] | None:
    """[N, H, W], or None where an annotation has no segmentation."""
    height, width = image.shape[:2]
    if not all(annotation.get("segmentation") for annotation in annotations):
        return None
    masks = np.zeros((len(annotations), height, width), np.uint8)
    for row, annotation in zip(masks, annotations, strict=True):
        try:
            row[:] = decode_segmentation(annotation["segmentation"], height, width)
        except InputError as error:
            raise InputError(f"annotation {annotation.get('id')}: {error}") from error
    return masks
