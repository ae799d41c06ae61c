"""Random changes of labelled images, each of them one affine warp from the source image to the final canvas.

All functions take and return `Sample` (integer pixel coordinates are pixel centres) and draw from the generator they
are given, so that a seed decides everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pyposeext.datasets.sample import NOT_LABELLED, OCCLUDED, Sample
from pyposeext.structures import Skeleton

# The mean colour of ImageNet: after a model's normalisation it is 0, like the padding of a batch.
GREY = (124, 116, 104)
LOWER_BODY = ("pelvis", "hip", "knee", "ankle")


@dataclass(frozen=True)
class Augmentation:
    """How strongly to change an image; probabilities in 0..1.

    Attributes:
        flip: probability of mirroring.
        rotate: probability of a rotation, normally distributed with `rotation` degrees, cut at twice that.
        rotation: standard deviation in degrees.
        smallest, largest: between these shares of the canvas (or of its tile) lies the chosen person's longer side.
        half_body: probability of choosing only the upper or lower body of a person with 8 or more labelled joints.
        mosaic: probability that several images share a canvas, in 2 x 2 or (one in eight) 3 x 3 tiles: smaller people,
            and more of them for the same work.
        mosaic_from: canvases with a shorter side than this are not shared.
        backdrop: probability that an image without people, not grey, shows where the view leaves its image.
        occlude: probability of covering part of the canvas by patches.
        colour: probability of a change of colours.
        blur: probability of a loss of sharpness.
    """

    flip: float = 0.5
    rotate: float = 0.5
    rotation: float = 15.0
    smallest: float = 0.5
    largest: float = 1.05
    half_body: float = 0.08
    mosaic: float = 0.6
    mosaic_from: int = 320
    backdrop: float = 0.7
    occlude: float = 0.15
    colour: float = 0.7
    blur: float = 0.1


def warp(
    sample: Sample,
    matrix: NDArray[np.float64],
    size: tuple[int, int],
    skeleton: Skeleton,
    *,
    backdrop: NDArray[np.uint8] | None = None,
    least_visible: float = 0.25,
) -> Sample:
    """Takes a sample through an affine map.

    Args:
        sample: N people.
        matrix: [2, 3], source pixel to canvas pixel; a negative determinant mirrors, and left and right joints change
            places then.
        size: height and width of the canvas.
        skeleton: gives the pairs that change places.
        backdrop: uint8 [H, W, 3] of that size, shown where the source ends; None for grey.
        least_visible: people of whose box a smaller share stays on the canvas become regions to ignore.

    Returns:
        The canvas with the people that remain, boxes clipped to it, joints outside it not labelled. Where the map
        rotates, boxes of people with masks are the extent of these.
    """
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    whole = warp_boxes(sample.boxes, matrix)
    boxes = _clipped(whole, size)
    share: NDArray[np.float32] = (_area(boxes) / np.maximum(_area(whole), 1e-6)).astype(np.float32)
    masks = None
    if sample.masks is not None:
        masks, share = _warp_masks(sample.masks, share, matrix, size)
        if matrix[0, 1] or matrix[1, 0]:
            boxes = _extents(masks)
    keep = (share >= least_visible) & (boxes[:, 2:] - boxes[:, :2] >= 4).all(1)
    ignore = np.concatenate([_clipped(whole[~keep], size), _clipped(warp_boxes(sample.ignore, matrix), size)])
    return replace(
        sample,
        image=_warp_image(sample.image, matrix, size, backdrop),
        boxes=boxes[keep],
        keypoints=_warp_keypoints(sample.keypoints[keep], matrix, size, skeleton),
        areas=(sample.areas[keep] * scale**2 * share[keep]).astype(np.float32),
        ignore=ignore[_area(ignore) > 0],
        masks=None if masks is None else masks[keep],
        labels=None if sample.labels is None else sample.labels[keep],
        pose_boxes=None,
    )


def _warp_image(
    source: Any, matrix: NDArray[np.float64], size: tuple[int, int], backdrop: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    height, width = size
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 0.5:
        # warpAffine samples single source pixels: shrink first by a whole factor, or thin limbs alias away.
        factor = int(1 / scale)
        large = source.shape
        source = cv2.resize(source, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
        exact = np.array([large[1] / source.shape[1], large[0] / source.shape[0]])
        matrix = np.column_stack([matrix[:, :2] * exact, matrix[:, 2] + matrix[:, :2] @ ((exact - 1) / 2)])
    image = np.full((height, width, 3), GREY, np.uint8) if backdrop is None else backdrop.copy()
    cv2.warpAffine(source, matrix, (width, height), image, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT)
    return image


def _warp_keypoints(
    keypoints: NDArray[np.float32], matrix: NDArray[np.float64], size: tuple[int, int], skeleton: Skeleton
) -> NDArray[np.float32]:
    moved = keypoints.copy()
    moved[:, :, :2] = moved[:, :, :2] @ matrix[:, :2].T.astype(np.float32) + matrix[:, 2].astype(np.float32)
    if np.linalg.det(matrix[:, :2]) < 0:
        moved = moved[:, list(skeleton.flip_order)]
    outside = (moved[:, :, :2] < -0.5).any(2) | (moved[:, :, :2] > [size[1] - 0.5, size[0] - 0.5]).any(2)
    moved[outside | (moved[:, :, 2] == NOT_LABELLED)] = 0
    return moved


def _warp_masks(
    masks: NDArray[np.uint8], share: NDArray[np.float32], matrix: NDArray[np.float64], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The masks [N, H, W] on the canvas, and which share of each is on it; `share` is that of the boxes [N]."""
    height, width = size
    moved = np.zeros((len(masks), height, width), np.uint8)
    visible = np.zeros(len(masks), np.float32)
    scale = abs(float(np.linalg.det(matrix[:, :2])))
    for index, mask in enumerate(masks):
        if share[index] > 0:
            cv2.warpAffine(mask, matrix, (width, height), moved[index], cv2.INTER_NEAREST)
            before = cv2.countNonZero(mask) * scale
            # Counts of pixels before and after differ by their rounding.
            visible[index] = min(cv2.countNonZero(moved[index]) / before, 1.0) if before else 0.0
            if share[index] == 1 and visible[index] > 0:
                visible[index] = 1.0
    return moved, visible


def _extents(masks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The boxes [N, 4] around the set pixels of masks [N, H, W]; zeros where there is none."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        x, y, width, height = cv2.boundingRect(mask)
        box[:] = x, y, x + width, y + height
    return boxes


def mirrored(sample: Sample, skeleton: Skeleton) -> Sample:
    """The mirror image. The sides of boxes lie between pixels, as torchvision's training has it."""
    width = sample.image.shape[1]
    keypoints = sample.keypoints[:, list(skeleton.flip_order)]
    keypoints[:, :, 0] = np.where(keypoints[:, :, 2] > 0, width - 1 - keypoints[:, :, 0], 0)
    boxes, ignore = (
        np.stack([width - each[:, 2], each[:, 1], width - each[:, 0], each[:, 3]], axis=1)
        for each in (sample.boxes, sample.ignore)
    )
    return replace(
        sample,
        image=np.ascontiguousarray(sample.image[:, ::-1]),
        boxes=boxes,
        keypoints=keypoints,
        ignore=ignore,
        masks=None if sample.masks is None else np.ascontiguousarray(sample.masks[:, :, ::-1]),
        pose_boxes=None,
    )


def warp_boxes(boxes: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Boxes around the images of the ellipses inscribed in `boxes` [N, 4] under `matrix` [2, 3].

    People fill the middle of their boxes, not the corners: the extent of the rotated corners would be far too large.
    """
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    centre = centre @ matrix[:, :2].T + matrix[:, 2]
    half = np.sqrt(half**2 @ (matrix[:, :2] ** 2).T)
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


def random_view(
    sample: Sample,
    size: tuple[int, int],
    skeleton: Skeleton,
    settings: Augmentation,
    generator: np.random.Generator,
    *,
    backdrop: NDArray[np.uint8] | None = None,
) -> Sample:
    """A random view of one person of `sample`, or of the whole image where it holds none, on a canvas of `size`.

    Where the view leaves the image, a random piece of the image `backdrop` (of any size) shows, or grey.
    """
    matrix = _view_matrix(sample, size, skeleton, settings, generator)
    piece = None if backdrop is None else _random_piece(backdrop, size, generator)
    return warp(sample, matrix, size, skeleton, backdrop=piece)


def random_mosaic(
    samples: Sequence[Sample],
    size: tuple[int, int],
    skeleton: Skeleton,
    settings: Augmentation,
    generator: np.random.Generator,
    *,
    backdrop: NDArray[np.uint8] | None = None,
) -> Sample:
    """Random views of 4 or 9 samples in the tiles of one canvas; the lines between the tiles lie at random."""
    height, width = size
    count = round(len(samples) ** 0.5)
    rows, columns = (_random_cuts(length, count, generator) for length in (height, width))
    canvas = np.empty((height, width, 3), np.uint8)
    parts: list[Sample] = []
    for index, sample in enumerate(samples):
        row, column = divmod(index, count)
        top, bottom, left, right = rows[row], rows[row + 1], columns[column], columns[column + 1]
        part = random_view(sample, (bottom - top, right - left), skeleton, settings, generator, backdrop=backdrop)
        canvas[top:bottom, left:right] = part.image
        part.keypoints[:, :, :2] += np.where(part.keypoints[:, :, 2:] > 0, [left, top], 0).astype(np.float32)
        part.boxes += np.array([left, top, left, top], np.float32)
        part.ignore += np.array([left, top, left, top], np.float32)
        if part.masks is not None:
            tile = part.masks
            part.masks = np.zeros((len(tile), height, width), np.uint8)
            part.masks[:, top:bottom, left:right] = tile
        parts.append(part)
    people = [part for part in parts if len(part.boxes)]
    masks = [part.masks for part in people if part.masks is not None]
    labels = [np.ones(len(part.boxes), np.int64) if part.labels is None else part.labels for part in parts]
    return replace(
        samples[0],
        image=canvas,
        boxes=np.concatenate([part.boxes for part in parts]),
        keypoints=np.concatenate([part.keypoints for part in parts]),
        areas=np.concatenate([part.areas for part in parts]),
        ignore=np.concatenate([part.ignore for part in parts]),
        # A canvas with somebody without mask has none, and trains the rest.
        masks=np.concatenate(masks) if masks and len(masks) == len(people) else None,
        labels=None if all(part.labels is None for part in parts) else np.concatenate(labels),
        pose_boxes=None,
    )


def random_appearance(sample: Sample, settings: Augmentation, generator: np.random.Generator) -> Sample:
    """Changes colours and sharpness and covers parts of the canvas.

    Joints under a patch become occluded, and masks end there.
    """
    image: Any = sample.image
    if generator.random() < settings.blur:
        factor = generator.uniform(0.4, 0.8)
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
    if generator.random() < settings.colour:
        image = _change_colours(image, generator)
    sample = replace(sample, image=image)
    if len(sample.boxes) and generator.random() < settings.occlude:
        return _cover(sample, generator)
    return sample


def _view_matrix(
    sample: Sample,
    size: tuple[int, int],
    skeleton: Skeleton,
    settings: Augmentation,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """The affine map [2, 3] that puts a person, half a person or the whole image somewhere on the canvas."""
    height, width = size
    if len(sample.boxes):
        person = int(generator.integers(len(sample.boxes)))
        box = _focus(sample.boxes[person], sample.keypoints[person], skeleton, settings, generator)
        side = min(size) * float(np.exp(generator.uniform(np.log(settings.smallest), np.log(settings.largest))))
    else:
        box = np.array([0, 0, sample.image.shape[1], sample.image.shape[0]], np.float32)
        side = float(generator.uniform(1.0, 2.0) * max(size))
    longer = max(float(max(box[2:] - box[:2])), 4.0)
    # More than fourfold enlargement shows nothing that is in the source.
    scale = min(side / longer, 4.0)
    degrees = 0.0
    if generator.random() < settings.rotate:
        degrees = float(np.clip(generator.normal(0, settings.rotation), -2 * settings.rotation, 2 * settings.rotation))
    cosine, sine = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    linear = np.array([[cosine, -sine], [sine, cosine]])
    if generator.random() < settings.flip:
        linear[:, 0] *= -1
    room = np.maximum((np.array([width, height]) - scale * (box[2:] - box[:2])) / 2, 0) + 0.08 * side
    target = np.array([width - 1, height - 1]) / 2 + generator.uniform(-1, 1, 2) * room
    return np.column_stack([linear, target - linear @ ((box[:2] + box[2:]) / 2)])


def _random_cuts(length: int, count: int, generator: np.random.Generator) -> list[int]:
    """Where `count` tiles of about the same size begin along a side, and where the last one ends."""
    inner = (np.arange(1, count) + generator.uniform(-0.1, 0.1, count - 1)) * length / count
    return [0, *inner.astype(int).tolist(), length]


def _random_piece(image: NDArray[np.uint8], size: tuple[int, int], generator: np.random.Generator) -> NDArray[np.uint8]:
    """A random part of `image`, perhaps mirrored, at `size`."""
    height, width = size
    scale = max(height / image.shape[0], width / image.shape[1]) * float(np.exp(generator.uniform(0, 0.7)))
    room = np.array([image.shape[1] * scale - width, image.shape[0] * scale - height])
    corner = generator.random(2) * room
    matrix = np.array([[scale, 0, -corner[0]], [0, scale, -corner[1]]])
    piece: Any = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return piece if generator.random() < 0.5 else np.ascontiguousarray(piece[:, ::-1])


def _focus(
    box: NDArray[np.float32],
    keypoints: NDArray[np.float32],
    skeleton: Skeleton,
    settings: Augmentation,
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    """The box to show: the person's, or that of the upper or lower half of the body."""
    labelled = keypoints[:, 2] > 0
    if generator.random() >= settings.half_body or labelled.sum() < 8:
        return box
    lower = np.array([name.endswith(LOWER_BODY) for name in skeleton.names])
    half = labelled & (lower if generator.random() < 0.4 else ~lower)
    if half.sum() < 3:
        return box
    low, high = keypoints[half, :2].min(0), keypoints[half, :2].max(0)
    margin = 0.15 * max(high - low)
    return np.concatenate([low - margin, high + margin])


def _change_colours(image: Any, generator: np.random.Generator) -> Any:
    """Contrast, brightness, gamma and a tint by one table per channel; sometimes grey."""
    if generator.random() < 0.1:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
    levels = (np.arange(256) / 255) ** np.exp(generator.uniform(-0.3, 0.3))
    contrast = np.exp(generator.uniform(-0.35, 0.35))
    gains = np.exp(generator.uniform(-0.12, 0.12, 3))
    table = ((levels[:, None] - 0.5) * contrast + 0.5 + generator.uniform(-0.15, 0.15)) * gains
    return cv2.LUT(image, (table * 255).clip(0, 255).astype(np.uint8)[None])


def _cover(sample: Sample, generator: np.random.Generator) -> Sample:
    """Covers one to three spots on a person by a colour or by another piece of the canvas."""
    image, keypoints = sample.image.copy(), sample.keypoints.copy()
    masks, areas = sample.masks, sample.areas
    if masks is not None:
        masks = masks.copy()
    height, width = image.shape[:2]
    box = sample.boxes[int(generator.integers(len(sample.boxes)))]
    for _ in range(int(generator.integers(1, 4))):
        h, w = np.maximum((max(box[2:] - box[:2]) * generator.uniform(0.08, 0.25, 2)).astype(int), 2)
        h, w = min(int(h), height), min(int(w), width)
        x1 = int(np.clip(generator.uniform(box[0], box[2]) - w / 2, 0, width - w))
        y1 = int(np.clip(generator.uniform(box[1], box[3]) - h / 2, 0, height - h))
        if generator.random() < 0.5:
            image[y1 : y1 + h, x1 : x1 + w] = generator.integers(0, 256, 3)
        else:
            x0, y0 = int(generator.integers(0, width - w + 1)), int(generator.integers(0, height - h + 1))
            image[y1 : y1 + h, x1 : x1 + w] = image[y0 : y0 + h, x0 : x0 + w].copy()
        inside = ((keypoints[:, :, :2] >= [x1, y1]) & (keypoints[:, :, :2] < [x1 + w, y1 + h])).all(2)
        keypoints[:, :, 2] = np.where(inside & (keypoints[:, :, 2] > 0), OCCLUDED, keypoints[:, :, 2])
        if masks is not None:
            masks[:, y1 : y1 + h, x1 : x1 + w] = 0
    if masks is not None and sample.masks is not None:
        before, after = (np.count_nonzero(each, axis=(1, 2)) for each in (sample.masks, masks))
        areas = (areas * after / np.maximum(before, 1)).astype(np.float32)
    return replace(sample, image=image, keypoints=keypoints, masks=masks, areas=areas)


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return (boxes[:, 2] - boxes[:, 0]).clip(0) * (boxes[:, 3] - boxes[:, 1]).clip(0)


def _clipped(boxes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes [N, 4] cut off at a canvas (height, width)."""
    return boxes.clip(0, [size[1], size[0], size[1], size[0]]).astype(np.float32)
