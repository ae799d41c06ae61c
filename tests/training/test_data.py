"""Batches depend on their number, the seed and the rank, and on nothing else."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyposeext.datasets import CocoKeypoints, LeedsSports, Sample
from pyposeext.datasets.sample import stack_boxes
from pyposeext.errors import InputError
from pyposeext.skeletons import COCO17, LSP14, NO_JOINTS
from pyposeext.training.augment import Augmentation, mirrored
from pyposeext.training.data import BatchStream, SampleCache, batches
from tests.training.generated import write_people


def stream(dataset: CocoKeypoints, **changes: int) -> BatchStream:
    arguments = {"batch_size": 2, "seed": 3, "rank": 0, **changes}
    return BatchStream([dataset], [1.0], COCO17, canvases=[(64, 64), (96, 64)], settings=Augmentation(), **arguments)


def test_a_batch_is_decided_by_its_number(tmp_path: Path) -> None:
    dataset = write_people(tmp_path / "set")
    first = list(islice(batches(stream(dataset), 0, workers=0), 5))
    again = list(islice(batches(stream(dataset), 3, workers=1), 2))
    for (images, targets), (other_images, other_targets) in zip(first[3:], again, strict=True):
        assert torch.equal(images, other_images)
        for target, other in zip(targets, other_targets, strict=True):
            assert all(torch.equal(target[key], other[key]) for key in target)
    assert not torch.equal(stream(dataset)[0][0], stream(dataset, seed=4)[0][0])
    assert not torch.equal(stream(dataset)[0][0], stream(dataset, rank=1)[0][0])
    sizes = {tuple(images.shape) for images, _ in islice(batches(stream(dataset, batch_size=6), 0, workers=0), 12)}
    # As many pixels on every canvas.
    assert sizes == {(6, 3, 64, 64), (4, 3, 96, 64)}


def test_batches_are_what_a_model_takes(tmp_path: Path) -> None:
    images, targets = stream(write_people(tmp_path / "set"))[0]
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    for target in targets:
        count = len(target["boxes"])
        assert target["boxes"].shape == (count, 4)
        assert target["keypoints"].shape == (count, 17, 3)
        assert target["labels"].tolist() == [1] * count
        assert target["ignore"].shape[1] == 4


def test_targets_have_masks_and_labels_where_the_data_has_them(tmp_path: Path) -> None:
    write_people(tmp_path / "set", masks=True)
    content = json.loads((tmp_path / "set/people.json").read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 18
    content["categories"].append({"id": 18, "name": "dog"})
    (tmp_path / "set/people.json").write_text(json.dumps(content))
    paths = tmp_path / "set/people.json", tmp_path / "set/images"
    dataset = CocoKeypoints(*paths, masks=True, categories="all")
    arguments: dict[str, Any] = {"batch_size": 4, "settings": Augmentation(), "canvases": [(64, 96)]}
    _, targets = BatchStream([dataset], [1.0], NO_JOINTS, **arguments)[0]
    found = 0
    for target in targets:
        assert "keypoints" not in target
        assert target["labels"].tolist() == [18] * len(target["boxes"])
        if len(target["boxes"]):
            assert target["masks"].shape == (len(target["boxes"]), 64, 96)
            assert target["masks"].dtype == torch.uint8
            found += 1
    assert found
    _, targets = BatchStream([CocoKeypoints(*paths)], [1.0], COCO17, **arguments)[0]
    assert all("masks" not in target and "keypoints" in target for target in targets)


def test_whole_images_are_only_mirrored(tmp_path: Path) -> None:
    dataset = write_people(tmp_path / "set", count=2, masks=True)
    samples = [dataset.sample(index) for index in range(len(dataset))]
    whole = BatchStream([dataset], [1.0], COCO17, batch_size=20, canvases=None, settings=Augmentation())
    images, targets = whole[0]
    assert isinstance(images, list)
    seen = set()
    for image, target in zip(images, targets, strict=True):
        pixels = (image.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
        for number, sample in enumerate(samples):
            for mirror in (False, True):
                if np.array_equal(pixels, sample.image[:, ::-1] if mirror else sample.image):
                    seen.add((number, mirror))
                    wanted = mirrored(sample, COCO17) if mirror else sample
                    assert np.array_equal(target["boxes"].numpy(), wanted.boxes)
                    assert np.array_equal(target["keypoints"].numpy(), wanted.keypoints)
    assert len(seen) == 6
    assert [torch.equal(*pair) for pair in zip(images, whole[0][0], strict=True)] == [True] * 20
    never = BatchStream([dataset], [1.0], COCO17, batch_size=20, canvases=None, settings=Augmentation(flip=0))
    assert any(np.array_equal((never[0][0][0].permute(1, 2, 0) * 255).round(), sample.image) for sample in samples)


def test_the_cache_keeps_the_images_used_last_within_its_bound(tmp_path: Path) -> None:
    dataset = write_people(tmp_path / "set", count=3)
    cache = SampleCache([dataset], [1], COCO17, limit=2 * 96 * 96 * 3)
    first = cache.load(0)
    cache.load(1)
    assert cache.load(0) is first
    cache.load(2)
    assert len(cache) == 2
    assert cache.load(0) is first
    assert list(cache._samples) == [2, 0]


class OnePose:
    """A data set of one LSP person in a large image."""

    name, licence, skeleton = "one", "none", LSP14

    def __len__(self) -> int:
        return 1

    def count_people(self, index: int) -> int:
        return 1

    def sample(self, index: int) -> Sample:
        keypoints = np.zeros((1, 14, 3), np.float32)
        keypoints[0, 11] = [800, 400, 2]  # left wrist
        keypoints[0, 13] = [900, 300, 2]  # head top, which COCO has not
        boxes = stack_boxes([[700, 300, 900, 500]])
        image = np.zeros((500, 1000, 3), np.uint8)
        masks = np.zeros((1, 500, 1000), np.uint8)
        masks[0, 300:500, 700:900] = 1
        area = np.array([1e4], np.float32)
        return Sample(image, boxes, keypoints, stack_boxes([]), "one.jpg", 1, area, masks, pose_boxes=boxes - 0.5)


def test_joints_are_mapped_by_name_and_large_images_shrunk() -> None:
    numbers = BatchStream(
        [OnePose()], [1], COCO17, batch_size=1, canvases=[(64, 64)], settings=Augmentation(), longest=500
    )
    loaded = numbers._cache.load(0)
    assert loaded.image.shape == (250, 500, 3)
    assert loaded.boxes.tolist() == [[350, 150, 450, 250]]
    assert loaded.masks is not None
    assert loaded.masks.shape == (1, 250, 500)
    assert loaded.masks.sum() == loaded.masks[0, 150:250, 350:450].sum() == 10000
    assert loaded.areas.tolist() == [2500]
    assert loaded.pose_boxes is not None
    assert loaded.pose_boxes.tolist() == [[349.5, 149.5, 449.5, 249.5]]
    assert loaded.keypoints[0, COCO17.names.index("left_wrist")].tolist() == [399.75, 199.75, 2]
    assert (loaded.keypoints[0, :, 2] > 0).sum() == 1


def test_weights_decide_how_often_a_set_is_drawn(tmp_path: Path) -> None:
    one, other = write_people(tmp_path / "one"), write_people(tmp_path / "other")
    arguments = {"batch_size": 1, "canvases": [(64, 64)], "settings": Augmentation()}
    only = BatchStream([one, other], [1, 0], COCO17, **arguments)
    for number in range(6):
        only[number]
    assert only._cache._samples
    assert all(only._cache.owner[index] == 0 for index in only._cache._samples if only._probability[index] > 0)
    for wrong in ([1], [0, 0], [1, -1]):
        with pytest.raises(InputError, match="weight"):
            BatchStream([one, other], wrong, COCO17, **arguments)


def test_lsp_is_a_data_set_like_the_others() -> None:
    assert {"sample", "count_people", "__len__", "skeleton", "licence"} <= set(dir(LeedsSports))
