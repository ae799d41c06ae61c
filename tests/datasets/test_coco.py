"""The COCO reader on generated files, and on COCO's own miniature where it is present."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pyposeext.datasets import CocoKeypoints, open_dataset
from pyposeext.errors import InputError
from pyposeext.io.rle import encode_mask
from pyposeext.skeletons import COCO17


def write_set(folder: Path, annotations: list[dict[str, Any]], category: dict[str, Any] | None = None) -> Path:
    """Two images of 40 x 60 pixels (ids 7 and 3): red on the left half, black on the right."""
    (folder / "images").mkdir()
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30] = (0, 0, 255)  # OpenCV writes BGR
    for name in ("seven.png", "drei \N{LATIN SMALL LETTER U WITH DIAERESIS}.png"):
        (folder / "images" / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    category = category or {"id": 1, "name": "person", "keypoints": list(COCO17.names), "skeleton": [[16, 14]]}
    content = {
        "images": [
            {"id": 7, "file_name": "seven.png", "height": 40, "width": 60},
            {"id": 3, "file_name": "drei \N{LATIN SMALL LETTER U WITH DIAERESIS}.png", "height": 40, "width": 60},
        ],
        "annotations": annotations,
        "categories": [category],
    }
    (folder / "set.json").write_text(json.dumps(content))
    return folder / "set.json"


def person(number: int, box: list[float], **more: Any) -> dict[str, Any]:
    keypoints = [float(value) for joint in range(17) for value in (joint, joint + 1, 2)]
    entry = {"id": number, "image_id": 7, "category_id": 1, "bbox": box, "iscrowd": 0, "keypoints": keypoints}
    return {**entry, **more}


def test_boxes_are_clipped_crowds_ignored_and_empty_boxes_dropped(tmp_path: Path) -> None:
    annotations = [
        person(1, [50, 10, 30, 20], area=333),
        person(2, [10, 10, 0, 20]),
        person(3, [0, 0, 20, 10], iscrowd=1),
        person(4, [0, 0, 10, 20], keypoints=[0] * 51),
    ]
    dataset = CocoKeypoints(write_set(tmp_path, annotations), tmp_path / "images")
    assert dataset.skeleton is COCO17
    assert [dataset.sample(index).image_id for index in range(len(dataset))] == [3, 7]
    assert [dataset.count_people(index) for index in range(2)] == [0, 4]
    empty, full = dataset.sample(0), dataset.sample(1)
    assert empty.boxes.shape == (0, 4)
    assert empty.keypoints.shape == (0, 17, 3)
    assert full.boxes.tolist() == [[50, 10, 60, 30], [0, 0, 10, 20]]
    assert full.ignore.tolist() == [[0, 0, 20, 10]]
    assert full.areas == pytest.approx([333, 0.53 * 200])
    assert full.keypoints[0, 5].tolist() == [5, 6, 2]
    assert not full.keypoints[1].any()


def test_images_are_rgb_and_any_name_is_read(tmp_path: Path) -> None:
    dataset = open_dataset("coco", annotations=write_set(tmp_path, []), images=tmp_path / "images")
    for index in range(2):
        image = dataset.sample(index).image
        assert image.shape == (40, 60, 3)
        assert image[0, 0].tolist() == [255, 0, 0]
        assert image[0, 59].tolist() == [0, 0, 0]


def test_people_only(tmp_path: Path) -> None:
    path = write_set(tmp_path, [person(1, [0, 0, 9, 9]), person(2, [0, 0, 9, 9], image_id=3, iscrowd=1)])
    dataset = CocoKeypoints(path, tmp_path / "images", people_only=True)
    assert [dataset.sample(index).image_id for index in range(len(dataset))] == [7]


def test_other_joints_make_a_skeleton_with_flip_pairs(tmp_path: Path) -> None:
    category = {
        "id": 4,
        "name": "person",
        "keypoints": ["left_hand", "nose", "right_hand"],
        "skeleton": [[1, 2], [2, 3]],
    }
    path = write_set(tmp_path, [person(1, [0, 0, 9, 9], category_id=4, keypoints=[1, 2, 1] * 3)], category)
    dataset = CocoKeypoints(path, tmp_path / "images")
    assert dataset.skeleton.names == ("left_hand", "nose", "right_hand")
    assert dataset.skeleton.flip_pairs == ((0, 2),)
    assert dataset.skeleton.edges == ((0, 1), (1, 2))
    assert dataset.sample(1).keypoints.shape == (1, 3, 3)
    assert dataset.person_category == 4


def test_masks_of_every_encoding_and_all_categories(tmp_path: Path) -> None:
    square = np.zeros((40, 60), np.uint8)
    square[4:14, 6:16] = 1
    runs = [6 * 40 + 4, *[10, 30] * 9, 10, 60 * 40 - (15 * 40 + 14)]
    polygon = [[6, 4, 16, 4, 16, 14, 6, 14]]
    annotations = [
        person(1, [6, 4, 10, 10], segmentation=polygon, area=100),
        person(2, [6, 4, 10, 10], segmentation={"size": [40, 60], "counts": runs}),
        {**person(3, [6, 4, 10, 10], segmentation=encode_mask(square)), "category_id": 18, "keypoints": []},
        person(4, [6, 4, 10, 10], iscrowd=1, segmentation={"size": [40, 60], "counts": runs}),
    ]
    path = write_set(tmp_path, annotations)
    sample = CocoKeypoints(path, tmp_path / "images", masks=True, categories="all").sample(1)
    assert sample.labels is not None
    assert sample.labels.tolist() == [1, 1, 18]
    assert sample.masks is not None
    assert sample.masks.dtype == np.uint8
    assert all(np.array_equal(mask, square) for mask in sample.masks)
    assert len(sample.ignore) == 1
    assert not sample.keypoints[2].any()

    people = CocoKeypoints(path, tmp_path / "images", masks=True)
    sample = people.sample(1)
    assert (len(sample.boxes), sample.labels) == (2, None)
    assert sample.masks is not None
    assert sample.masks.shape == (2, 40, 60)
    empty = people.sample(0).masks
    assert empty is not None
    assert empty.shape == (0, 40, 60)
    assert CocoKeypoints(path, tmp_path / "images").sample(1).masks is None


def test_an_image_with_somebody_without_mask_has_none(tmp_path: Path) -> None:
    polygon = [[6, 4, 16, 4, 16, 14]]
    path = write_set(tmp_path, [person(1, [0, 0, 9, 9], segmentation=polygon), person(2, [0, 0, 9, 9])])
    assert CocoKeypoints(path, tmp_path / "images", masks=True).sample(1).masks is None


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [60, 40], "counts": [2400]}, r"must be of an image of \[40, 60\], got \[60, 40\]"),
        ({"size": [40, 60], "counts": [7]}, "must have runs over 2400 pixels"),
        ({"size": [40, 60], "counts": "no runs"}, r"must be run lengths of an image of \[40, 60\]"),
        ([[1, 2, 3, 4, 5]], "must hold polygons of finite numbers, x and y in turn"),
        ([["a"] * 6], "must hold polygons of finite numbers"),
        ({"size": [40, 60], "counts": [-5, 2405]}, "must have runs that are whole numbers from 0 on"),
        ({"size": [40, 60], "counts": "0"}, "must be run lengths of an image"),
        ("round", "must be polygons or run lengths, got str"),
    ],
)
def test_wrong_masks_are_named(tmp_path: Path, segmentation: Any, message: str) -> None:
    path = write_set(tmp_path, [person(7, [0, 0, 9, 9], segmentation=segmentation)])
    with pytest.raises(InputError, match=f"annotation 7: segmentation {message}"):
        CocoKeypoints(path, tmp_path / "images", masks=True)
    # Where masks are not asked for, they are not looked at.
    assert CocoKeypoints(path, tmp_path / "images").sample(1).masks is None


def test_polygons_without_three_points_are_empty_masks(tmp_path: Path) -> None:
    people = [person(1, [0, 0, 9, 9], segmentation=[[]]), person(2, [0, 0, 9, 9], segmentation=[[1, 2, 3, 4]])]
    masks = CocoKeypoints(write_set(tmp_path, people), tmp_path / "images", masks=True).sample(1).masks
    assert masks is not None
    assert masks.shape == (2, 40, 60)
    assert not masks.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": None}, "annotation 1: bbox must be 4 numbers, got None"),
        ({"bbox": [1, 2, 3]}, "annotation 1: bbox must be 4 numbers, got 3"),
        ({"bbox": [float("nan")] * 4}, "annotation 1: bbox must be 4 finite numbers"),
        ({"image_id": None}, "annotation 1 must have image_id, a whole number, got None"),
        ({"category_id": None}, "annotation 1 must have category_id, a whole number, got None"),
        ({"keypoints": [1, 2, 2]}, "annotation 1: keypoints must be 51 numbers, got 3"),
        ({"keypoints": ["1"] * 51}, "annotation 1: keypoints must be 51 finite numbers"),
    ],
)
def test_wrong_annotations_are_named_when_the_file_is_read(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write_set(tmp_path, [person(1, [0, 0, 9, 9], **change)])
    with pytest.raises(InputError, match=message):
        CocoKeypoints(path)


def test_images_need_their_ids_and_file_names(tmp_path: Path) -> None:
    path = write_set(tmp_path, [])
    content = json.loads(path.read_text())
    del content["images"][1]["file_name"]
    path.write_text(json.dumps(content))
    CocoKeypoints(path)
    with pytest.raises(InputError, match="image 3 must have its file_name, got None"):
        CocoKeypoints(path, tmp_path / "images")
    del content["images"][1]["id"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="images must be objects with an id, a whole number, but entry 1 is not"):
        CocoKeypoints(path)


@pytest.mark.parametrize("nothing", [[], None])
def test_a_category_without_joints_is_not_of_people(tmp_path: Path, nothing: Any) -> None:
    path = write_set(tmp_path, [person(1, [0, 0, 9, 9]), person(2, [0, 0, 9, 9], category_id=5)])
    content = json.loads(path.read_text())
    content["categories"].insert(0, {"id": 5, "name": "dog", "keypoints": nothing, "skeleton": nothing})
    path.write_text(json.dumps(content))
    dataset = CocoKeypoints(path)
    assert (dataset.person_category, dataset.skeleton) == (1, COCO17)
    assert dataset.count_people(1) == 1


def test_labels_refer_to_the_pixels_as_stored(tmp_path: Path) -> None:
    path = write_set(tmp_path, [person(1, [0, 0, 30, 40])])
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, :30] = (255, 0, 0)
    orientation = Image.Exif()
    orientation[0x0112] = 6  # "turn by a quarter"
    with (tmp_path / "images/seven.png").open("wb") as file:
        Image.fromarray(picture).save(file, "JPEG", exif=orientation, quality=95)
    image = CocoKeypoints(path, tmp_path / "images").sample(1).image
    assert image.shape == (40, 60, 3)
    assert image[20, 10, 0] > 240
    assert image[20, 50, 0] < 15


def test_wrong_input_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"annotations .*none.json.* cannot be read: No such file"):
        CocoKeypoints(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("people")
    with pytest.raises(InputError, match="is not a JSON file"):
        CocoKeypoints(tmp_path / "text.json")
    (tmp_path / "list.json").write_text('{"images": []}')
    with pytest.raises(InputError, match="COCO lists images, annotations and categories"):
        CocoKeypoints(tmp_path / "list.json")
    path = write_set(tmp_path, [person(1, [0, 0, 9, 9])])
    with pytest.raises(InputError, match="categories must be 'people' or 'all', got 'cars'"):
        CocoKeypoints(path, categories="cars")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="images must be a folder"):
        CocoKeypoints(path, tmp_path / "nowhere")
    dataset = CocoKeypoints(path, tmp_path / "images")
    with pytest.raises(InputError, match=r"index must be in 0\.\.1, got 2"):
        dataset.sample(2)
    with pytest.raises(InputError, match="no folder of images"):
        CocoKeypoints(path).sample(0)
    (tmp_path / "images/seven.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match="not in a format OpenCV decodes"):
        CocoKeypoints(path, tmp_path / "images").sample(1)
    with pytest.raises(InputError, match="dataset must be one of coco, lsp, lsp_extended, mpii, got 'mpi'"):
        open_dataset("mpi")


def test_the_real_miniature(test_data: Path) -> None:
    root = test_data / "pose2d/coco_mini"
    dataset = CocoKeypoints(root / "annotations/person_keypoints_train2017.json", root / "train2017")
    samples = [dataset.sample(index) for index in range(len(dataset))]
    assert len(samples) == 80
    assert sum(len(sample.boxes) for sample in samples) + sum(len(sample.ignore) for sample in samples) == 172
    assert sum(len(sample.ignore) for sample in samples) == 5
    assert sum(int((sample.keypoints[:, :, 2] > 0).any(1).sum()) for sample in samples) == 86


def test_the_masks_of_the_real_miniature(test_data: Path) -> None:
    root = test_data / "pose2d/coco_mini"
    path = root / "annotations/instances_train2017.json"
    dataset = CocoKeypoints(path, root / "train2017", masks=True, categories="all")
    labels, misses = set(), []
    for index in range(0, len(dataset), 8):
        sample = dataset.sample(index)
        assert sample.masks is not None
        assert sample.labels is not None
        labels |= set(sample.labels.tolist())
        counts = sample.masks.sum((1, 2), dtype=float)
        # COCO's area is that of the polygon, ours that of its pixels.
        assert counts == pytest.approx(sample.areas, rel=0.05, abs=40)
        for mask, box in zip(sample.masks, sample.boxes, strict=True):
            rows, columns = np.nonzero(mask)
            extent = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            misses.append(abs(extent - box).max())
    # Thin ends of a polygon, as fingers and leashes, set no pixel.
    assert np.percentile(misses, 85) < 1
    assert {1, 18} <= labels
    assert max(labels) > 60
