"""Detections from files: which image they belong to, and files that are none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pyposeext.errors import InputError
from pyposeext.io.coco import CocoWriter
from pyposeext.io.writer import FramePoses
from pyposeext.pipelines.file_detector import FileDetector
from pyposeext.pipelines.inputs import InputImage
from pyposeext.skeletons import COCO17
from tests.io.poses import make_frames

BLACK = np.zeros((240, 320, 3), np.uint8)


def entry(image_id, x, score=0.9, category_id=1, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": [x, 10, 20, 30], "score": score, **more}


def detector_of(tmp_path, content):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    return FileDetector(path)


def lefts(detector, *inputs):
    return [found.boxes[:, 0].tolist() for found in detector.detect(inputs)]


RESULTS = [entry(139, 5), entry(139, 6, 0.2), entry(139, 7, category_id=3), entry(2, 8)]


def test_results_are_found_by_the_number_of_the_image(tmp_path):
    detector = detector_of(tmp_path, RESULTS)
    names = ("000000000139.jpg", "folder/img_2.png", "140.jpg")
    assert lefts(detector, *(InputImage(BLACK, None, name) for name in names)) == [[5, 6], [8], []]
    found = detector.of_image(139)
    np.testing.assert_allclose(found.boxes[0], [5, 10, 25, 40])
    np.testing.assert_allclose(found.scores, [0.9, 0.2])
    assert len(detector.source["sha256"]) == 64


def test_results_are_found_by_the_number_of_the_frame(tmp_path):
    assert lefts(detector_of(tmp_path, RESULTS), *(InputImage(BLACK, n) for n in (1, 2, 139))) == [[], [8], [5, 6]]


WHOLE = {
    "images": [
        {"id": 70, "file_name": "a/000003.jpg"},
        {"id": 71, "file_name": "a/000004.jpg"},
        {"id": 9, "file_name": "a/first.jpg"},
        {"id": 10, "file_name": "b/first.jpg"},
    ],
    "annotations": [
        entry(70, 1, category_id=4),
        entry(71, 2, category_id=4, iscrowd=1),
        entry(9, 3, category_id=4),
        entry(10, 4, category_id=1),
        entry(10, 5, category_id=4),
    ],
    "categories": [{"id": 4, "name": "person"}, {"id": 1, "name": "cat"}],
}


def test_a_coco_file_is_found_by_file_names(tmp_path):
    detector = detector_of(tmp_path, WHOLE)
    names = ("a/000003.jpg", "000003.jpg", "000004.jpg", "b/first.jpg")
    assert lefts(detector, *(InputImage(BLACK, None, name) for name in names)) == [[1], [1], [], [5]]
    # Two images are called so: which of them is meant is not known.
    with pytest.raises(InputError, match=r"know no image of the name 'first\.jpg'"):
        detector.detect([InputImage(BLACK, None, "first.jpg")])


def test_a_coco_file_is_found_by_frame_numbers(tmp_path):
    # Names without a number go by their ids.
    assert lefts(detector_of(tmp_path, WHOLE), *(InputImage(BLACK, n) for n in (3, 4, 5, 9))) == [[1], [], [], [3]]


def test_without_scores_boxes_count_one(tmp_path):
    labels = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}
    assert detector_of(tmp_path, labels).of_image(1).scores.tolist() == [1]


def test_files_of_this_package_come_back(tmp_path):
    writer = CocoWriter(tmp_path / "clip.coco.json", COCO17, "clip")
    frames: list[FramePoses] = make_frames()
    for frame in frames:
        writer.write(frame)
    writer.close()
    found = FileDetector(tmp_path / "clip.coco.json").detect([InputImage(BLACK, frame.number) for frame in frames])
    for each, frame in zip(found, frames, strict=True):
        np.testing.assert_allclose(each.boxes, frame.poses.boxes, atol=2e-3)
        np.testing.assert_allclose(each.scores, frame.poses.scores, atol=1e-4)


def test_boxes_without_an_area_are_nobody(tmp_path):
    content = [{**entry(1, 0), "bbox": [1, 2, 0, 5]}, {**entry(1, 0), "bbox": [1, 2, 5, -1]}]
    assert len(detector_of(tmp_path, content).of_image(1).boxes) == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "must be a list of boxes with image_id"),
        ("text", "must be a list of boxes with image_id"),
        ({"images": [], "annotations": 3}, "must be a list of boxes with image_id"),
        ([{"bbox": [1, 2, 3, 4]}], "entry 0 must have image_id and bbox"),
        ([entry(1, 2), {"image_id": 1}], "entry 1 must have image_id and bbox"),
        ([3], "entry 0 must have image_id and bbox"),
        ([{**entry(1, 2), "bbox": [1, 2, 3]}], "entry 0 must have a bbox of 4 numbers"),
        ([{**entry(1, 2), "bbox": "box"}], "entry 0 must have a bbox of 4 numbers"),
        ([{**entry(1, 2), "bbox": [1, 2, 3, float("nan")]}], "entry 0 must have a bbox of 4 numbers"),
        ([entry(1, 2, score="high")], "entry 0 must have a bbox of 4 numbers and a score"),
        ([entry([1], 2)], "entry 0 must have a number as image_id"),
        ({"images": [{"file_name": "a.jpg"}], "annotations": []}, "image 0 must have an id"),
        ({"images": [3], "annotations": []}, "image 0 must have an id"),
    ],
)
def test_files_that_are_none(tmp_path, content, sentence):
    with pytest.raises(InputError, match=sentence):
        detector_of(tmp_path, content)


def test_files_that_are_not_json(tmp_path):
    (tmp_path / "boxes.json").write_text("{")
    with pytest.raises(InputError, match="is not a JSON file"):
        FileDetector(tmp_path / "boxes.json")


def test_images_that_cannot_be_found(tmp_path):
    results, whole = detector_of(tmp_path, RESULTS), None
    with pytest.raises(InputError, match=r"name images by number, but 'me\.jpg' has none"):
        results.detect([InputImage(BLACK, None, "me.jpg")])
    whole = detector_of(tmp_path, WHOLE)
    with pytest.raises(InputError, match=r"know no image of the name '5\.jpg'"):
        whole.detect([InputImage(BLACK, None, "5.jpg")])
    for detector in (results, whole):
        with pytest.raises(InputError, match="found by an image's name, but this image has none"):
            detector.detect([InputImage(BLACK)])
