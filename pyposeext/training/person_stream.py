"""Training crops for top-down pose estimation: one person each, cut out and changed as HRNet's released code does.

Sun et al., "Deep High-Resolution Representation Learning for Human Pose Estimation", CVPR 2019, section 4.1, and
lib/dataset/JointsDataset.py of its release, where the paper says less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pyposeext.datasets.sample import ImageDataset, Sample
from pyposeext.errors import InputError
from pyposeext.layers.person_crops import crop_boxes, crop_matrices
from pyposeext.models.top_down import TopDownPose
from pyposeext.structures import Skeleton
from pyposeext.training.augment import LOWER_BODY, Augmentation, random_appearance
from pyposeext.training.data import CACHE_LIMIT, Batch, SampleCache

# The chosen half of a body needs more than two joints, and its box is enlarged by this much.
_HALF_BODY_JOINTS = 2
_HALF_BODY_MARGIN = 1.5
# The released code compares a normal number, not a uniform one, with 0.5: the upper half comes with 0.69.
_UPPER_BODY_BELOW = 0.5
# After so many people in a row without a labelled joint, a data set has none.
_MOST_DRAWS = 10_000
_JOINT_WEIGHTS = {"elbow": 1.2, "knee": 1.2, "wrist": 1.5, "ankle": 1.5}


@dataclass(frozen=True)
class PersonAugmentation:
    """How strongly to change a person's crop; probabilities in 0..1. The defaults are HRNet's for COCO.

    Attributes:
        half_body: probability of showing the upper or lower half of a person with more than `half_body_from` joints.
        half_body_from: labelled joints.
        scale: standard deviation of the region's enlargement about 1, cut at once that.
        rotate: probability of a rotation.
        rotation: its standard deviation in degrees, cut at twice that.
        flip: probability of mirroring.
        colour, blur, occlude: as in `Augmentation`; not part of the published recipe.
    """

    half_body: float = 0.3
    half_body_from: int = 8
    scale: float = 0.35
    rotate: float = 0.6
    rotation: float = 45.0
    flip: float = 0.5
    colour: float = 0.0
    blur: float = 0.0
    occlude: float = 0.0

    def __post_init__(self) -> None:
        for name in ("half_body", "rotate", "flip", "colour", "blur", "occlude"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be a probability in 0..1, got {getattr(self, name)}")
        if not 0 <= self.scale < 1 or self.rotation < 0:
            raise InputError(f"scale must be in 0..1 and rotation not negative, got {self.scale} and {self.rotation}")


# The published values by data set, and the images as they are.
PERSON_AUGMENTATIONS = {
    "coco": PersonAugmentation(),
    "mpii": PersonAugmentation(half_body=0, scale=0.25, rotation=30.0),
    "none": PersonAugmentation(half_body=0, scale=0, rotate=0, flip=0),
}


class PersonStream(Dataset[Batch]):
    """An endless list of batches of crops; item i depends on the seed, the rank and i alone.

    People with a labelled joint are drawn, each as often as any other of its data set. Their images are decoded once
    and kept while there is room, see `SampleCache`.
    """

    def __init__(
        self,
        datasets: Sequence[ImageDataset],
        weights: Sequence[float],
        model: TopDownPose,
        *,
        batch_size: int,
        settings: PersonAugmentation,
        weigh_joints: bool = False,
        seed: int = 0,
        rank: int = 0,
        cache_limit: int = CACHE_LIMIT,
    ) -> None:
        """Sets up the stream.

        Args:
            datasets: where the people come from; their joints are mapped to the model's by name.
            weights: how often a person of each set is drawn, relative to the others.
            model: says which joints, the size and margin of crops, and the normalisation.
            batch_size: crops per batch.
            settings: the augmentation.
            weigh_joints: elbows and knees weigh 1.2, wrists and ankles 1.5 (the released models do without).
            seed, rank: decide the draws.
            cache_limit: bytes of pixels kept.

        Raises:
            InputError: no data, or data without anybody.
        """
        self._cache = SampleCache(datasets, weights, model.skeleton, limit=cache_limit)
        # Where a data set cannot tell how many have joints, people without any are drawn too, and drawn again.
        counts = [
            getattr(dataset, "count_labelled", dataset.count_people)(index)
            for dataset in datasets
            for index in range(len(dataset))
        ]
        self._first = np.cumsum([0, *counts])
        share = np.repeat(np.asarray(weights, dtype=float)[self._cache.owner], counts)
        if not share.sum() > 0:
            raise InputError("datasets must hold at least one person to train on, got none")
        self._cumulative = np.cumsum(share)
        self._skeleton = model.skeleton
        self._size, self._margin = model.input_size, model.margin
        self._mean = torch.tensor(model.mean).view(3, 1, 1)
        self._std = torch.tensor(model.std).view(3, 1, 1)
        self._batch_size = batch_size
        self._settings = settings
        self._appearance = Augmentation(colour=settings.colour, blur=settings.blur, occlude=settings.occlude)
        self._weights = torch.tensor(joint_weights(model.skeleton) if weigh_joints else [1.0] * len(model.skeleton))
        self._seed = (seed, rank)

    def __getitem__(self, number: int) -> Batch:
        """Normalised crops float32 [B, 3, h, w] and a target for each, for `TopDownPose.forward`.

        It has keypoints [K, 3] in pixels of the crop, also of joints beyond its border, and weights [K].
        """
        generator = np.random.default_rng([*self._seed, number])
        crops = [self._draw(generator) for _ in range(self._batch_size)]
        images = torch.from_numpy(np.stack([crop.image for crop in crops])).permute(0, 3, 1, 2)
        images = (images.float() / 255 - self._mean) / self._std
        return images, [self._target(crop) for crop in crops]

    def _target(self, crop: Sample) -> dict[str, Tensor]:
        return {"keypoints": torch.from_numpy(crop.keypoints[0]), "weights": self._weights}

    def _draw(self, generator: np.random.Generator) -> Sample:
        """The crop of one person."""
        for _ in range(_MOST_DRAWS):
            drawn = np.searchsorted(self._cumulative, generator.random() * self._cumulative[-1], side="right")
            unit = min(int(drawn), len(self._cumulative) - 1)
            image = int(np.searchsorted(self._first, unit, side="right")) - 1
            sample = self._cache.load(image)
            people = _trainable(sample)
            person = unit - int(self._first[image])
            if person < len(people):
                crop = random_crop(
                    sample, int(people[person]), self._size, self._skeleton, self._settings, generator, self._margin
                )
                return random_appearance(crop, self._appearance, generator)
        raise InputError(f"datasets must hold people with labelled joints, got none among {_MOST_DRAWS} drawn")


def random_crop(
    sample: Sample,
    person: int,
    size: tuple[int, int],
    skeleton: Skeleton,
    settings: PersonAugmentation,
    generator: np.random.Generator,
    margin: float = 1.25,
) -> Sample:
    """One person of `sample`, changed at random, on a canvas of `size`; black where the image ends.

    Returns:
        A sample of that person alone. Joints beyond the canvas keep their places and visibilities.
    """
    keypoints = sample.keypoints[person]
    boxes = sample.boxes if sample.pose_boxes is None else sample.pose_boxes
    region = crop_boxes(torch.from_numpy(boxes[person : person + 1]), size, margin)
    if (keypoints[:, 2] > 0).sum() > settings.half_body_from and generator.random() < settings.half_body:
        half = _half_body_box(keypoints, skeleton, generator)
        if half is not None:
            region = crop_boxes(half[None], size, _HALF_BODY_MARGIN)
    spread = settings.scale
    region[:, 2:] *= float(np.clip(generator.normal() * spread + 1, 1 - spread, 1 + spread))
    degrees = 0.0
    if generator.random() < settings.rotate:
        most = 2 * settings.rotation
        degrees = float(np.clip(generator.normal() * settings.rotation, -most, most))
    mirror = generator.random() < settings.flip
    last = sample.image.shape[1] - 1
    if mirror:
        region[:, 0] = last - region[:, 0]
    matrix = crop_matrices(region, size, torch.tensor([degrees]))[0].numpy()
    if mirror:
        matrix[:, 2] += matrix[:, 0] * last
        matrix[:, 0] *= -1
    return _warp(sample, person, matrix, size, skeleton)


def joint_weights(skeleton: Skeleton) -> list[float]:
    """One per joint: 1.2 for elbows and knees, 1.5 for wrists and ankles, else 1."""
    return [_JOINT_WEIGHTS.get(name.rpartition("_")[2], 1.0) for name in skeleton.names]


def _trainable(sample: Sample) -> NDArray[np.int64]:
    """The rows of people with a labelled joint and a box with a side."""
    boxes = sample.boxes if sample.pose_boxes is None else sample.pose_boxes
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
    return np.flatnonzero((sample.keypoints[:, :, 2] > 0).any(axis=1) & (sides > 0))


def _half_body_box(keypoints: NDArray[np.float32], skeleton: Skeleton, generator: np.random.Generator) -> Tensor | None:
    """The extent of the labelled joints of one half, about their mean; None where neither half has enough."""
    labelled = keypoints[:, 2] > 0
    is_lower = np.array([name.endswith(LOWER_BODY) for name in skeleton.names])
    upper, lower = keypoints[labelled & ~is_lower, :2], keypoints[labelled & is_lower, :2]
    if generator.normal() < _UPPER_BODY_BELOW and len(upper) > _HALF_BODY_JOINTS:
        chosen = upper
    else:
        chosen = lower if len(lower) > _HALF_BODY_JOINTS else upper
    if len(chosen) < 2 or (chosen == chosen[0]).all():
        return None
    middle, half = chosen.mean(axis=0), (chosen.max(axis=0) - chosen.min(axis=0)) / 2
    return torch.from_numpy(np.concatenate([middle - half, middle + half]))


def _warp(
    sample: Sample, person: int, matrix: NDArray[np.float64], size: tuple[int, int], skeleton: Skeleton
) -> Sample:
    height, width = size
    image: Any = cv2.warpAffine(sample.image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    keypoints = sample.keypoints[person].copy()
    keypoints[:, :2] = keypoints[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    determinant = float(np.linalg.det(matrix[:, :2]))
    if determinant < 0:
        keypoints = keypoints[list(skeleton.flip_order)]
    keypoints[keypoints[:, 2] == 0] = 0
    x1, y1, x2, y2 = sample.boxes[person].astype(np.float64)
    corners = np.array([[x1, y1], [x2, y1], [x1, y2], [x2, y2]]) @ matrix[:, :2].T + matrix[:, 2]
    box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    return Sample(
        image=image,
        boxes=box[None].astype(np.float32),
        keypoints=keypoints[None],
        ignore=np.zeros((0, 4), np.float32),
        name=sample.name,
        image_id=sample.image_id,
        areas=sample.areas[person : person + 1] * np.float32(abs(determinant)),
    )
