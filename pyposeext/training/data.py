"""Training batches: batch number i of a seed is always the same, so a resumed run goes on where it was broken off."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pyposeext.datasets.sample import ImageDataset, Sample
from pyposeext.errors import InputError
from pyposeext.structures import Skeleton
from pyposeext.training.augment import Augmentation, random_appearance, random_mosaic, random_view

Batch = tuple[Tensor, list[dict[str, Tensor]]]


class BatchStream(Dataset[Batch]):
    """An endless list of training batches; item i depends on the seed, the rank and i alone.

    Images are drawn from several data sets, decoded once and kept in memory (uint8, as small as `longest` allows).
    """

    def __init__(
        self,
        datasets: Sequence[ImageDataset],
        weights: Sequence[float],
        skeleton: Skeleton,
        *,
        batch_size: int,
        canvases: Sequence[tuple[int, int]],
        settings: Augmentation,
        seed: int = 0,
        rank: int = 0,
        longest: int = 640,
    ) -> None:
        """Sets up the stream.

        Args:
            datasets: where the images come from; their joints are mapped to `skeleton` by name.
            weights: how often an image of each set is drawn, relative to the others.
            skeleton: the model's joints.
            batch_size: images per batch on the first canvas; smaller canvases take more and larger ones fewer, so that
                a batch is always about the same work.
            canvases: sizes (height, width), multiples of 32; each batch takes one of them.
            settings: the augmentation.
            seed, rank: decide the draws.
            longest: larger images are shrunk to this longer side.
        """
        if not datasets or len(datasets) != len(weights):
            raise InputError(f"datasets must be one or more, with one weight each, got {len(datasets)}, {len(weights)}")
        self._datasets = list(datasets)
        self._owner = np.concatenate([np.full(len(dataset), i) for i, dataset in enumerate(datasets)])
        self._index = np.concatenate([np.arange(len(dataset)) for dataset in datasets])
        if not len(self._owner):
            raise InputError("datasets must hold at least one image, got none")
        people = [dataset.count_people(index) for dataset in datasets for index in range(len(dataset))]
        self._empty = np.flatnonzero(np.array(people) == 0)
        share = np.asarray(weights, dtype=float)[self._owner]
        if not (share >= 0).all() or share.sum() <= 0:
            raise InputError(f"weights must be positive numbers, got {list(weights)}")
        self._probability = share / share.sum()
        self._skeleton = skeleton
        self._batch_size = batch_size
        self._canvases = list(canvases)
        self._settings = settings
        self._seed = (seed, rank)
        self._longest = longest
        self._cache: dict[int, Sample] = {}

    def __getitem__(self, number: int) -> Batch:
        """Images float32 [B, 3, H, W] in 0..1 and a target for each: boxes, labels, keypoints and ignore."""
        generator = np.random.default_rng([*self._seed, number])
        size = self._canvases[int(generator.integers(len(self._canvases)))]
        height, width = self._canvases[0]
        count = max(round(self._batch_size * height * width / (size[0] * size[1])), 1)
        samples = [self._draw(size, generator) for _ in range(count)]
        images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
        return images.float().div_(255), [_target(sample) for sample in samples]

    def _draw(self, size: tuple[int, int], generator: np.random.Generator) -> Sample:
        settings = self._settings
        backdrop = None
        if len(self._empty) and generator.random() < settings.backdrop:
            backdrop = self._load(int(generator.choice(self._empty))).image
        tiles = 1
        if min(size) >= settings.mosaic_from and generator.random() < settings.mosaic:
            tiles = 9 if generator.random() < 1 / 8 else 4
        chosen = [self._load(int(number)) for number in generator.choice(len(self._owner), tiles, p=self._probability)]
        if tiles == 1:
            view = random_view(chosen[0], size, self._skeleton, settings, generator, backdrop=backdrop)
        else:
            view = random_mosaic(chosen, size, self._skeleton, settings, generator, backdrop=backdrop)
        return random_appearance(view, settings, generator)

    def _load(self, number: int) -> Sample:
        if number not in self._cache:
            dataset = self._datasets[int(self._owner[number])]
            sample = dataset.sample(int(self._index[number]))
            sample = replace(sample, keypoints=_by_name(sample.keypoints, dataset.skeleton, self._skeleton))
            self._cache[number] = _shrink(sample, self._longest)
        return self._cache[number]


class _From(Sampler[int]):
    """The batch numbers from `first` to `last` - 1."""

    def __init__(self, first: int, last: int) -> None:
        self._range = range(first, last)

    def __iter__(self) -> Iterator[int]:
        return iter(self._range)

    def __len__(self) -> int:
        return len(self._range)


def batches(stream: BatchStream, first: int, workers: int) -> Iterator[Batch]:
    """The batches of `stream` from number `first` on, without end, made by `workers` processes (0: in this one)."""
    loader = DataLoader(
        stream,
        batch_size=None,
        sampler=_From(first, 2**40),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
    )
    return iter(loader)


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches workers too, but the step under way may still need their batches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _target(sample: Sample) -> dict[str, Tensor]:
    return {
        "boxes": torch.from_numpy(sample.boxes),
        "labels": torch.ones(len(sample.boxes), dtype=torch.int64),
        "keypoints": torch.from_numpy(sample.keypoints),
        "ignore": torch.from_numpy(sample.ignore),
    }


def _by_name(keypoints: np.ndarray, source: Skeleton, target: Skeleton) -> np.ndarray:
    """Keypoints [N, K, 3] of one skeleton in the order of another; joints the source lacks are not labelled."""
    if source.names == target.names:
        return keypoints
    result = np.zeros((len(keypoints), len(target), 3), np.float32)
    for joint, name in enumerate(target.names):
        if name in source.names:
            result[:, joint] = keypoints[:, source.names.index(name)]
    return result


def _shrink(sample: Sample, longest: int) -> Sample:
    scale = longest / max(sample.image.shape[:2])
    if scale >= 1:
        return sample
    keypoints = sample.keypoints.copy()
    labelled = keypoints[:, :, 2:] > 0
    keypoints[:, :, :2] = np.where(labelled, (keypoints[:, :, :2] + 0.5) * scale - 0.5, 0)
    image: Any = cv2.resize(sample.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return replace(
        sample,
        image=image,
        boxes=sample.boxes * np.float32(scale),
        ignore=sample.ignore * np.float32(scale),
        keypoints=keypoints,
        areas=sample.areas * np.float32(scale**2),
    )
