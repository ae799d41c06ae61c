"""The mask branch of Mask R-CNN (He et al., ICCV 2017, section 3): heads, targets, loss and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyposeext import ops
from pyposeext.errors import InputError
from pyposeext.layers.normalization import Norm
from pyposeext.models.mask_rcnn.keypoints import initialise
from pyposeext.models.mask_rcnn.transform import Size, Target

MaskRule = Literal["torchvision", "detectron2"]
MaskForm = Literal["soft", "binary", "rle", "cells"]
MASK_FORMS = ("soft", "binary", "rle", "cells")


def conv_units(in_channels: int, channels: int, count: int, norm: Norm | None) -> list[nn.Module]:
    """3x3 convolutions, each with a ReLU, and with a norm in place of its bias where one is given."""
    units: list[nn.Module] = []
    for index in range(count):
        conv = nn.Conv2d(in_channels if index == 0 else channels, channels, 3, padding=1, bias=norm is None)
        initialise(conv)
        units.append(nn.Sequential(conv, *([] if norm is None else [norm(channels)]), nn.ReLU(inplace=True)))
    return units


class MaskHead(nn.Sequential):
    """Four 3x3 convolutions with ReLU, and a norm in between where one is given: [R, C, 14, 14] to the same size."""

    def __init__(self, in_channels: int = 256, channels: int = 256, depth: int = 4, norm: Norm | None = None) -> None:
        super().__init__(*conv_units(in_channels, channels, depth, norm))


class MaskPredictor(nn.Module):
    """A 2x2 transposed convolution of stride 2 with ReLU and a 1x1 convolution to one map per class.

    Args:
        in_channels: of the features; `channels`: between the two convolutions.
        outputs: one for each class with background, or 1 where all classes share one.
    """

    def __init__(self, in_channels: int, outputs: int, channels: int = 256) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(in_channels, channels, 2, 2)
        self.mask_fcn_logits = nn.Conv2d(channels, outputs, 1)
        initialise(self.conv5_mask)
        initialise(self.mask_fcn_logits)

    def forward(self, input: Tensor) -> Tensor:
        """[R, C, h, w] to logits [R, outputs, 2 * h, 2 * w]."""
        return self.mask_fcn_logits(F.relu(self.conv5_mask(input)))


def mask_targets(masks: Tensor, boxes: Tensor, matches: Tensor, size: int, rule: MaskRule = "torchvision") -> Tensor:
    """What the mask head must give for each box, its own mask cut out and resized.

    Args:
        masks: [n, H, W] of 0 and 1.
        boxes: [R, 4], the RoIs, in the masks' pixels.
        matches: int64 [R], the mask each answers for.
        size: cells along a side.
        rule: "torchvision": the share of each cell that the mask covers. "detectron2": the same with RoIAlign's half
            pixel, and 0 or 1 by whether it is at least a half.

    Returns:
        float32 [R, size, size] in 0..1.
    """
    rois = torch.cat([matches[:, None].to(boxes), boxes], dim=1).float()
    covered = ops.roi_align(masks[:, None].float(), rois, size, aligned=rule == "detectron2")[:, 0]
    return (covered >= 0.5).float() if rule == "detectron2" else covered


def mask_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of the map of each RoI's true class, mean over RoIs and cells; a scalar, 0 without RoIs.

    Args:
        logits: [R, C, m, m], or [R, 1, m, m] where the classes share one map.
        labels: int64 [R], the true classes.
        targets: [R, m, m] from `mask_targets`.
    """
    if len(labels) == 0:
        return 0 * logits.float().sum()
    return F.binary_cross_entropy_with_logits(_of_class(logits, labels).float(), targets)


def mask_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [R, C or 1, m, m] and the detected classes [R] to the probability of each cell, float32 [R, m, m]."""
    return _of_class(logits, labels).float().sigmoid()


def checked_form(form: str) -> MaskForm:
    """`form`, or an InputError that lists the forms there are."""
    if form not in MASK_FORMS:
        raise InputError(f"masks must be {', '.join(map(repr, MASK_FORMS[:-1]))} or {MASK_FORMS[-1]!r}, got {form!r}")
    return form  # type: ignore[return-value]


def masks_in_image(cells: Tensor, boxes: Tensor, size: Size, form: MaskForm, rule: MaskRule) -> Tensor | list[Any]:
    """The masks of one image's detections in the form that is asked for.

    Args:
        cells: probabilities [D, m, m].
        boxes: [D, 4] in pixels of the image.
        size: (height, width) of the image.
        form: "cells" gives `cells`; "soft" float [D, 1, height, width] in 0..1; "binary" bool [D, height, width], set
            from 0.5 on; "rle" a list of D {"size": [height, width], "counts": bytes} in COCO's encoding of the same.
        rule: of `pyposeext.ops.paste_masks`.
    """
    if form == "cells":
        return cells
    if form == "rle":
        return ops.paste_masks_rle(cells, boxes, size, rule=rule)
    if form == "binary":
        return ops.paste_masks(cells, boxes, size, rule=rule)
    return ops.paste_masks(cells, boxes, size, None, rule)[:, None]


def select_mask_rois(labels: Tensor, target: Target) -> Tensor:
    """Rows of one image's sampled proposals that the mask loss is computed on: the foreground, if it has masks."""
    rows = torch.where(labels > 0)[0]
    return rows if "masks" in target else rows[:0]


def all_mask_targets(
    boxes: Sequence[Tensor], matches: Sequence[Tensor], targets: Sequence[Target], size: int, rule: MaskRule
) -> Tensor:
    """`mask_targets` of a batch, image after image; images without masks have no boxes here."""
    parts = [
        mask_targets(target["masks"], image_boxes, image_matches, size, rule)
        for image_boxes, image_matches, target in zip(boxes, matches, targets, strict=True)
        if len(image_boxes)
    ]
    return torch.cat(parts) if parts else boxes[0].new_zeros(0, size, size)


def _of_class(maps: Tensor, labels: Tensor) -> Tensor:
    """The maps [R, m, m] of each row's class out of [R, C, m, m], or the only ones."""
    if maps.shape[1] == 1:
        return maps[:, 0]
    return maps[torch.arange(len(labels), device=labels.device), labels]
