"""Training batches: batch number i of a seed is always the same, so a resumed run goes on where it was broken off."""

from __future__ import annotations

import signal
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pyposeext.datasets.sample import ImageDataset, Sample
from pyposeext.errors import InputError
from pyposeext.structures import Skeleton
from pyposeext.training.augment import Augmentation, mirrored, random_appearance, random_mosaic, random_view

# [B, C, H, W], or B images of different sizes.
Images = Tensor | list[Tensor]
Batch = tuple[Images, list[dict[str, Tensor]]]
# Of every process that prepares images.
CACHE_LIMIT = 2**30


class Stream(Protocol):
    """An endless list of training batches; item i is always the same."""

    def __getitem__(self, number: int) -> Batch: ...


class SampleCache:
    """The images of several data sets under one numbering, decoded once and kept while there is room.

    Attributes:
        owner, index: int64 [N], the data set of each image and its number there.
    """

    def __init__(
        self,
        datasets: Sequence[ImageDataset],
        weights: Sequence[float],
        skeleton: Skeleton,
        longest: int | None = None,
        limit: int = CACHE_LIMIT,
    ) -> None:
        """Sets up the numbering.

        Args:
            datasets: where the images come from; their joints are mapped to `skeleton` by name.
            weights: how often each set is drawn, relative to the others; only checked here.
            skeleton: the model's joints.
            longest: larger images are shrunk to this longer side; None leaves them.
            limit: bytes of pixels kept; the images used longest ago make room.
        """
        if not datasets or len(datasets) != len(weights):
            raise InputError(f"datasets must be one or more, with one weight each, got {len(datasets)}, {len(weights)}")
        self._datasets = list(datasets)
        self.owner = np.concatenate([np.full(len(dataset), i) for i, dataset in enumerate(datasets)])
        self.index = np.concatenate([np.arange(len(dataset)) for dataset in datasets])
        if not len(self.owner):
            raise InputError("datasets must hold at least one image, got none")
        share = np.asarray(weights, dtype=float)[self.owner]
        if not (share >= 0).all() or not np.isfinite(share).all() or share.sum() <= 0:
            raise InputError(f"weights must be positive numbers, got {list(weights)}")
        self._skeleton = skeleton
        self._longest = longest
        self._limit = limit
        self._bytes = 0
        self._samples: OrderedDict[int, Sample] = OrderedDict()

    def __len__(self) -> int:
        """How many images are kept at present."""
        return len(self._samples)

    def load(self, number: int) -> Sample:
        """Image `number` of all: the caller must not change it."""
        if number in self._samples:
            self._samples.move_to_end(number)
            return self._samples[number]
        dataset = self._datasets[int(self.owner[number])]
        sample = dataset.sample(int(self.index[number]))
        sample = replace(sample, keypoints=_by_name(sample.keypoints, dataset.skeleton, self._skeleton))
        if self._longest is not None:
            sample = _shrink(sample, self._longest)
        self._samples[number] = sample
        self._bytes += _size(sample)
        while self._bytes > self._limit and len(self._samples) > 1:
            self._bytes -= _size(self._samples.popitem(last=False)[1])
        return sample


class BatchStream(Dataset[Batch]):
    """An endless list of training batches; item i depends on the seed, the rank and i alone.

    Images are drawn from several data sets; see `SampleCache`.
    """

    def __init__(
        self,
        datasets: Sequence[ImageDataset],
        weights: Sequence[float],
        skeleton: Skeleton,
        *,
        batch_size: int,
        canvases: Sequence[tuple[int, int]] | None,
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
            canvases: sizes (height, width), multiples of 32; each batch takes one of them. None: whole images as they
                are, mirrored with the probability of `settings` and not otherwise changed, as Mask R-CNN was published.
            settings: the augmentation.
            seed, rank: decide the draws.
            longest: larger images are shrunk to this longer side; whole images are not.
        """
        self._cache = SampleCache(datasets, weights, skeleton, None if canvases is None else longest)
        people = [dataset.count_people(index) for dataset in datasets for index in range(len(dataset))]
        self._empty = np.flatnonzero(np.array(people) == 0)
        share = np.asarray(weights, dtype=float)[self._cache.owner]
        self._probability = share / share.sum()
        self._skeleton = skeleton
        self._batch_size = batch_size
        self._canvases = None if canvases is None else list(canvases)
        self._settings = settings
        self._seed = (seed, rank)

    def __getitem__(self, number: int) -> Batch:
        """Images float32 [B, 3, H, W] in 0..1, or B of [3, H, W] where they are whole, and a target for each.

        It has boxes, labels and ignore, keypoints where the model has joints, and masks where the data set gives them.
        """
        generator = np.random.default_rng([*self._seed, number])
        if self._canvases is None:
            samples = [self._draw_whole(generator) for _ in range(self._batch_size)]
            return [_tensor(sample.image) for sample in samples], [_target(sample) for sample in samples]
        size = self._canvases[int(generator.integers(len(self._canvases)))]
        height, width = self._canvases[0]
        count = max(round(self._batch_size * height * width / (size[0] * size[1])), 1)
        samples = [self._draw(size, generator) for _ in range(count)]
        images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
        return images.float().div_(255), [_target(sample) for sample in samples]

    def _draw_whole(self, generator: np.random.Generator) -> Sample:
        sample = self._cache.load(int(generator.choice(len(self._probability), p=self._probability)))
        return mirrored(sample, self._skeleton) if generator.random() < self._settings.flip else sample

    def _draw(self, size: tuple[int, int], generator: np.random.Generator) -> Sample:
        settings = self._settings
        backdrop = None
        if len(self._empty) and generator.random() < settings.backdrop:
            backdrop = self._cache.load(int(generator.choice(self._empty))).image
        tiles = 1
        if min(size) >= settings.mosaic_from and generator.random() < settings.mosaic:
            tiles = 9 if generator.random() < 1 / 8 else 4
        numbers = generator.choice(len(self._probability), tiles, p=self._probability)
        chosen = [self._cache.load(int(number)) for number in numbers]
        if tiles == 1:
            view = random_view(chosen[0], size, self._skeleton, settings, generator, backdrop=backdrop)
        else:
            view = random_mosaic(chosen, size, self._skeleton, settings, generator, backdrop=backdrop)
        return random_appearance(view, settings, generator)


class _From(Sampler[int]):
    """The batch numbers from `first` to `last` - 1."""

    def __init__(self, first: int, last: int) -> None:
        self._range = range(first, last)

    def __iter__(self) -> Iterator[int]:
        return iter(self._range)

    def __len__(self) -> int:
        return len(self._range)


class _Answering(Dataset[Batch | InputError]):
    """A stream that gives an InputError instead of raising it, since a worker would wrap it into its traceback."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __getitem__(self, number: int) -> Batch | InputError:
        try:
            return self._stream[number]
        except InputError as error:
            return error


def batches(stream: Stream, first: int, workers: int, pinned: bool = False) -> Iterator[Batch]:
    """The batches of `stream` from number `first` on, without end, made by `workers` processes (0: in this one).

    `pinned` puts them into page-locked memory, from which CUDA copies while it computes.
    """
    loader = DataLoader(
        _Answering(stream),
        batch_size=None,
        sampler=_From(first, 2**40),
        num_workers=workers,
        pin_memory=pinned,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
        # Of its own, so that starting the workers takes no number from the generator that models draw from.
        generator=torch.Generator(),
    )
    # A forked worker inherits OpenCV's pool but not its threads, and waits for them forever: fork without a pool.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return _raising(iter(loader))
    finally:
        cv2.setNumThreads(threads)


def _raising(answers: Iterator[Batch | InputError]) -> Iterator[Batch]:
    for answer in answers:
        if isinstance(answer, InputError):
            raise answer
        yield answer


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches workers too, but the step under way may still need their batches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _tensor(image: np.ndarray) -> Tensor:
    """Float32 [3, H, W] in 0..1."""
    return torch.from_numpy(image).permute(2, 0, 1).float().div_(255).contiguous()


def _target(sample: Sample) -> dict[str, Tensor]:
    labels = np.ones(len(sample.boxes), np.int64) if sample.labels is None else sample.labels
    target = {
        "boxes": torch.from_numpy(sample.boxes),
        "labels": torch.from_numpy(labels),
        "ignore": torch.from_numpy(sample.ignore),
    }
    if sample.keypoints.shape[1]:
        target["keypoints"] = torch.from_numpy(sample.keypoints)
    if sample.masks is not None:
        target["masks"] = torch.from_numpy(sample.masks)
    return target


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
        masks=None if sample.masks is None else _resized(sample.masks, image.shape[1::-1]),
        pose_boxes=None if sample.pose_boxes is None else (sample.pose_boxes + 0.5) * np.float32(scale) - 0.5,
    )


def _resized(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks [N, H, W] at (width, height)."""
    resized = np.zeros((len(masks), size[1], size[0]), np.uint8)
    for target, mask in zip(resized, masks, strict=True):
        cv2.resize(mask, size, target, interpolation=cv2.INTER_NEAREST_EXACT)
    return resized


def _size(sample: Sample) -> int:
    """Bytes of a sample's pixels."""
    return sample.image.nbytes + (0 if sample.masks is None else sample.masks.nbytes)
