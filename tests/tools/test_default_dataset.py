"""The teachers' graphs and the rules of the default data set, on the real data where they are present."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import build_default_dataset as build
from teacher import PersonDetector, Thunder

from pyposeext.datasets import LeedsSports
from pyposeext.metrics import PCK, torso_size
from pyposeext.skeletons import COCO17, LSP14


def test_overlap() -> None:
    union, inside = build._overlap(np.array([0.0, 0, 10, 10]), np.array([5.0, 0, 25, 10]))
    assert union == pytest.approx(50 / 250)
    assert inside == pytest.approx(0.5)


def test_annotations_are_scaled_about_pixel_centres() -> None:
    keypoints = np.zeros((17, 3))
    keypoints[3] = [9.5, 19.5, 2]
    person = build.Person([0, 10, 50, 300], keypoints.tolist(), "human", area=400)
    entry = build._annotation(person, 0.5, width=100, height=100)
    assert entry is not None
    assert entry["bbox"] == [0, 5, 25, 95]
    assert entry["area"] == 100
    assert entry["keypoints"][9:12] == [4.5, 9.5, 2]
    assert entry["num_keypoints"] == 1
    assert build._annotation(build.Person([200, 0, 300, 9], keypoints.tolist(), "human"), 0.5, 100, 100) is None


def test_lsp_joints_are_mapped_by_name() -> None:
    joints = np.column_stack([np.arange(14), np.arange(14), np.full(14, 2)]).astype(float)
    person = build._lsp_person(joints)
    for joint, name in enumerate(COCO17.names):
        expected = LSP14.names.index(name) if name in LSP14.names else 0
        assert person.keypoints[joint][:2] == [expected, expected], name


def test_splits_never_share_an_image(test_data: Path) -> None:
    items = [*build.coco_items(test_data / "pose2d"), *build.lsp_items(test_data / "pose2d")]
    held_out = [item for item in items if item.split.endswith("_val")]
    trained = {item.path for item in items if not item.split.endswith("_val")}
    assert len(held_out) == 30 + 500
    assert not trained & {item.path for item in held_out}
    assert all(item.complete for item in held_out)


def test_teachers_know_people(test_data: Path) -> None:
    """The published figure on all 500 images is 89.6 with labelled boxes."""
    dataset = LeedsSports(test_data / "pose2d/lsp", "test")
    thunder, detector = Thunder(test_data / "weights"), PersonDetector(test_data / "weights")
    metric, overlaps = PCK(0.2), []
    for index in range(0, 500, 50):
        sample = dataset.sample(index)
        joints = thunder(sample.image, sample.boxes[0].astype(float))
        truth = np.zeros((1, 17, 3))
        for lsp, coco in build.LSP_TO_COCO:
            truth[0, coco] = sample.keypoints[0, lsp]
        metric.update(joints[None], truth, torso_size(truth, 5, 12))
        box = sample.boxes[0].astype(float)
        overlaps.append(max(build._overlap(person[:4], box)[0] for person in detector(sample.image, 0.1)))
    assert float(metric.compute()["overall"]) > 0.8  # type: ignore[arg-type]
    # Faint or not, everybody is among the detections, in the right place.
    assert min(overlaps) > 0.6
    assert np.mean(overlaps) > 0.8
