"""The MPII reader on files generated in the official layout, and on real ones where they are present."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.io
import torch

from pyposeext.datasets import MpiiPose, open_dataset, read_mpii_truth
from pyposeext.errors import InputError
from pyposeext.layers.person_crops import crop_boxes, crop_matrices
from pyposeext.models.top_down import TopDownPose
from pyposeext.skeletons import MPII16

# What top-down models enlarge boxes by.
MARGIN = inspect.signature(TopDownPose.__init__).parameters["margin"].default


def person(image: str, centre: tuple[float, float] = (50.0, 60.0), scale: float = 0.4, **more: Any) -> dict[str, Any]:
    joints = [[10.0 + joint, 20.0 + 2 * joint] for joint in range(16)]
    return {"image": image, "center": list(centre), "scale": scale, "joints": joints, "joints_vis": [1] * 16, **more}


def write(folder: Path, content: Any, *images: str) -> Path:
    for name in images:
        cv2.imwrite(str(folder / name), np.full((150, 100, 3), 90, np.uint8))
    (folder / "mpii_val.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "mpii_val.json"


def published_matrix(record: dict[str, Any], size: int = 256) -> np.ndarray:
    """From the image to the crop, as HRNet's lib/dataset/mpii.py and lib/utils/transforms.py make it (no rotation)."""
    centre, scale = np.array(record["center"], float), np.array([record["scale"]] * 2, float)
    if centre[0] != -1:
        centre[1] += 15 * scale[1]
        scale = scale * 1.25
    centre = centre - 1
    half = scale[0] * 200 / 2
    # The centre, the middle of the upper edge, and its corner on the left.
    source = np.array([centre, centre - np.array([0, half]), centre - half], np.float32)
    target = np.array([[size / 2, size / 2], [size / 2, 0], [0, 0]], np.float32)
    return cv2.getAffineTransform(source, target)


def assert_crops_are_published(dataset: MpiiPose, records: list[dict[str, Any]]) -> None:
    corners = np.array([[0, 0, 1], [255, 0, 1], [0, 255, 1], [255, 255, 1]], float)
    for index in range(len(dataset)):
        rows = dataset.people(index)
        boxes = torch.from_numpy(dataset._boxes[rows])
        ours = crop_matrices(crop_boxes(boxes, (256, 256), MARGIN), (256, 256)).numpy()
        for row, matrix in zip(rows, ours, strict=True):
            there = np.linalg.inv(np.vstack([published_matrix(records[row]), [0, 0, 1]]))[:2]
            back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
            # Pixels of the image; both sides round to float32 on the way.
            np.testing.assert_allclose(corners @ back.T, corners @ there.T, atol=2e-3)


def test_people_are_grouped_by_image(tmp_path: Path) -> None:
    records = [person("b.jpg"), person("a.jpg", scale=1), person("b.jpg", (-1.0, -1.0)), person("b.jpg", (30.5, 2))]
    dataset = open_dataset("mpii", annotations=write(tmp_path, records, "a.jpg", "b.jpg"), images=tmp_path)
    assert isinstance(dataset, MpiiPose)
    assert (dataset.name, dataset.skeleton, len(dataset)) == ("mpii_val", MPII16, 2)
    assert [dataset.count_people(index) for index in range(2)] == [3, 1]
    assert [dataset.people(index).tolist() for index in range(2)] == [[0, 2, 3], [1]]
    sample = dataset.sample(0)
    assert (sample.name, sample.image_id) == ("b.jpg", 0)
    assert sample.image.shape == (150, 100, 3)
    assert sample.keypoints.shape == (3, 16, 3)
    # 15 * 0.4 down, one pixel up and left, 200 * 0.4 wide; without a centre 1 / 1.25 of that around (-2, -2).
    assert sample.boxes[0].tolist() == pytest.approx([9, 25, 89, 105])
    assert sample.boxes[1].tolist() == pytest.approx([-34, -34, 30, 30])
    assert sample.keypoints[0, 3].tolist() == [12, 25, 2]
    assert sample.areas[0] == pytest.approx(0.53 * (15 + 4.8) * (30 + 4.8), rel=1e-5)
    assert_crops_are_published(dataset, records)


def test_joints_that_are_missing(tmp_path: Path) -> None:
    partly = person("a.jpg")
    partly["joints"][2], partly["joints_vis"][2] = [-1, -1], 0
    partly["joints"][5], partly["joints_vis"][5] = [0, 0], 0
    untold = {key: value for key, value in person("a.jpg").items() if not key.startswith("joints")}
    sample = MpiiPose(write(tmp_path, [partly, untold], "a.jpg"), tmp_path).sample(0)
    assert sample.keypoints[0, [2, 5]].tolist() == [[0, 0, 0]] * 2
    assert (sample.keypoints[0, :, 2] == 2).sum() == 14
    assert not sample.keypoints[1].any()
    assert sample.areas[1] == pytest.approx(0.53 * 80 * 80)


def structs(*items: dict[str, Any]) -> np.ndarray:
    """MATLAB's array of structs: all have all fields, and what one lacks is empty."""
    fields = list(dict.fromkeys(field for item in items for field in item))
    rows = [tuple(item.get(field, np.zeros((0, 0))) for field in fields) for item in items]
    return np.array([rows], dtype=[(field, object) for field in fields])


def release(**more: Any) -> dict[str, Any]:
    """MPII's original layout: two training images, one test image, and people about whom little is known."""
    place = {"x": 50, "y": 60}
    points = (
        {"id": 6, "x": 40, "y": 50, "is_visible": "1"},
        {"id": 0, "x": 30.5, "y": 90, "is_visible": 0},
        {"id": 9, "x": 41, "y": 10, "is_visible": np.zeros((0, 0))},
    )
    head = {"x1": 1, "y1": 2, "x2": 3, "y2": 4}
    whole = {**head, "annopoints": {"point": structs(*points)}, "scale": 0.4, "objpos": place}
    one_joint = {**head, "annopoints": {"point": structs(points[0])}, "scale": 1.0, "objpos": place}
    no_joints = {**head, "annopoints": np.zeros((0, 0)), "scale": 0.4, "objpos": place}
    no_place = {
        **head,
        "annopoints": {"point": structs(*points)},
        "scale": np.zeros((0, 0)),
        "objpos": np.zeros((0, 0)),
    }
    images = structs(
        {"image": {"name": "a.jpg"}, "annorect": structs(whole, no_joints, no_place, one_joint)},
        {"image": {"name": "b.jpg"}, "annorect": {"scale": 2.0, "objpos": place}},
        {"image": {"name": "c.jpg"}, "annorect": np.zeros((0, 0))},
        {"image": {"name": "d.jpg"}, "annorect": {"scale": 1.0, "objpos": place, "annopoints": {"point": points[0]}}},
    )
    return {"RELEASE": {"annolist": images, "img_train": [1, 0, 0, 1], "version": "12", **more}}


def test_the_original_release(tmp_path: Path) -> None:
    path = tmp_path / "release.mat"
    scipy.io.savemat(path, release())
    train, test = MpiiPose(path, split="train"), MpiiPose(path, split="test")
    assert [train.count_people(index) for index in range(len(train))] == [2, 1]
    assert [test.count_people(index) for index in range(len(test))] == [1]
    first = train._keypoints[0]
    assert first[[6, 0, 9]].tolist() == [[39, 49, 2], [29.5, 89, 1], [40, 9, 2]]
    assert (first[:, 2] > 0).sum() == 3
    assert train._boxes[0].tolist() == pytest.approx([9, 25, 89, 105])
    assert train._keypoints[2, 6].tolist() == [39, 49, 2]
    assert not test._keypoints.any()
    for content, sentence in (
        ({"other": 1}, "must hold RELEASE with annolist and img_train"),
        (release(img_train=[1]), "must hold img_train for 4 images, got 1"),
    ):
        scipy.io.savemat(path, content)
        with pytest.raises(InputError, match=sentence):
            MpiiPose(path, split="train")
    for arguments, sentence in (
        ((path,), "split must be 'train' or 'test' with the original release, got None"),
        ((path, None, "val"), "split must be 'train' or 'test' with the original release, got 'val'"),
        ((write(tmp_path, []), None, "train"), "split must be None with a JSON file, got 'train'"),
    ):
        with pytest.raises(InputError, match=sentence):
            MpiiPose(*arguments)  # type: ignore[arg-type]


def test_truth(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    people = 3
    positions = generator.uniform(1, 500, (16, 2, people))
    missing = np.zeros((16, people), np.uint8)
    missing[4, 1] = 1
    heads = np.zeros((2, 2, people))
    heads[0, :, 2], heads[1, :, 2] = [11, 21], [41, 61]
    names = np.array([["head", "lsho"]], dtype=object)
    content = {"pos_gt_src": positions, "jnt_missing": missing, "headboxes_src": heads, "dataset_joints": names}
    scipy.io.savemat(tmp_path / "mpii_gt_val.mat", content)
    truth = read_mpii_truth(tmp_path / "mpii_gt_val.mat")
    np.testing.assert_allclose(truth.keypoints[2, 7, :2], positions[7, :, 2] - 1)
    assert truth.keypoints[:, 4, 2].tolist() == [2, 0, 2]
    assert truth.head_boxes[2].tolist() == [10, 20, 40, 60]
    scipy.io.savemat(tmp_path / "one.mat", {key: content[key][..., :1] for key in list(content)[:3]})
    assert read_mpii_truth(tmp_path / "one.mat").keypoints.shape == (1, 16, 3)
    for wrong, sentence in (
        ({"pos_gt_src": positions[:10]}, r"must hold pos_gt_src \[16, 2, N\], got \[10, 2, 3\]"),
        ({"jnt_missing": missing[:, :2]}, "must hold as many people in all of its arrays"),
        ({"headboxes_src": heads[:, :, :, None].repeat(2, 3)}, r"must hold headboxes_src \[2, 2, N\]"),
    ):
        scipy.io.savemat(tmp_path / "wrong.mat", {**content, **wrong})
        with pytest.raises(InputError, match=sentence):
            read_mpii_truth(tmp_path / "wrong.mat")
    with pytest.raises(InputError, match=r"gone\.mat' cannot be read"):
        read_mpii_truth(tmp_path / "gone.mat")
    (tmp_path / "text.mat").write_text("text" * 100)
    with pytest.raises(InputError, match="is not a MATLAB file"):
        read_mpii_truth(tmp_path / "text.mat")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not a JSON file"),
        ({}, "must be a list of people, got dict"),
        ([person("a.jpg"), {"image": "a"}], "person 1: must hold image, center and scale"),
        ([person("a.jpg", joints=[[1, 2]] * 15)], r"person 0: joints must be finite numbers \[16, 2\], got \[\[1, 2\]"),
        ([person("a.jpg", scale=None)], r"person 0: scale must be finite numbers \[\], got None"),
        ([person("a.jpg", joints_vis="all")], "person 0: joints_vis must be finite numbers"),
        ([person("a.jpg", joints=[[1], [2, 3]])], "person 0: joints must be finite numbers"),
    ],
)
def test_wrong_files(tmp_path: Path, content: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        MpiiPose(write(tmp_path, content))


def test_wrong_places(tmp_path: Path) -> None:
    path = write(tmp_path, [person("a.jpg")])
    with pytest.raises(InputError, match="cannot be read: No such file"):
        MpiiPose(tmp_path / "gone.json")
    with pytest.raises(InputError, match="images must be a folder"):
        MpiiPose(path, tmp_path / "gone")
    with pytest.raises(InputError, match="no folder of images was given, so image 0 cannot be read"):
        MpiiPose(path).sample(0)
    with pytest.raises(InputError, match=r"index must be in 0\.\.0, got 1"):
        MpiiPose(path).people(1)
    with pytest.raises(InputError, match=r"a\.jpg' cannot be read"):
        MpiiPose(path, tmp_path).sample(0)


def test_the_real_files(test_data: Path) -> None:
    folder = test_data / "pose2d/mmpose_reader_samples/mpii"
    if not folder.is_dir():
        pytest.skip("PYPOSEEXT_TEST_DATA holds no MPII sample")
    records = json.loads((folder / "test_mpii.json").read_text())
    dataset = MpiiPose(folder / "test_mpii.json", folder)
    assert len(dataset) == 5
    for index, record in enumerate(records):
        sample = dataset.sample(index)
        assert sample.name == record["image"]
        height, width = sample.image.shape[:2]
        labelled = sample.keypoints[0, sample.keypoints[0, :, 2] > 0, :2]
        assert len(labelled) == sum(record["joints_vis"])
        assert (labelled >= 0).all()
        assert (labelled < [width, height]).all()
        # The box holds the person: that is what the rule of the centre is for.
        assert (labelled >= sample.boxes[0, :2]).all()
        assert (labelled <= sample.boxes[0, 2:]).all()
    assert dataset.sample(0).keypoints[0, 0].tolist() == [803, 710, 2]
    assert_crops_are_published(dataset, records)
