"""COCO's average precision on real files with known results, and on made-up images."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyposeext.errors import InputError
from pyposeext.io.rle import encode_mask
from pyposeext.metrics import CocoEvaluation

# What pycocotools gives; round-off in the last place differs between implementations of the same definition.
BOXES = [0.5045806987, 0.6969727247, 0.5729816670, 0.5856257209, 0.5193996948, 0.5013978986, 0.3868127796, 0.5936795763]
BOXES += [0.5953529829, 0.6398109626, 0.5664205979, 0.5642905983]
MASKS = [0.3195452758, 0.5622883973, 0.2989265341, 0.3873740316, 0.3101827240, 0.3269339071, 0.2682297226, 0.4154486812]
MASKS += [0.4168394992, 0.4694498623, 0.3767592266, 0.3814715100]
ONE_IMAGE = [0.5048844884, 0.7227722772, 0.6336633663, 0.4663366337, 0.7504950495, 0.5181818182, 0.7272727273]
ONE_IMAGE += [0.6363636364, 0.4666666667, 0.75]
FOUR_IMAGES = [0.8608896054, 0.9931454684, 0.9108910891, 0.7755775578, 0.9372524752, 0.875, 1.0, 0.9166666667, 0.78]
FOUR_IMAGES += [0.9428571429]
PERTURBED = [0.5003595002, 0.8630363036, 0.4669966997, 0.4247524752, 0.6194837341, 0.5833333333, 0.9166666667]
PERTURBED += [0.5833333333, 0.44, 0.6857142857]
PERTURBED_FOURTEEN = [0.4455146943, 0.7719943423, 0.4099009901, *PERTURBED[3:]]
SHIFTED_BOXES = [0.7, 1, 1, 0.7, 0.7, 0.7, 0.2, 0.7, 0.7, 0.7, 0.7, 0.7]


@pytest.mark.parametrize(
    ("kind", "truth", "results", "expected"),
    [
        ("boxes", "instances_val2014_100.json", "instances_val2014_fakebbox100_results.json", BOXES),
        ("masks", "instances_val2014_100.json", "instances_val2014_fakesegm100_results.json", MASKS),
        ("keypoints", "keypoints_one_image_gt.json", "keypoints_one_image_dt.json", ONE_IMAGE),
        ("keypoints", "example_coco_val.json", "example_coco_preds.json", FOUR_IMAGES),
    ],
)
def test_real_files(test_data: Path, kind: Any, truth: str, results: str, expected: list[float]) -> None:
    evaluation = CocoEvaluation(test_data / "reference" / truth, kind)
    evaluation.add_results(json.loads((test_data / "reference" / results).read_text()))
    assert list(evaluation.compute().values()) == pytest.approx(expected, abs=1e-9)


def people_moved(test_data: Path, scale: list[float], only_labelled: bool) -> list[float]:
    """COCO's figures of the labelled people themselves, x and y multiplied, with falling scores."""
    truth = json.loads((test_data / "reference/example_coco_val.json").read_text())
    evaluation = CocoEvaluation(truth, "keypoints")
    people = [each for each in truth["annotations"] if each["num_keypoints"] > 0 or not only_labelled]
    assert len(people) == 12 if only_labelled else 14
    for index, annotation in enumerate(people):
        points = np.reshape(annotation["keypoints"], (1, 17, 3)) * [*scale, 1]
        evaluation.update(annotation["image_id"], [0.99 - 0.01 * index], keypoints=points)
    return list(evaluation.compute().values())


def test_perturbed_people(test_data: Path) -> None:
    assert people_moved(test_data, [0.98, 1.02], True) == pytest.approx(PERTURBED, abs=1e-9)
    assert people_moved(test_data, [0.98, 1.02], False) == pytest.approx(PERTURBED_FOURTEEN, abs=1e-9)


def test_the_labelled_people_are_perfect(test_data: Path) -> None:
    assert people_moved(test_data, [1, 1], True) == [1] * 10


def test_people_without_joints_count_against_equal_scores(test_data: Path) -> None:
    truth = json.loads((test_data / "reference/example_coco_val.json").read_text())
    evaluation = CocoEvaluation(truth, "keypoints")
    for annotation in truth["annotations"]:
        evaluation.update(annotation["image_id"], [1.0], keypoints=np.reshape(annotation["keypoints"], (1, 17, 3)))
    result = evaluation.compute()
    assert result["AP"] == pytest.approx(0.8939179632, abs=1e-9)
    assert (result["APm"], result["APl"]) == (1, 1)


def test_shifted_boxes(test_data: Path) -> None:
    truth = json.loads((test_data / "reference/example_coco_val.json").read_text())
    evaluation = CocoEvaluation(truth, "boxes")
    for index, annotation in enumerate(truth["annotations"]):
        x, y, width, height = annotation["bbox"]
        box = [x + 0.05 * width, y, x + 1.05 * width, y + 0.9 * height]
        evaluation.update(annotation["image_id"], [0.99 - 0.01 * index], boxes=[box])
    result = list(evaluation.compute().values())
    # The table's AR1 needs the images' own order of scores; the others do not depend on it.
    assert result[:6] == pytest.approx(SHIFTED_BOXES[:6], abs=1e-9)
    assert result[7:] == pytest.approx(SHIFTED_BOXES[7:], abs=1e-9)


def two_images() -> dict[str, Any]:
    keypoints = [value for joint in range(17) for value in (10.0 + joint, 20.0 + 2 * joint, 2)]
    annotations = [
        {
            "id": number,
            "image_id": number,
            "category_id": 1,
            "bbox": [5, 15, 30, 45],
            "area": 900,
            "iscrowd": 0,
            "num_keypoints": 17,
            "keypoints": keypoints,
        }
        for number in (1, 2)
    ]
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 100, "width": 100} for number in (1, 2)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def test_missed_people_and_images_without_detections_count() -> None:
    evaluation = CocoEvaluation(two_images(), "boxes")
    assert evaluation.compute()["AP50"] == 0
    evaluation.update(1, [0.9], boxes=[[5, 15, 35, 60]])
    result = evaluation.compute()
    assert result["AR100"] == 0.5
    assert result["AP50"] == pytest.approx(51 / 101)


def test_merge_resample_and_silence(capsys: pytest.CaptureFixture[str]) -> None:
    truth = two_images()
    before = copy.deepcopy(truth)
    first, second = CocoEvaluation(truth, "keypoints"), CocoEvaluation(truth, "keypoints")
    points = np.reshape(truth["annotations"][0]["keypoints"], (1, 17, 3))
    first.update(1, [0.9], keypoints=points)
    second.update(2, [0.8], keypoints=points + np.array([60, 0, 0]))
    first.merge(second)
    assert first.resampled([1, 1, 1]).compute()["AP"] == 1
    assert first.resampled([2, 2]).compute()["AP"] == 0
    assert 0 < first.compute()["AP"] < 1
    assert truth == before
    assert capsys.readouterr().out == ""


def test_unknown_images_and_unequal_lengths_are_refused() -> None:
    evaluation = CocoEvaluation(two_images(), "boxes")
    with pytest.raises(InputError, match="image_id must be one of the ground truth's, got 7"):
        evaluation.update(7, [0.5], boxes=[[0, 0, 1, 1]])
    with pytest.raises(InputError, match="one row per person, got 1 and 2"):
        evaluation.update(1, [0.5, 0.4], boxes=[[0, 0, 1, 1]])
    with pytest.raises(InputError, match="result 0 must hold image_id, category_id, score, bbox, but has no bbox"):
        evaluation.add_results([{"image_id": 1, "category_id": 1, "score": 0.5, "keypoints": []}])
    with pytest.raises(InputError, match="truth must have masks, but annotation 1 has none"):
        CocoEvaluation(two_images(), "masks")
    with pytest.raises(InputError, match="kind must be 'boxes', 'masks' or 'keypoints', got 'segm'"):
        CocoEvaluation(two_images(), "segm")  # type: ignore[arg-type]


def test_masks_in_every_encoding() -> None:
    truth = two_images()
    polygon = [[5, 15, 35, 15, 35, 60, 5, 60]]
    mask = np.zeros((100, 100), np.uint8)
    mask[15:60, 5:35] = 1
    for annotation in truth["annotations"]:
        annotation["segmentation"] = polygon
    runs = [5 * 100 + 15, *[45, 55] * 29, 45, 100 * 100 - (34 * 100 + 60)]
    half = mask * (np.arange(100) < 37.5)[:, None]
    for masks in (polygon, {"size": [100, 100], "counts": runs}, encode_mask(mask)):
        evaluation = CocoEvaluation(truth, "masks")
        # The box, which is much larger than the mask, is not looked at.
        row = {"category_id": 1, "score": 0.9, "segmentation": masks, "bbox": [0, 0, 99, 99]}
        evaluation.add_results([{"image_id": image, **row} for image in (1, 2)])
        result = evaluation.compute()
        assert result["AP"] == result["APs"] == 1
        assert result["APl"] == -1
    evaluation = CocoEvaluation(truth, "masks")
    evaluation.update(1, [0.9], masks=[encode_mask(half)])
    evaluation.update(2, [0.9], masks=[polygon])
    # An overlap of 23 / 45 counts at 0.5 alone.
    assert evaluation.compute()["AR100"] == pytest.approx((10 + 1) / 20)
    with pytest.raises(InputError, match="result 0: segmentation must be of an image of"):
        evaluation.update(1, [0.9], masks=[encode_mask(mask[:50])])


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("boxes", {"score": float("nan")}, "score must be a finite number, got nan"),
        ("boxes", {"score": "0.5"}, "score must be a finite number, got '0.5'"),
        ("boxes", {"score": None}, "score must be a finite number, got None"),
        ("boxes", {"image_id": [1]}, r"image_id must be one of the ground truth's, got \[1\]"),
        ("boxes", {"image_id": "1"}, "image_id must be one of the ground truth's, got '1'"),
        ("boxes", {"category_id": None}, "category_id must be a whole number, got None"),
        ("boxes", {"bbox": [1, 2, 3]}, "bbox must be 4 numbers, got 3"),
        ("boxes", {"bbox": [1, 2, "x", 4]}, r"bbox must be 4 finite numbers, got \[1, 2, 'x', 4\]"),
        ("boxes", {"bbox": [1, 2, float("inf"), 4]}, "bbox must be 4 finite numbers"),
        ("boxes", {"bbox": None}, "bbox must be 4 numbers, got None"),
        ("keypoints", {"keypoints": [18, 36, 2]}, "keypoints must be 51 numbers, got 3"),
        ("keypoints", {"keypoints": [float("nan")] * 51}, "keypoints must be 51 finite numbers"),
        ("masks", {"segmentation": "round"}, "segmentation must be polygons or run lengths, got str"),
    ],
)
def test_wrong_results_are_named_and_none_is_added(kind: Any, change: dict[str, Any], message: str) -> None:
    truth = two_images()
    for annotation in truth["annotations"]:
        annotation["segmentation"] = [[5, 15, 35, 15, 35, 60, 5, 60]]
    good = {"image_id": 1, "category_id": 1, "score": 0.9, **truth["annotations"][0], "id": 5}
    evaluation = CocoEvaluation(truth, kind)
    with pytest.raises(InputError, match=f"result 1: {message}"):
        evaluation.add_results([good, {**good, **change}])
    assert evaluation.compute()["AP"] == 0
    evaluation.add_results([good])
    assert evaluation.compute()["AP"] > 0


@pytest.mark.parametrize(
    ("kind", "where", "change", "message"),
    [
        ("boxes", "annotations", {"id": None}, "annotation 1 in the list must have id, a whole number, got None"),
        ("boxes", "annotations", {"id": 1}, "annotations must each have their own id, but 1 comes twice"),
        ("boxes", "annotations", {"image_id": [1]}, r"annotation 1 in the list must have image_id.*got \[1\]"),
        ("boxes", "annotations", {"category_id": "a"}, "annotation 1 in the list must have category_id.*got 'a'"),
        ("boxes", "annotations", {"bbox": [1, 2, 3]}, "annotation 2: bbox must be 4 numbers, got 3"),
        ("boxes", "annotations", {"area": None}, "annotation 2: area must be a finite number, got None"),
        ("keypoints", "annotations", {"keypoints": [1, 2, 2]}, "annotation 2: keypoints must be 51 numbers, got 3"),
        ("masks", "images", {"height": None}, r"image 2 must have height and width for masks, got \(None, 100\)"),
        ("boxes", "images", {"id": "b"}, "image 1 must have an id, a whole number, got 'b'"),
    ],
)
def test_wrong_truths_are_named(kind: Any, where: str, change: dict[str, Any], message: str) -> None:
    truth = two_images()
    for annotation in truth["annotations"]:
        annotation["segmentation"] = [[5, 15, 35, 15, 35, 60, 5, 60]]
    CocoEvaluation(copy.deepcopy(truth), kind)
    truth[where][1].update(change)
    with pytest.raises(InputError, match=f"truth: {message}"):
        CocoEvaluation(truth, kind)


def test_masks_of_the_truth_that_are_none_or_empty() -> None:
    truth = two_images()
    polygon = [[5, 15, 35, 15, 35, 60, 5, 60]]
    truth["annotations"][0]["segmentation"] = polygon
    truth["annotations"][1]["segmentation"] = {"size": [100, 100], "counts": [-5, 10005]}
    with pytest.raises(InputError, match="truth: annotation 2: segmentation must have runs that are whole numbers"):
        CocoEvaluation(truth, "masks")
    # A line of two points encloses nothing, as in training; COCO's own code would take it for a box.
    truth["annotations"][1]["segmentation"] = [[5, 15, 30, 45]]
    evaluation = CocoEvaluation(truth, "masks")
    for image in (1, 2):
        evaluation.update(image, [0.9], masks=[polygon])
    assert evaluation.compute()["AR100"] == 0.5


def test_truths_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"truth '.*nothing\.json' cannot be read"):
        CocoEvaluation(tmp_path / "nothing.json")
    (tmp_path / "text.json").write_text("no truth")
    with pytest.raises(InputError, match="is not a JSON file"):
        CocoEvaluation(tmp_path / "text.json")
    with pytest.raises(InputError, match="lists images, annotations and categories, but annotations is none"):
        CocoEvaluation({"images": [], "categories": []})
    with pytest.raises(InputError, match="but images is none"):
        CocoEvaluation({**two_images(), "images": [1]})


def test_joints_that_are_not_counted_and_people_without_any() -> None:
    truth = two_images()
    points = np.reshape(truth["annotations"][0]["keypoints"], (1, 17, 3))
    for annotation in truth["annotations"]:
        del annotation["num_keypoints"]
    # Nobody needs to find a person of whom no joint is labelled.
    del truth["annotations"][1]["keypoints"]
    evaluation = CocoEvaluation(truth, "keypoints")
    assert evaluation.compute()["AR"] == 0
    evaluation.update(1, [0.9], keypoints=points)
    assert evaluation.compute()["AR"] == 1
