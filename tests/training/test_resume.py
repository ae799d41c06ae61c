"""A run broken off in the middle and continued equals an unbroken one bit for bit, for both kinds of models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pyposeext.datasets import CocoKeypoints
from pyposeext.models import create_model
from pyposeext.skeletons import COCO17, NO_JOINTS
from pyposeext.training.augment import Augmentation
from pyposeext.training.data import Batch, BatchStream, Stream, batches
from pyposeext.training.engine import Settings, Trainer
from pyposeext.training.person_stream import PERSON_AUGMENTATIONS, PersonStream
from tests.training.generated import write_people
from tests.training.test_person_stream import tiny_model

STEPS, BREAK = 4, 2


def top_down(dataset: CocoKeypoints) -> tuple[Any, Stream]:
    model = tiny_model()
    settings = PERSON_AUGMENTATIONS["coco"]
    return model, PersonStream([dataset], [1], model, batch_size=2, settings=settings)


def detector(dataset: CocoKeypoints) -> tuple[Any, Stream]:
    torch.manual_seed(0)
    model = create_model(
        "keypoint_rcnn_efficientnet_lite0_fpn",
        min_size=64,
        proposals=(20, 10),
        pyramid_channels=16,
        keypoint_channels=16,
        keypoint_blocks=1,
    )
    stream = BatchStream([dataset], [1], COCO17, batch_size=2, canvases=[(64, 64)], settings=Augmentation())
    return model, stream


def mask_detector(dataset: CocoKeypoints) -> tuple[Any, Stream]:
    torch.manual_seed(0)
    model = create_model("mask_rcnn_resnet18_fpn", num_classes=2, min_size=64, proposals=(20, 5), frozen_norm=False)
    return model, BatchStream([dataset], [1], NO_JOINTS, batch_size=1, canvases=None, settings=Augmentation())


class BrokenOffError(Exception):
    """Stands for a crash."""


def broken_at(source: Iterator[Batch], steps: int) -> Iterator[Batch]:
    for _ in range(steps):
        yield next(source)
    raise BrokenOffError


def curve(directory: Path) -> list[Any]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["learning_rate"], line["losses"]) for line in lines]


@pytest.mark.parametrize(
    ("kind", "precision", "workers"),
    [
        (top_down, "float32", 0),
        (top_down, "bfloat16", 2),
        (detector, "float32", 2),
        (detector, "bfloat16", 0),
        (mask_detector, "float32", 0),
    ],
)
def test_a_continued_run_equals_an_unbroken_one(tmp_path: Path, kind: Any, precision: Any, workers: int) -> None:
    write_people(tmp_path / "set", count=3, masks=True)
    dataset = CocoKeypoints(tmp_path / "set/people.json", tmp_path / "set/images", masks=True)
    settings = Settings(steps=STEPS, precision=precision, log_every=1, accumulate=2, average_decay=0.9)

    model, stream = kind(dataset)
    whole = Trainer(model, settings, tmp_path / "whole")
    whole.fit(batches(stream, 0, 0))

    model, stream = kind(dataset)
    broken = Trainer(model, settings, tmp_path / "broken")
    with pytest.raises(BrokenOffError):
        # Broken off after whole steps, which the checkpoint written below holds.
        broken.fit(broken_at(batches(stream, 0, workers), 2 * BREAK))
    assert broken.step == BREAK
    broken.save()
    model, stream = kind(dataset)
    resumed = Trainer(model, settings, tmp_path / "broken")
    assert (resumed.step, resumed.next_batch) == (BREAK, 2 * BREAK)
    resumed.fit(batches(stream, resumed.next_batch, workers))

    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    assert len(curve(tmp_path / "whole")) == STEPS
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
        assert torch.equal(whole.average.state_dict()[name], resumed.average.state_dict()[name]), name
