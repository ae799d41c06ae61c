"""Refuses wrong images and targets, with a sentence that says which one is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyposeext.errors import InputError
from pyposeext.models.mask_rcnn.transform import Target


def check_images(images: Sequence[Tensor]) -> None:
    """At least one image, each floating point [3, h, w] with h, w >= 1."""
    if isinstance(images, Tensor) and images.dim() != 4:
        raise InputError(f"images must be a list of [3, h, w] or one [N, 3, h, w], got {list(images.shape)}")
    if len(images) == 0:
        raise InputError("images must hold at least one image, got none")
    for index, image in enumerate(images):
        if image.dim() != 3 or image.shape[0] != 3 or image.numel() == 0:
            raise InputError(f"image {index} must be [3, h, w] and not empty, got {list(image.shape)}")
        if not image.is_floating_point():
            raise InputError(f"image {index} must be floating point with values in 0..1, got {image.dtype}")


def check_boxes(images: Sequence[Tensor], boxes: Sequence[Tensor]) -> None:
    """One [n, 4] of finite boxes per image, each with x2 > x1 and y2 > y1."""
    if len(boxes) != len(images):
        raise InputError(f"boxes must hold one [n, 4] for each of the {len(images)} images, got {len(boxes)}")
    for index, image_boxes in enumerate(boxes):
        _check_boxes(f"boxes of image {index}", image_boxes)


def check_targets(
    images: Sequence[Tensor],
    targets: Sequence[Target] | None,
    num_classes: int,
    num_joints: int,
    has_masks: bool = False,
) -> None:
    """One target per image as `MaskRCNN.forward` describes it; joints and masks that the model has no use for pass."""
    if targets is None or len(targets) != len(images):
        got = "none" if targets is None else len(targets)
        raise InputError(f"targets must hold one dict for each of the {len(images)} images in training, got {got}")
    for index, target in enumerate(targets):
        for key in ("boxes", "labels"):
            if key not in target:
                raise InputError(f"target {index} must hold {key!r}, got {', '.join(target) or 'nothing'}")
        _check_boxes(f"target {index}: boxes", target["boxes"])
        if "ignore" in target:
            _check_shape(f"target {index}: ignore", target["ignore"], (None, 4))
        _check_people(f"target {index}", target, num_classes, num_joints)
        if has_masks and "masks" in target:
            _check_masks(f"target {index}: masks", target["masks"], len(target["boxes"]), images[index])


def _check_people(where: str, target: Target, num_classes: int, num_joints: int) -> None:
    count, labels = len(target["boxes"]), target["labels"]
    _check_shape(f"{where}: labels", labels, (count,))
    if labels.dtype != torch.int64:
        raise InputError(f"{where}: labels must be int64, got {labels.dtype}")
    wrong = (labels < 1) | (labels >= num_classes)
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise InputError(f"{where}: labels must be in 1..{num_classes - 1}, got {int(labels[index])} for box {index}")
    for key, shape in (("keypoints", (count, num_joints, 3)), ("keypoint_weights", (count, num_joints))):
        if key not in target or num_joints == 0:
            continue
        _check_shape(f"{where}: {key}", target[key], shape)
        wrong = ~torch.isfinite(target[key]).flatten(1).all(dim=1)
        if wrong.any():
            raise InputError(f"{where}: {key} must be finite, but those of box {int(wrong.nonzero()[0])} are not")


def _check_masks(name: str, masks: Tensor, count: int, image: Tensor) -> None:
    _check_shape(name, masks, (count, image.shape[1], image.shape[2]))
    if masks.dtype not in (torch.uint8, torch.bool):
        raise InputError(f"{name} must be uint8 or bool, 0 and 1, got {masks.dtype}")
    if masks.dtype == torch.uint8 and masks.numel() and int(masks.max()) > 1:
        raise InputError(f"{name} must be 0 and 1, got {int(masks.max())}")


def _check_boxes(name: str, boxes: Tensor) -> None:
    _check_shape(name, boxes, (None, 4))
    # Written so that NaN is refused as well.
    good = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & torch.isfinite(boxes).all(dim=1)
    if not good.all():
        index = int((~good).nonzero()[0])
        corners = ", ".join(f"{value:g}" for value in boxes[index].tolist())
        raise InputError(
            f"{name} must be finite with x2 > x1 and y2 > y1 (x1, y1, x2, y2, not x, y, width, height), "
            f"but box {index} is ({corners})"
        )


def _check_shape(name: str, value: Tensor, shape: tuple[int | None, ...]) -> None:
    fits = value.dim() == len(shape) and all(
        want in (None, have) for want, have in zip(shape, value.shape, strict=True)
    )
    if not fits:
        expected = ", ".join("n" if size is None else str(size) for size in shape)
        raise InputError(f"{name} must be [{expected}], got {list(value.shape)}")
