"""Builds the training and validation sets of the default weights from a folder of public data.

    python tools/build_default_dataset.py --data ROOT --output FOLDER

`ROOT` holds ``pose2d/{lsp,lspet400,parse,tud400,coco_mini}``, ``video/`` and ``weights/`` (the teachers' graphs). The
output holds ``images/`` and COCO keypoint files: ``train_sport.json`` (LSP, LSP-extended, PARSE), ``train_street.json``
(TUD and the pedestrians' clip), ``train_coco.json``, ``train_clips.json``, and for validation ``coco_val.json`` and
``lsp_val.json``.

Rules:
* Human labels come first. MoveNet Thunder adds the face joints of LSP-style people where it agrees with the human
  body joints, and labels people of whom there are only boxes or nothing. CenterNet finds people nobody labelled.
  Where Thunder is sure that an athlete's left and right were confused (2 % of the images), they are exchanged.
* What a teacher is unsure of becomes a region to ignore (an annotation with ``iscrowd`` 1), never background.
* Splits go by source image: LSP 1 to 1000 train, 1001 to 1500 are validation; of COCO-mini the 30 images whose file
  names have the smallest SHA-1 are validation. Everything else is training.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import scipy.io
import torch
import tyro
from numpy.typing import NDArray
from teacher import PersonDetector, Thunder

from pyposeext.skeletons import COCO17, LSP14

HELD_OUT_COCO_IMAGES = 30
SPLITS = ("train_sport", "train_street", "train_coco", "train_clips", "coco_val", "lsp_val")
LONG_SIDE = 640
LSP_TO_COCO = [(LSP14.names.index(name), joint) for joint, name in enumerate(COCO17.names) if name in LSP14.names]
BODY = [joint for _, joint in LSP_TO_COCO]
FACE = range(5)
FLIP = list(COCO17.flip_order)


@dataclass
class Person:
    """Box [4] (x1, y1, x2, y2), joints [17, 3] (x, y, visibility 0, 1 or 2) and where they come from."""

    box: list[float]
    keypoints: list[list[float]]
    source: str
    area: float = 0.0


@dataclass
class Item:
    """One image before and after labelling. `complete` says that the human labels cover all people in it."""

    name: str
    path: str
    split: str
    people: list[Person] = field(default_factory=list)
    ignore: list[list[float]] = field(default_factory=list)
    complete: bool = False
    note: str = ""


def lsp_items(root: Path) -> Iterator[Item]:
    """LSP, LSP-extended and PARSE: 14 joints, one person each, the subject's own left and right."""
    lsp = scipy.io.loadmat(root / "lsp/joints.mat")["joints"].transpose(2, 1, 0).astype(np.float64)
    for index, joints in enumerate(lsp):
        joints[:, 2] = np.where(joints[:, 2] > 0, 1, 2)  # LSP's flag says "occluded"
        split = "train_sport" if index < 1000 else "lsp_val"
        path = root / f"lsp/images/im{index + 1:04d}.jpg"
        yield Item(f"lsp_{index + 1:04d}", str(path), split, [_lsp_person(joints)], complete=split == "lsp_val")
    extended = scipy.io.loadmat(root / "lspet400/joints.mat")["joints"].transpose(2, 0, 1).astype(np.float64)
    for index, joints in enumerate(extended):
        joints[:, 2] *= 2  # LSP-extended's flag says "labelled"
        path = root / f"lspet400/images/im{index + 1:05d}.jpg"
        yield Item(f"lspet_{index + 1:05d}", str(path), "train_sport", [_lsp_person(joints)])
    parse = scipy.io.loadmat(root / "parse/labels.mat")["ptsAll"].transpose(2, 0, 1).astype(np.float64)
    for index, points in enumerate(parse):
        joints = np.column_stack([points, np.full(14, 2.0)])
        path = root / f"parse/im{index + 1:04d}.jpg"
        yield Item(f"parse_{index + 1:04d}", str(path), "train_sport", [_lsp_person(joints)])


def _lsp_person(joints: NDArray[np.float64]) -> Person:
    keypoints = np.zeros((17, 3))
    for lsp, coco in LSP_TO_COCO:
        if joints[lsp, 2] > 0:
            keypoints[coco] = joints[lsp]
    labelled = joints[joints[:, 2] > 0, :2]
    low, high = labelled.min(0), labelled.max(0)
    margin = 0.08 * max(high - low)
    return Person([*(low - margin), *(high + margin)], keypoints.tolist(), "human")


def tud_items(root: Path) -> Iterator[Item]:
    """TUD pedestrians: human boxes. Its 11 points name no left and right leg, so all joints are the teacher's."""
    for annotation in ElementTree.parse(root / "tud400/train-400-annopoints.al").getroot():
        name = Path(annotation.findtext("image/name", "")).stem
        people = []
        for rectangle in annotation.iter("annorect"):
            box = [float(rectangle.findtext(key, "0")) for key in ("x1", "y1", "x2", "y2")]
            people.append(Person(box, np.zeros((17, 3)).tolist(), "human box"))
        yield Item(f"tud_{name}", str(root / f"tud400/images/{name}.jpg"), "train_street", people)


def coco_items(root: Path) -> Iterator[Item]:
    """COCO-mini: every image, with or without people; crowds are regions to ignore."""
    content = json.loads((root / "coco_mini/annotations/person_keypoints_train2017.json").read_text())
    order = sorted(content["images"], key=lambda image: hashlib.sha1(image["file_name"].encode()).hexdigest())
    held_out = {image["id"] for image in order[:HELD_OUT_COCO_IMAGES]}
    for image in content["images"]:
        item = Item(
            f"coco_{image['id']:012d}",
            str(root / "coco_mini/train2017" / image["file_name"]),
            "coco_val" if image["id"] in held_out else "train_coco",
            complete=True,
        )
        for entry in content["annotations"]:
            if entry["image_id"] != image["id"]:
                continue
            x, y, width, height = entry["bbox"]
            box = [x, y, x + width, y + height]
            if entry["iscrowd"]:
                item.ignore.append(box)
            else:
                joints = np.reshape(entry["keypoints"], (17, 3)).astype(float).tolist()
                item.people.append(Person(box, joints, "human", entry["area"]))
        yield item


def clip_items(root: Path, frames: Path) -> Iterator[Item]:
    """Frames of the unlabelled clips, written under `frames`: every 8th of the pedestrians, every 4th of the others."""
    frames.mkdir(parents=True, exist_ok=True)
    for stem, suffix, step in (("opencv_vtest", "avi", 8), ("tfjs_pose_squats", "mp4", 4), ("tfjs_pose_1", "mp4", 4)):
        capture = cv2.VideoCapture(str(root / f"{stem}.{suffix}"))
        index = 0
        while True:
            there, frame = capture.read()
            if not there:
                break
            if index % step == 0:
                path = frames / f"{stem}_{index:05d}.jpg"
                cv2.imwrite(str(path), frame, [cv2.IMWRITE_JPEG_QUALITY, 95])
                yield Item(path.stem, str(path), "train_street" if stem == "opencv_vtest" else "train_clips")
            index += 1
    for name in ("opencv_basketball1", "opencv_basketball2"):
        yield Item(name, str(root / f"{name}.png"), "train_clips")


def label(item: Item) -> Item:
    """Adds what the teachers know to an item whose human labels are not complete."""
    if item.complete:
        return item
    detector, thunder = _TEACHERS[0]
    image = cv2.imread(item.path)[:, :, ::-1].copy()
    detections = _detect(detector, image)
    for person in item.people:
        _complete_person(person, detections, thunder, image, item)
    for detection in detections:
        labelled = [np.array(person.box) for person in item.people if person.source.startswith("human")]
        overlaps = [_overlap(detection[:4], box) for box in labelled]
        if any(union > 0.45 or inside > 0.7 for union, inside in overlaps):
            continue
        joints = thunder(image, detection[:4]) if detection[4] >= 0.4 else None
        height = detection[3] - detection[1]
        if joints is not None and height >= 32 and np.sort(joints[:, 2])[4:].mean() >= 0.4:
            item.people.append(Person(detection[:4].tolist(), _seen(joints, 0.3, image).tolist(), "teacher"))
        else:
            item.ignore.append(detection[:4].tolist())
    return item


# One pair per worker process.
_TEACHERS: list[tuple[PersonDetector, Thunder]] = []


def _start_worker(weights: str) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    _TEACHERS.append((PersonDetector(weights), Thunder(weights)))


def _detect(detector: PersonDetector, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """People [N, 5] with a score of 0.2 or more, doubles removed; wide images are read as two overlapping squares."""
    height, width = image.shape[:2]
    lefts = [0] if max(height, width) <= 640 or width < height else [0, width - height]
    size = width if len(lefts) == 1 else height
    parts = []
    for left in lefts:
        people = detector(image[:, left : left + size], 0.2)
        # A box that ends at the inner edge of a square is cut off: its twin in the other square is whole.
        cut = (people[:, 0] < 2) if left > 0 else (people[:, 2] > size - 2) if len(lefts) > 1 else people[:, 0] < -1
        people[:, [0, 2]] += left
        parts.append(people[~cut])
    people = np.concatenate(parts)
    kept: list[NDArray[np.float64]] = []
    for person in people[np.argsort(-people[:, 4])]:
        if all(_overlap(person[:4], other[:4])[0] < 0.5 for other in kept):
            kept.append(person)
    return np.array(kept).reshape(-1, 5)


def _complete_person(
    person: Person, detections: NDArray[np.float64], thunder: Thunder, image: NDArray[np.uint8], item: Item
) -> None:
    """Tightens the box of a human-labelled person by a detection that agrees and adds the teacher's joints."""
    box, joints = np.array(person.box), np.array(person.keypoints)
    guess = thunder(image, box)
    if person.source == "human box":
        person.keypoints = _seen(guess, 0.3, image).tolist()
        person.source = "human box, teacher joints"
        return
    reach = 0.15 * max(box[2:] - box[:2])
    known = [joint for joint in BODY if joints[joint, 2] > 0]
    straight = np.mean(np.linalg.norm(guess[known, :2] - joints[known, :2], axis=1) < reach)
    mirrored = np.mean(np.linalg.norm(guess[[FLIP[joint] for joint in known], :2] - joints[known, :2], axis=1) < reach)
    if mirrored - straight >= 0.4 and guess[BODY, 2].mean() > 0.5:
        joints, straight = joints[FLIP], mirrored
        item.note = "left and right exchanged"
    if straight >= 0.6:
        face = _seen(guess, 0.4, image)
        for joint in FACE:
            joints[joint] = face[joint]
        person.source = "human, teacher face"
    labelled = joints[joints[:, 2] > 0, :2]
    low, high = labelled.min(0), labelled.max(0)
    for detection in detections:
        if detection[4] >= 0.4 and _overlap(detection[:4], box)[0] >= 0.55:
            box = np.concatenate([np.minimum(detection[:2], low), np.maximum(detection[2:4], high)])
            break
    person.box, person.keypoints = box.tolist(), joints.tolist()


def _seen(joints: NDArray[np.float64], threshold: float, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Joints [17, 3] with a visibility: 2 where the score reaches `threshold` inside the image, else all zero."""
    height, width = image.shape[:2]
    inside = (joints[:, :2] >= 0).all(1) & (joints[:, 0] < width) & (joints[:, 1] < height)
    good = (joints[:, 2] >= threshold) & inside
    return np.where(good[:, None], np.column_stack([joints[:, :2], np.full(len(joints), 2.0)]), 0.0)


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Intersection over union of two boxes, and the share of `a` that lies in `b`."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4])
    common = float(np.prod((high - low).clip(0)))
    area_a, area_b = float(np.prod(a[2:4] - a[:2])), float(np.prod(b[2:4] - b[:2]))
    return common / max(area_a + area_b - common, 1e-9), common / max(area_a, 1e-9)


def write_split(items: list[Item], output: Path, split: str) -> None:
    """Writes the images of one split, at most LONG_SIDE pixels long, and its COCO keypoint file."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for item in sorted((item for item in items if item.split == split), key=lambda item: item.name):
        image = cv2.imread(item.path)
        scale = min(1.0, LONG_SIDE / max(image.shape[:2]))
        if scale < 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        height, width = image.shape[:2]
        name = f"{item.name}.jpg"
        cv2.imwrite(str(output / "images" / name), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
        ignored = [Person(box, np.zeros((17, 3)).tolist(), "ignore") for box in item.ignore]
        for person in item.people + ignored:
            entry = _annotation(person, scale, width, height)
            if entry is not None:
                annotations.append({"id": len(annotations) + 1, "image_id": len(images), **entry})
    category = {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(COCO17.names),
        "skeleton": [[a + 1, b + 1] for a, b in COCO17.edges],
    }
    content = {"images": images, "annotations": annotations, "categories": [category]}
    temporary = output / f"{split}.json.part"
    temporary.write_text(json.dumps(content))
    temporary.replace(output / f"{split}.json")


def _annotation(person: Person, scale: float, width: int, height: int) -> dict[str, Any] | None:
    """One COCO annotation in the written image, or None where nothing of the box is inside it."""
    x1, y1, x2, y2 = (np.array(person.box) * scale).clip(0, [width, height, width, height]).tolist()
    if x2 - x1 < 2 or y2 - y1 < 2:
        return None
    joints = np.array(person.keypoints)
    # Pixel centres are integers, so the centre of the scaled image's first pixel lies half a pixel further in.
    joints[:, :2] = np.where(joints[:, 2:] > 0, (joints[:, :2] + 0.5) * scale - 0.5, 0)
    return {
        "category_id": 1,
        "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
        "area": round(person.area * scale**2 or 0.53 * (x2 - x1) * (y2 - y1), 2),
        "iscrowd": int(person.source == "ignore"),
        "num_keypoints": int((joints[:, 2] > 0).sum()),
        "keypoints": [round(value, 2) for value in joints.reshape(-1).tolist()],
        "source": person.source,
    }


def main(data: Path, output: Path, processes: int = 2) -> None:
    """Labels all sources and writes the splits.

    Args:
        data: the folder of public data.
        output: where to write; labels already made there (labels.jsonl) are used again.
        processes: worker processes of one thread each.
    """
    (output / "images").mkdir(parents=True, exist_ok=True)
    pose2d, video = data / "pose2d", data / "video"
    items = [*coco_items(pose2d), *clip_items(video, output / "frames"), *tud_items(pose2d), *lsp_items(pose2d)]
    splits = {item.name: item.split for item in items}
    cache = output / "labels.jsonl"
    done: dict[str, Item] = {}
    if cache.exists():
        for line in cache.read_text().splitlines():
            record = json.loads(line)
            people = [Person(**person) for person in record["people"]]
            done[record["name"]] = Item(**{**record, "people": people, "split": splits[record["name"]]})
    waiting = [item for item in items if item.name not in done]
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _start_worker, (str(data / "weights"),)) as pool, cache.open("a") as log:
        for count, item in enumerate(pool.imap_unordered(label, waiting, chunksize=4)):
            done[item.name] = item
            log.write(json.dumps(asdict(item)) + "\n")
            if count % 100 == 0:
                log.flush()
                sys.stderr.write(f"\r{count}/{len(waiting)}")
    for split in SPLITS:
        write_split(list(done.values()), output, split)


if __name__ == "__main__":
    tyro.cli(main)
