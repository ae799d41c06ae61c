"""Models measured on data sets: an R-CNN that knows the answers, and what cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyposeext.datasets import CocoKeypoints
from pyposeext.errors import InputError
from pyposeext.io.rle import encode_segmentation
from pyposeext.models import create_model
from pyposeext.pipelines.detectors import Detections
from pyposeext.pipelines.evaluation import evaluate
from pyposeext.skeletons import COCO17, LSP14
from pyposeext.structures import Skeleton
from tests.training.generated import write_people


class Oracle(nn.Module):
    """Gives the truth of the images of a data set in their order, moved by `shift` pixels; labels are as asked for."""

    skeleton: Skeleton = COCO17

    def __init__(
        self,
        dataset: CocoKeypoints,
        shift: float = 0.0,
        num_classes: int = 2,
        keypoints: bool = True,
        masks: bool = True,
    ) -> None:
        super().__init__()
        self.has_masks = masks
        self.weight = nn.Parameter(torch.zeros(1))
        self.num_classes, self.has_keypoints = num_classes, keypoints
        self.shift = shift
        self.truth = dataset.content
        self.next = 0

    def forward(self, images: list[Tensor], masks: str = "soft") -> list[dict[str, Any]]:
        assert masks == ("rle" if self.has_masks else "soft")
        assert not self.training
        (image,) = images
        assert image.shape[0] == 3
        assert image.max() <= 1
        record = sorted(self.truth["images"], key=lambda each: each["id"])[self.next]
        self.next += 1
        people = [each for each in self.truth["annotations"] if each["image_id"] == record["id"]]
        sides = torch.tensor([each["bbox"] for each in people]).reshape(-1, 4)
        boxes = torch.cat([sides[:, :2], sides[:, :2] + sides[:, 2:]], dim=1) + self.shift
        points = torch.tensor([each.get("keypoints", [0] * 51) for each in people]).reshape(-1, 17, 3).float()
        encoded = [encode_segmentation(each.get("segmentation", []), 96, 96) for each in people]
        found = {
            "boxes": boxes,
            "labels": torch.tensor([each["category_id"] for each in people], dtype=torch.int64),
            "scores": torch.linspace(0.9, 0.8, len(people)),
            "masks": [{**mask, "counts": mask["counts"].encode()} for mask in encoded],
        }
        if self.has_keypoints:
            found["keypoints"] = points + torch.tensor([self.shift, self.shift, 0])
        return [found]


@pytest.fixture
def dataset(tmp_path: Path) -> CocoKeypoints:
    return write_people(tmp_path / "set", count=3, masks=True)


def test_a_detector_that_knows_the_answers_is_perfect(dataset: CocoKeypoints, tmp_path: Path) -> None:
    seen: list[int] = []
    model = Oracle(dataset).train()
    evaluation = evaluate(model, dataset, on_image=seen.append)
    assert model.training
    assert seen == [0, 1, 2, 3]
    figures = evaluation.compute()
    assert list(figures) == ["boxes", "masks", "keypoints"]
    assert all(values["AP"] == 1 for values in figures.values())
    evaluation.write(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"boxes.json", "segm.json", "keypoints.json"}
    row = json.loads((tmp_path / "out/boxes.json").read_text())[0]
    assert row == {"image_id": 1, "category_id": 1, "score": pytest.approx(0.9), "bbox": row["bbox"]}
    assert row["bbox"] == pytest.approx(dataset.content["annotations"][0]["bbox"], abs=1e-4)


def test_shifted_answers_are_worse(dataset: CocoKeypoints) -> None:
    figures = evaluate(Oracle(dataset, shift=3), dataset).compute()
    assert 0 < figures["boxes"]["AP"] < 1
    assert 0 < figures["keypoints"]["AP"] < 1
    assert figures["masks"]["AP"] == 1


def with_a_dog(folder: Path) -> CocoKeypoints:
    """The set with one more object, of category 18."""
    content = json.loads((folder / "people.json").read_text())
    first = content["annotations"][0]
    dog = {**first, "id": 99, "category_id": 18, "bbox": [5, 5, 20, 20], "area": 400}
    dog |= {"keypoints": [0] * 51, "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}
    content["annotations"].insert(0, dog)
    content["categories"].append({"id": 18, "name": "dog"})
    (folder / "people.json").write_text(json.dumps(content))
    return CocoKeypoints(folder / "people.json", folder / "images")


def test_categories_count_where_the_model_has_them(dataset: CocoKeypoints, tmp_path: Path) -> None:
    both = with_a_dog(tmp_path / "set")
    many = evaluate(Oracle(both, num_classes=91), both)
    assert {row["category_id"] for row in many.results["boxes"]} == {1, 18}
    assert {row["category_id"] for row in many.results["keypoints"]} == {1}
    assert all(values["AP"] == 1 for values in many.compute().values())
    # A model of people alone: whatever it finds is a person, and the dog is a false one.
    few = evaluate(Oracle(both), both)
    assert {row["category_id"] for row in few.results["boxes"]} == {1}
    assert few.compute()["boxes"]["AP"] < 1


def test_what_is_no_person_needs_no_mask_where_people_alone_count(dataset: CocoKeypoints, tmp_path: Path) -> None:
    both = with_a_dog(tmp_path / "set")
    oracle = Oracle(dataset)
    del both.content["annotations"][0]["segmentation"]
    assert evaluate(oracle, both).compute()["masks"]["AP"] == 1
    assert "masks" not in evaluate(Oracle(dataset, num_classes=91), both).compute()


def test_only_what_both_know_is_measured(dataset: CocoKeypoints, tmp_path: Path) -> None:
    assert list(evaluate(Oracle(dataset, keypoints=False), dataset).compute()) == ["boxes", "masks"]
    for annotation in dataset.content["annotations"]:
        del annotation["keypoints"]
    assert list(evaluate(Oracle(dataset, keypoints=False), dataset).compute()) == ["boxes", "masks"]
    other = write_people(tmp_path / "other", count=1)
    oracle = Oracle(other, masks=False)
    oracle.skeleton = LSP14
    assert list(evaluate(oracle, other).compute()) == ["boxes"]


class Boxes:
    """A detector with the same boxes in every image, one of them without area."""

    def __init__(self) -> None:
        self.source = {"name": "boxes"}
        self.names: list[str] = []

    def detect(self, inputs: Any) -> list[Detections]:
        (image,) = inputs
        self.names.append(image.name)
        boxes = np.array([[20, 10, 70, 90], [5, 5, 5, 9], [18, 12, 72, 88]], np.float32)
        return [Detections(boxes, np.array([0.5, 0.9, 0.01], np.float32))]


def test_a_top_down_model_takes_all_boxes_of_a_detector(dataset: CocoKeypoints) -> None:
    model = create_model("hrnet_w18_small", input_size=(64, 64))
    detector = Boxes()
    evaluation = evaluate(model, dataset, detector)
    assert detector.names == ["1.png", "2.png", "3.png", "4.png"]
    assert evaluation.boxes == {"name": "boxes"}
    # Both with area, however low their scores; suppression may take one of them.
    assert 4 <= len(evaluation.results["keypoints"]) <= 8
    truth = evaluate(model, dataset)
    assert truth.boxes == "truth"
    assert len(truth.results["keypoints"]) == 3


def test_people_of_one_pixels_width_are_measured_as_hrnet_does(dataset: CocoKeypoints, tmp_path: Path) -> None:
    content = dataset.content
    (first, second, third) = content["annotations"]
    first["bbox"] = [40, 20, 1, 60]
    second["bbox"] = [20, 40, 60, 1]
    third["bbox"] = [40, 40, 1, 1]
    (tmp_path / "set/people.json").write_text(json.dumps(content))
    thin = CocoKeypoints(tmp_path / "set/people.json", tmp_path / "set/images")
    model: Any = create_model("hrnet_w18_small", input_size=(128, 96))
    seen = []
    regions = model.regions
    model.regions = lambda boxes: seen.append(regions(boxes)) or seen[-1]
    found = evaluate(model, thin).results["keypoints"]
    assert [row["image_id"] for row in found] == [1, 2]
    # By HRNet's code, from the first to the last pixel: 59 high is 59 * 0.75 wide, and 59 wide is 59 / 0.75 high.
    expected = torch.tensor([[40, 49.5, 59 * 0.75, 59], [49.5, 40, 59, 59 / 0.75]], dtype=torch.float64)
    expected[:, 2:] *= 1.25
    torch.testing.assert_close(torch.cat(seen), expected)


def test_data_of_other_joints_is_refused(tmp_path: Path, dataset: CocoKeypoints) -> None:
    model = create_model("hrnet_w18_small", input_size=(64, 64), num_joints=16)
    with pytest.raises(InputError, match=r"data must label the model's 16 joints \(mpii16\), got the 17 of people"):
        evaluate(model, dataset)
