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
    with pytest.raises(InputError, match=r"more than one image of the name 'first\.jpg', so it is not known which"):
        detector.detect([InputImage(BLACK, None, "first.jpg")])


def test_a_coco_file_is_found_by_frame_numbers(tmp_path):
    # Names without a number go by their ids.
    assert lefts(detector_of(tmp_path, WHOLE), *(InputImage(BLACK, n) for n in (3, 4, 5, 9))) == [[1], [], [], [3]]


@pytest.mark.parametrize("image_id", [139, "139", "0139", 139.0])
def test_ids_may_be_written_as_text_or_with_a_point(tmp_path, image_id):
    assert lefts(detector_of(tmp_path, [entry(image_id, 5)]), InputImage(BLACK, None, "000139.jpg")) == [[5]]
    for own in (139, "139", 139.0):
        content = {"images": [{"id": own, "file_name": "x.jpg"}], "annotations": [entry(image_id, 5)]}
        assert lefts(detector_of(tmp_path, content), InputImage(BLACK, None, "x.jpg")) == [[5]]


def test_ids_of_a_coco_file_may_be_words(tmp_path):
    content = {"images": [{"id": "one", "file_name": "x.jpg"}], "annotations": [entry("one", 5)]}
    assert lefts(detector_of(tmp_path, content), InputImage(BLACK, None, "x.jpg")) == [[5]]


@pytest.mark.parametrize(
    "images",
    [
        [{"id": 5, "file_name": "a/000001.jpg"}, {"id": 6, "file_name": "b/000001.jpg"}],
        [{"id": 1, "file_name": "x.jpg"}, {"id": 7, "file_name": "000001.jpg"}],
        [{"id": 5, "file_name": "a/1.jpg", "time": 0.5}, {"id": 6, "file_name": "b/1.jpg", "time": 0.5}],
    ],
)
def test_images_that_could_both_be_the_frame_are_refused(tmp_path, images):
    detector = detector_of(tmp_path, {"images": images, "annotations": [entry(images[0]["id"], 1)]})
    with pytest.raises(InputError, match=r"more than one image of the (number 1|time 0\.5), so it is not known which"):
        detector.detect([InputImage(BLACK, 1, time=0.5)])
    assert lefts(detector, InputImage(BLACK, 2, time=9.0)) == [[]]
    assert lefts(detector, InputImage(BLACK, None, images[0]["file_name"])) == [[1]]


def timed(numbers, start=0.0, seconds=0.04):
    images = [
        {"id": index, "file_name": f"clip/{number:06d}.jpg", "time": start + seconds * number}
        for index, number in enumerate(numbers)
    ]
    return {"images": images, "annotations": [entry(index, number) for index, number in enumerate(numbers)]}


def test_frames_are_found_by_time(tmp_path):
    detector = detector_of(tmp_path, timed(range(20), start=1.0))
    # Begun in the middle: the first frame read is the eleventh of the file.
    assert lefts(detector, *(InputImage(BLACK, n, time=1.4 + 0.04 * n) for n in range(3))) == [[10], [11], [12]]
    # The nearest counts, up to half a frame.
    times = (0.979, 0.981, 1.019, 1.021, 1.779, 1.781)
    assert lefts(detector, *(InputImage(BLACK, 0, time=time) for time in times)) == [[], [0], [0], [1], [19], []]
    # Without a time, numbers count.
    assert lefts(detector, InputImage(BLACK, 2)) == [[2]]


def test_frames_between_those_of_the_file_have_nobody(tmp_path):
    detector = detector_of(tmp_path, timed(range(0, 20, 5)))
    found = lefts(detector, *(InputImage(BLACK, n, time=0.04 * n) for n in range(7)))
    assert found == [[0], [], [], [], [], [5], []]


def test_without_numbers_times_are_a_millisecond_apart_at_most(tmp_path):
    content = timed(range(3))
    for image, name in zip(content["images"], "abc", strict=True):
        image["file_name"] = f"{name}.jpg"
    found = lefts(detector_of(tmp_path, content), *(InputImage(BLACK, 7, time=t) for t in (0.0409, 0.0411, 0.0391)))
    assert found == [[1], [], [1]]


def test_where_an_image_has_no_time_numbers_count(tmp_path):
    content = timed(range(3))
    content["images"][1]["time"] = None
    assert lefts(detector_of(tmp_path, content), InputImage(BLACK, 1, time=0.08)) == [[1]]


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
        ({"images": [{"id": 1}, {"id": 1.0}], "annotations": []}, "image 1 must have an id of its own, but 1 came"),
        ({"images": [], "annotations": [], "categories": ["person"]}, "category 0 must be an object with an id"),
        ({"images": [], "annotations": [], "categories": {"id": []}}, "category 0 must be an object with an id"),
        ([entry("a.jpg", 2)], r"entry 0 must have a number as image_id, got 'a\.jpg'"),
        ([entry(1, 2), entry(1.5, 2)], r"entry 1 must have a number as image_id, got 1\.5"),
        ([entry(True, 2)], "entry 0 must have a number as image_id, got True"),
        ([entry(1, 2, category_id=[1])], r"entry 0 must have a number as category_id, got \[1\]"),
        ([{**entry(1, 2), "bbox": [10**400, 2, 3, 4]}], "entry 0 must have a bbox of 4 numbers .* none above 1e"),
        ([{**entry(1, 2), "bbox": [1e300, 2, 3, 4]}], "entry 0 must have a bbox of 4 numbers .* none above 1e"),
        ([entry(1, 2, score=1e300)], "entry 0 must have a bbox of 4 numbers"),
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
