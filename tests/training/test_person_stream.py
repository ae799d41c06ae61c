"""Crops of people for training: their geometry, their randomness, and that the same number is the same batch."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pyposeext.datasets import CocoKeypoints
from pyposeext.datasets.sample import Sample, stack_boxes
from pyposeext.errors import InputError
from pyposeext.models.top_down import HeatmapHead, TopDownPose
from pyposeext.skeletons import COCO17, MPII16
from pyposeext.structures import Skeleton
from pyposeext.training.data import batches
from pyposeext.training.person_stream import (
    PERSON_AUGMENTATIONS,
    PersonAugmentation,
    PersonStream,
    joint_weights,
    random_crop,
)
from tests.training.generated import write_people
from tests.training.test_augment import LEFT_WRIST, NOSE, POINTS, RIGHT_WRIST, dot, sample_with_dots

COCO, NONE = PERSON_AUGMENTATIONS["coco"], PERSON_AUGMENTATIONS["none"]
# A square crop of exactly the box of the sample with dots, [20, 30, 100, 110], enlarged by 1.25.
SQUARE = (96, 96)


class Trunk(nn.Module):
    """One map at a quarter of the resolution."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.layers(images)]


def tiny_model(skeleton: Skeleton = COCO17, size: tuple[int, int] = (64, 64), width: int = 8) -> TopDownPose:
    torch.manual_seed(0)
    return TopDownPose(Trunk(width), HeatmapHead(width, len(skeleton)), skeleton, size)


def test_an_unchanged_crop_is_the_published_geometry() -> None:
    sample = sample_with_dots()
    crop = random_crop(sample, 0, SQUARE, COCO17, NONE, np.random.default_rng(0))
    # 96 pixels for 1.25 * 80, the box's centre (60, 70) in the middle of the crop.
    expected = (POINTS - [60, 70]) * 0.96 + 48
    assert crop.keypoints[0, [NOSE, LEFT_WRIST, RIGHT_WRIST], :2] == pytest.approx(expected, abs=1e-4)
    assert crop.image.shape == (96, 96, 3)
    assert crop.boxes[0] == pytest.approx([9.6, 9.6, 86.4, 86.4], abs=1e-4)
    assert crop.areas == pytest.approx([3000 * 0.96**2])


def test_a_joint_stays_on_its_pixel_through_everything() -> None:
    generator = np.random.default_rng(1)
    sample = sample_with_dots()
    mirrored = 0
    for _ in range(80):
        crop = random_crop(sample, 0, (128, 96), COCO17, COCO, generator)
        points = crop.keypoints[0, :, :2]
        assert (crop.keypoints[0, :, 2] > 0).sum() == 3
        seen = [place_of(crop.image, channel) for channel in range(3)]
        direct, swapped = (
            all(near(seen[channel], points[joint]) for channel, joint in enumerate(joints))
            for joints in ((NOSE, LEFT_WRIST, RIGHT_WRIST), (NOSE, RIGHT_WRIST, LEFT_WRIST))
        )
        # In a mirror image the left wrist is where the right one was.
        assert direct or swapped
        mirrored += swapped and not direct
    assert 20 < mirrored < 55


def place_of(image: np.ndarray, channel: int) -> np.ndarray | None:
    """The middle of a colour's dot, None where it is not wholly inside."""
    bright = image[:, :, channel] > 20
    if not bright.any():
        return None
    rows, columns = np.nonzero(bright)
    height, width = bright.shape
    if rows.min() == 0 or columns.min() == 0 or rows.max() == height - 1 or columns.max() == width - 1:
        return None
    return dot(image, channel)


def near(place: np.ndarray | None, point: np.ndarray) -> bool:
    return place is None or bool(np.abs(place - point).max() < 0.3)


def people(count: int, joints: int = 17) -> Sample:
    """`count` people with all joints, in a column of the width of one."""
    generator = np.random.default_rng(0)
    keypoints = np.concatenate(
        [generator.uniform(40, 160, (count, joints, 2)), np.full((count, joints, 1), 2.0)], axis=2
    ).astype(np.float32)
    boxes = stack_boxes([[30, 30, 170, 170]] * count)
    image = np.zeros((200, 200, 3), np.uint8)
    return Sample(image, boxes, keypoints, stack_boxes([]), "people", 1, np.full(count, 1e4, np.float32))


def test_half_bodies_come_as_often_as_published() -> None:
    sample = people(1)
    settings = PersonAugmentation(half_body=0.3, scale=0, rotate=0, flip=0)
    upper = sample.keypoints[0, :11, :2]
    lower = sample.keypoints[0, 11:, :2]
    whole = np.array([100.0, 100.0])
    generator = np.random.default_rng(3)
    centres = []
    for _ in range(4000):
        crop = random_crop(sample, 0, (64, 64), COCO17, settings, generator)
        # The source point in the middle of the crop: two joints determine the scale and the shift.
        (x0, y0), (x1, _) = crop.keypoints[0, [0, 16], :2]
        (u0, v0), (u1, _) = sample.keypoints[0, [0, 16], :2]
        scale = (x1 - x0) / (u1 - u0)
        centres.append([u0 + (32 - x0) / scale, v0 + (32 - y0) / scale])
    centre = np.array(centres)
    shares = [
        (np.abs(centre - expected).max(axis=1) < 0.05).mean() for expected in (whole, upper.mean(0), lower.mean(0))
    ]
    # P(normal < 0.5) = 0.6915: the released code draws from a normal distribution.
    assert shares == pytest.approx([0.7, 0.3 * 0.6915, 0.3 * 0.3085], abs=0.025)


def test_half_bodies_need_more_than_eight_joints_and_show_one_and_a_half_times_their_extent() -> None:
    settings = PersonAugmentation(half_body=1, scale=0, rotate=0, flip=0)
    sample = people(1)
    sample.keypoints[0, 8:] = 0
    plain = random_crop(sample, 0, (64, 64), COCO17, settings, np.random.default_rng(0))
    expected = random_crop(sample, 0, (64, 64), COCO17, NONE, np.random.default_rng(0))
    assert np.array_equal(plain.keypoints, expected.keypoints)

    sample = people(1)
    sample.keypoints[0, 11:14] = 0
    sample.keypoints[0, 14:, 2] = 0  # the lower half has no joint, so the upper one is shown
    crop = random_crop(sample, 0, (64, 64), COCO17, settings, np.random.default_rng(0))
    assert np.ptp(crop.keypoints[0, :11, :2], axis=0).max() == pytest.approx(64 / 1.5, rel=1e-4)


def test_scales_and_rotations_stay_in_their_bounds() -> None:
    sample = people(1)
    generator = np.random.default_rng(4)
    settings = PersonAugmentation(half_body=0, flip=0)
    scales, angles = [], []
    source = sample.keypoints[0, 16, :2] - sample.keypoints[0, 0, :2]
    for _ in range(2000):
        crop = random_crop(sample, 0, (64, 64), COCO17, settings, generator)
        line = crop.keypoints[0, 16, :2] - crop.keypoints[0, 0, :2]
        scales.append(64 / (140 * 1.25) / (np.linalg.norm(line) / np.linalg.norm(source)))
        angles.append(np.rad2deg(np.arctan2(line[1], line[0]) - np.arctan2(source[1], source[0])))
    angle = (np.array(angles) + 180) % 360 - 180
    assert min(scales) == pytest.approx(0.65, abs=1e-3)
    assert max(scales) == pytest.approx(1.35, abs=1e-3)
    # Cut at one standard deviation: 16 % on either end, and the middle of a normal distribution.
    assert np.mean(np.abs(np.array(scales) - 0.65) < 1e-3) == pytest.approx(0.159, abs=0.03)
    assert np.mean(np.abs(angle) < 1e-3) == pytest.approx(0.4, abs=0.035)
    assert np.abs(angle).max() == pytest.approx(90, abs=1e-2)
    turned = angle[np.abs(angle) > 1e-3]
    assert turned.std() == pytest.approx(45 * 0.94, rel=0.08)


def test_the_presets_are_the_published_values() -> None:
    assert (COCO.half_body, COCO.scale, COCO.rotation, COCO.rotate, COCO.flip) == (0.3, 0.35, 45, 0.6, 0.5)
    mpii = PERSON_AUGMENTATIONS["mpii"]
    assert (mpii.half_body, mpii.scale, mpii.rotation, mpii.rotate, mpii.flip) == (0, 0.25, 30, 0.6, 0.5)
    assert COCO.colour == COCO.blur == COCO.occlude == mpii.colour == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip": 1.5}, r"flip must be a probability in 0\.\.1, got 1\.5"),
        ({"scale": 1.0}, r"scale must be in 0\.\.1"),
        ({"rotation": -1.0}, "rotation not negative"),
    ],
)
def test_impossible_augmentations_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PersonAugmentation(**change)  # type: ignore[arg-type]


def stream(dataset: CocoKeypoints, settings: PersonAugmentation = COCO, **changes: Any) -> PersonStream:
    arguments: dict[str, Any] = {"batch_size": 3, "seed": 3, "rank": 0, **changes}
    return PersonStream([dataset], [1.0], tiny_model(), settings=settings, **arguments)


@pytest.mark.parametrize("limit", [2**30, 1])
def test_a_batch_is_decided_by_its_number(tmp_path: Path, limit: int) -> None:
    dataset = write_people(tmp_path / "set")
    first = list(islice(batches(stream(dataset), 0, workers=0), 4))
    numbers = stream(dataset, cache_limit=limit)
    again = list(islice(batches(numbers, 2, workers=1), 2))
    for (images, targets), (other_images, other_targets) in zip(first[2:], again, strict=True):
        assert torch.equal(torch.as_tensor(images), torch.as_tensor(other_images))
        for target, other in zip(targets, other_targets, strict=True):
            assert all(torch.equal(target[key], other[key]) for key in target)
    images = numbers[0][0]
    assert not torch.equal(images, stream(dataset, seed=4)[0][0])
    assert not torch.equal(images, stream(dataset, rank=1)[0][0])
    assert (len(numbers._cache) == 1) is (limit == 1)


def test_batches_are_what_a_model_takes(tmp_path: Path) -> None:
    model = tiny_model().train()
    images, targets = stream(write_people(tmp_path / "set"))[0]
    assert isinstance(images, torch.Tensor)
    assert images.shape == (3, 3, 64, 64)
    assert images.dtype == torch.float32
    # Black beyond the image, in the model's normalisation.
    black = [-mean / std for mean, std in zip(model.mean, model.std, strict=True)]
    assert images.amin((0, 2, 3)).tolist() == pytest.approx(black, abs=1e-5)
    assert targets[0]["weights"].tolist() == [1] * 17
    losses = model(list(images), targets)
    assert losses["loss_heatmap"].item() > 0


def test_joint_weights_are_an_option(tmp_path: Path) -> None:
    weights = stream(write_people(tmp_path / "set"), weigh_joints=True)[0][1][0]["weights"]
    assert weights.tolist() == pytest.approx([1] * 7 + [1.2, 1.2, 1.5, 1.5, 1, 1, 1.2, 1.2, 1.5, 1.5])
    assert joint_weights(MPII16)[:3] == [1.5, 1.2, 1.0]


def test_only_people_with_joints_are_drawn_each_as_often_as_another(tmp_path: Path) -> None:
    dataset = write_people(tmp_path / "set", count=3)
    content = json.loads((tmp_path / "set/people.json").read_text())
    first = content["annotations"][0]
    first["keypoints"] = [0] * 51
    content["annotations"].append({**content["annotations"][1], "id": 9, "iscrowd": 1})
    (tmp_path / "set/people.json").write_text(json.dumps(content))
    dataset = CocoKeypoints(tmp_path / "set/people.json", tmp_path / "set/images")
    assert [dataset.count_labelled(index) for index in range(len(dataset))] == [0, 1, 1, 0]
    numbers = stream(dataset, NONE, batch_size=100)
    images, _ = numbers[0]
    assert isinstance(images, torch.Tensor)
    kinds, counts = torch.unique(images.flatten(1)[:, 1500], return_counts=True)
    assert len(kinds) == 2
    assert counts.min() > 30

    class WithoutCounts:
        """The same set, which cannot tell who has joints without decoding."""

        name, licence, skeleton = "plain", "none", COCO17

        def __len__(self) -> int:
            return len(dataset)

        def count_people(self, index: int) -> int:
            return dataset.count_people(index)

        def sample(self, index: int) -> Sample:
            return dataset.sample(index)

    plain = PersonStream([WithoutCounts()], [1], tiny_model(), batch_size=100, settings=NONE)
    images, targets = plain[0]
    assert isinstance(images, torch.Tensor)
    kinds, counts = torch.unique(images.flatten(1)[:, 1500], return_counts=True)
    assert len(kinds) == 2
    assert counts.min() > 30
    assert all((target["keypoints"][:, 2] > 0).any() for target in targets)


def test_colours_and_patches_are_options(tmp_path: Path) -> None:
    dataset = write_people(tmp_path / "set", count=1)
    plain = stream(dataset, NONE)[0]
    settings = PersonAugmentation(half_body=0, scale=0, rotate=0, flip=0, colour=1, occlude=1)
    changed = stream(dataset, settings)[0]
    assert not torch.equal(torch.as_tensor(plain[0]), torch.as_tensor(changed[0]))
    for before, after in zip(plain[1], changed[1], strict=True):
        assert torch.equal(before["keypoints"][:, :2], after["keypoints"][:, :2])
        assert torch.equal(before["keypoints"][:, 2] > 0, after["keypoints"][:, 2] > 0)


def test_data_without_people_is_refused(tmp_path: Path) -> None:
    dataset = write_people(tmp_path / "set", count=0)
    with pytest.raises(InputError, match="at least one person to train on, got none"):
        stream(dataset)
    with pytest.raises(InputError, match="weights must be positive"):
        PersonStream([dataset], [-1], tiny_model(), batch_size=1, settings=COCO)


def test_a_tiny_model_learns_one_crop_by_heart(tmp_path: Path) -> None:
    numbers = PersonStream(
        [write_people(tmp_path / "set", count=1)], [1], tiny_model(width=32), batch_size=1, settings=NONE
    )
    images, targets = numbers[0]
    model = tiny_model(width=32).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model(list(images), targets)["loss_heatmap"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    model.eval()
    with torch.inference_mode():
        keypoints, _ = model.estimate(torch.as_tensor(images), flip=False)
    distance = (keypoints[0] - targets[0]["keypoints"][:, :2]).norm(dim=1)
    assert float((distance < 6).float().mean()) > 0.6
