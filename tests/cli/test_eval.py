"""`pyposeext eval` against the same figures computed directly, and one sentence for every wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyposeext.cli.main import main
from pyposeext.metrics import CocoEvaluation
from pyposeext.models import create_model
from pyposeext.models.weights import save_model
from pyposeext.training.person_stream import PersonAugmentation, PersonStream
from tests.training.generated import write_people

QUIET = ["--progress", "none", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labelled people and hrnet.safetensors, which knows them a little."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = write_people(folder / "set")
    torch.manual_seed(0)
    model: Any = create_model("hrnet_w18_small", input_size=(64, 64))
    settings = PersonAugmentation(half_body=0, scale=0.1, rotate=0, flip=0)
    stream = PersonStream([dataset], [1], model, batch_size=4, settings=settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for step in range(60):
        images, targets = stream[step]
        loss = model(list(images), targets)["loss_heatmap"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_model(folder / "hrnet.safetensors", model)
    return folder


def entry(folder: Path) -> str:
    return f"{folder}/set/people.json:{folder}/set/images"


def by_hand(folder: Path, boxes_of: Any) -> tuple[dict[str, float], list[float]]:
    """AP and scores of the model with the boxes and scores that `boxes_of` gives for an annotation, one to a person."""
    model: Any = create_model("hrnet_w18_small", folder / "hrnet.safetensors")
    dataset = write_people_again(folder)
    evaluation = CocoEvaluation(dataset.content, "keypoints", category_id=1)
    scores = []
    for index, annotation in enumerate(dataset.content["annotations"]):
        box, box_score = boxes_of(annotation)
        image = torch.from_numpy(dataset.sample(index).image)
        with torch.inference_mode():
            crops, matrices = model.crops(image, model.regions(torch.tensor([box])))
            keypoints, joints = model.estimate(crops, matrices, flip=True)
        counting = joints[0][joints[0] > 0.2]
        scores.append(box_score * float(counting.mean()) if len(counting) else 0.0)
        evaluation.update(annotation["image_id"], scores[-1:], keypoints=keypoints.numpy())
    return evaluation.compute(), scores


def write_people_again(folder: Path) -> Any:
    from pyposeext.datasets import CocoKeypoints

    return CocoKeypoints(folder / "set/people.json", folder / "set/images")


def true_box(annotation: dict[str, Any]) -> tuple[list[float], float]:
    """The box from its first to its last pixel: one less in width and height, as HRNet reads COCO."""
    x, y, width, height = annotation["bbox"]
    return [x, y, x + width - 1, y + height - 1], 1.0


def test_a_top_down_model_in_the_boxes_of_the_truth(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "--model", str(trained / "hrnet.safetensors"), "--data", entry(trained), "-o", str(tmp_path)]
    assert main([*arguments, "--json", *QUIET]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "metrics.json").read_text())
    assert printed["boxes"] == "truth"
    assert (printed["model"], printed["images"]) == ("hrnet_w18_small", 5)
    figures, scores = by_hand(trained, true_box)
    assert figures["AP"] > 0.3
    assert printed["metrics"]["keypoints"] == pytest.approx(figures, abs=1e-6)
    rows = json.loads((tmp_path / "keypoints.json").read_text())
    assert [row["image_id"] for row in rows] == [1, 2, 3, 4]
    assert [row["score"] for row in rows] == pytest.approx(scores, abs=1e-5)
    assert all(len(row["keypoints"]) == 51 for row in rows)

    # The file it wrote gives the same figures.
    arguments = ["eval", "--results", str(tmp_path / "keypoints.json"), "--truth", f"{trained}/set/people.json"]
    assert main([*arguments, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["metrics"]["keypoints"]
    assert again == pytest.approx(printed["metrics"]["keypoints"], abs=1e-9)


def test_a_top_down_model_in_the_boxes_of_a_file(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = json.loads((trained / "set/people.json").read_text())["annotations"]
    rows = [
        {"image_id": each["image_id"], "category_id": 1, "bbox": each["bbox"], "score": 0.5 + 0.1 * each["id"]}
        for each in people
    ]
    # The same person again, and a bus: suppressed by OKS, and no person.
    rows += [{**rows[0], "score": 0.2}, {**rows[1], "category_id": 6}]
    (tmp_path / "detections.json").write_text(json.dumps(rows))
    arguments = ["eval", "--model", "hrnet_w18_small", "--weights", str(trained / "hrnet.safetensors")]
    arguments += ["--data", entry(trained), "--detector", str(tmp_path / "detections.json"), "-o", str(tmp_path)]
    assert main([*arguments, *QUIET]) == 0
    table = capsys.readouterr().out
    assert "keypoints" in table
    metrics = json.loads((tmp_path / "metrics.json").read_text())

    def detected(annotation: dict[str, Any]) -> tuple[list[float], float]:
        x, y, width, height = annotation["bbox"]
        return [x, y, x + width, y + height], 0.5 + 0.1 * annotation["id"]

    figures, scores = by_hand(trained, detected)
    assert metrics["metrics"]["keypoints"] == pytest.approx(figures, abs=1e-6)
    assert f"{figures['AP']:.4f}" in table
    assert [row["score"] for row in json.loads((tmp_path / "keypoints.json").read_text())] == pytest.approx(
        scores, abs=1e-5
    )


def test_a_detector_on_whole_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_people(tmp_path / "set", count=2, masks=True)
    torch.manual_seed(0)
    options = {"min_size": 64, "proposals": (20, 10), "detections_per_image": 4, "score_threshold": 0.0}
    model: Any = create_model("mask_rcnn_resnet18_fpn", num_classes=2, frozen_norm=False, **options)
    save_model(tmp_path / "mask.safetensors", model)
    output = tmp_path / "out"
    arguments = ["eval", "--model", str(tmp_path / "mask.safetensors"), "--data", entry(tmp_path), "-o", str(output)]
    assert main([*arguments, *QUIET]) == 0
    assert capsys.readouterr().out.count("boxes") == 1
    boxes, masks = (json.loads((output / name).read_text()) for name in ("boxes.json", "segm.json"))
    assert not (output / "keypoints.json").exists()
    assert len(boxes) == len(masks) > 0
    with torch.inference_mode():
        dataset = write_people_again(tmp_path)
        image = torch.from_numpy(dataset.sample(0).image).permute(2, 0, 1).float() / 255
        found = model([image], masks="rle")[0]
    first = [row for row in boxes if row["image_id"] == 1]
    assert [row["score"] for row in first] == pytest.approx(found["scores"].tolist(), abs=1e-4)
    x1, y1, x2, y2 = found["boxes"][0].tolist()
    assert first[0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.05)
    assert masks[0]["segmentation"]["size"] == [96, 96]
    assert set(json.loads((output / "metrics.json").read_text())["metrics"]) == {"boxes", "masks"}


@pytest.mark.parametrize(
    ("kind", "results", "average"),
    [
        ("boxes", "instances_val2014_fakebbox100_results.json", 0.5045806987),
        ("masks", "instances_val2014_fakesegm100_results.json", 0.3195452758),
    ],
)
def test_a_results_file_with_known_figures(
    test_data: Path, capsys: pytest.CaptureFixture[str], kind: str, results: str, average: float
) -> None:
    folder = test_data / "reference"
    arguments = ["--results", str(folder / results), "--truth", str(folder / "instances_val2014_100.json")]
    assert main(["eval", *arguments, "--kind", kind, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"][kind]["AP"] == pytest.approx(average, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "eval needs --model and --data, or --results and --truth"),
        (["--model", "{w}"], "eval needs --model and --data, or --results and --truth"),
        (
            ["--model", "{w}", "--data", "{d}", "--truth", "x"],
            "eval needs --model and --data, or --results and --truth",
        ),
        (["--model", "nothing", "--data", "{d}"], "model must be one of"),
        (["--model", "{w}", "--data", "people.json"], "data must be ANNOTATIONS.json:IMAGES"),
        (["--model", "{w}", "--data", "none.json:images"], "annotations 'none.json' cannot be read"),
        (["--model", "{w}", "--data", "{d}", "--device", "tpu"], "device must be"),
        (["--model", "{w}", "--data", "{d}", "--oks-threshold", "2"], "oks_threshold must be in 0..1, got 2"),
        (["--model", "{w}", "--data", "{d}", "--boxes", "truth", "--detector", "x.json"], "got both"),
        (["--model", "{w}", "--data", "{d}", "--detector", "none.json"], "no such file: none.json"),
        (["--model", "default", "--data", "{d}", "--boxes", "truth"], "are for top-down models"),
        (["--results", "none.json", "--truth", "{t}"], "no such file: none.json"),
        (["--results", "{t}", "--truth", "{t}"], "must be a list in COCO's results layout"),
        (["--results", "{r}", "--truth", "{t}"], "image_id must be one of the ground truth's, got 77"),
        (["--results", "{r}", "--truth", "{t}", "--kind", "boxes"], "but has no bbox"),
        (["--results", "{r}", "--truth", "{t}", "--kind", "masks"], "truth must have masks"),
    ],
)
def test_wrong_input(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    row = {"image_id": 77, "category_id": 1, "score": 0.5, "keypoints": np.zeros(51).tolist()}
    (tmp_path / "results.json").write_text(json.dumps([row]))
    words = {"w": trained / "hrnet.safetensors", "d": entry(trained), "t": trained / "set/people.json"}
    filled = [word.format(**words, r=tmp_path / "results.json") for word in arguments]
    output = tmp_path / "out"
    assert main(["eval", *filled, "-o", str(output), "--progress", "none"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert not output.exists() or not list(output.iterdir())
