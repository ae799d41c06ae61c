"""Top-down pose: the joints of the one person that a crop shows, as heatmaps.

The common part of the models that estimate one person at a time (Xiao et al., ECCV 2018; Sun et al., CVPR 2019): crops,
targets, loss, flip test, decoding and rescoring. A model is a trunk and a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyposeext import ops
from pyposeext.errors import InputError
from pyposeext.layers.person_crops import crop_boxes, crop_matrices, inverse_matrices
from pyposeext.models.weights import load_strictly
from pyposeext.ops.crop_affine import IMAGENET_MEAN, IMAGENET_STD
from pyposeext.skeletons import get_skeleton, skeleton_of
from pyposeext.structures import Skeleton

Decoding = Literal["none", "quarter", "dark"]
Target = dict[str, Tensor]

# The widest blur that heatmap_argmax has for DARK.
_LARGEST_BLUR = 31

# Joints below this score have no part in a person's score (HRNet's lib/dataset/coco.py).
_COUNTING_SCORE = 0.2


def joints_of(num_joints: int, skeleton: str | None = None) -> Skeleton:
    """The skeleton of that name, or without a name the one that published models of so many joints have.

    Raises:
        InputError: an unknown name, or a skeleton of another number of joints.
    """
    if skeleton is None:
        return skeleton_of(num_joints)
    named = get_skeleton(skeleton)
    if len(named) != num_joints:
        raise InputError(f"skeleton must be one of {num_joints} joints, got {skeleton!r} with {len(named)}")
    return named


def heatmap_layer(in_channels: int, num_joints: int) -> nn.Conv2d:
    """The 1x1 convolution to heatmaps, with the published initialisation."""
    layer = nn.Conv2d(in_channels, num_joints, 1)
    nn.init.normal_(layer.weight, std=0.001)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class HeatmapHead(nn.Module):
    """A 1x1 convolution of the finest map with a bias: HRNet's head.

    Args:
        in_channels: of the finest map.
        num_joints: K.
    """

    def __init__(self, in_channels: int, num_joints: int) -> None:
        super().__init__()
        self.conv = heatmap_layer(in_channels, num_joints)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The first of the maps, [B, in_channels, h, w], to heatmaps [B, K, h, w]."""
        return self.conv(features[0])


class TopDownPose(nn.Module):
    """A trunk and a head that gives one heatmap per joint.

    Args:
        trunk: [B, 3, H, W] to a list of maps, the finest first.
        head: that list to heatmaps [B, K, H / 4, W / 4].
        skeleton: the K joints, at least one.
        input_size: (height, width) of a crop, multiples of `multiple`.
        sigma: of the target Gaussians in pixels of the heatmap. None: height of the heatmap / 32, the published 2 for
            64 x 48 and 3 for 96 x 72.
        margin: by which boxes are enlarged before they are cut out.
        hard_joints: None, or the number of a sample's joints with the largest losses that alone count (OHKM of Chen et
            al., CVPR 2018; the released models do without).
        decoding: how `estimate` refines the maximum where it is not told: "quarter" as published, "dark" (Zhang et al.,
            CVPR 2020) or "none".
        multiple: what the trunk needs the sides of a crop to be multiples of.

    Attributes:
        skeleton, input_size, margin, decoding: as given. mean, std: of the normalisation, for values in 0..1, RGB.
    """

    stride = 4
    _flip_order: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        skeleton: Skeleton,
        input_size: Sequence[int] = (256, 192),
        *,
        sigma: float | None = None,
        margin: float = 1.25,
        hard_joints: int | None = None,
        decoding: Decoding = "quarter",
        multiple: int = 32,
    ) -> None:
        super().__init__()
        if not _are_sides(input_size, multiple):
            got = tuple(input_size) if isinstance(input_size, list) else input_size
            raise InputError(f"input_size must be (height, width), multiples of {multiple}, got {got!r}")
        if hard_joints is not None and not 1 <= hard_joints <= len(skeleton):
            raise InputError(f"hard_joints must be None or in 1..{len(skeleton)}, got {hard_joints}")
        if decoding not in ("none", "quarter", "dark"):
            raise InputError(f"decoding must be 'none', 'quarter' or 'dark', got {decoding!r}")
        for name, value in (("sigma", sigma), ("margin", margin)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be a positive number, got {value}")
        self.trunk = trunk
        self.head = head
        self.skeleton = skeleton
        self.input_size = (int(input_size[0]), int(input_size[1]))
        self.sigma = self.heatmap_size[0] / 32 if sigma is None else sigma
        self.margin = margin
        self.hard_joints = hard_joints
        self.decoding: Decoding = decoding
        self.multiple = multiple
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        self.register_buffer("_flip_order", torch.tensor(skeleton.flip_order), persistent=False)

    @property
    def heatmap_size(self) -> tuple[int, int]:
        """(height, width) of the heatmaps of a crop of `input_size`."""
        return self.input_size[0] // self.stride, self.input_size[1] // self.stride

    def forward(self, images: Tensor | Sequence[Tensor], targets: Sequence[Target] | None = None) -> Any:
        """Heatmaps in evaluation, the loss in training.

        Args:
            images: normalised crops [B, 3, H, W], or B of [3, H, W]; sides that are multiples of `multiple`.
            targets: in training one dict per crop: "keypoints" [K, 3], x and y in pixels of the crop and visibility (0
                is not labelled, 1 and 2 count alike), and optionally "weights" [K], each joint's weight in place of 1.
                A joint whose Gaussian lies outside counts as not labelled.

        Returns:
            In evaluation [B, K, H / 4, W / 4], about 0 to 1. In training {"loss_heatmap": scalar}.

        Raises:
            InputError: images or targets that are not as above.
        """
        batch = images if isinstance(images, Tensor) else _stacked(images)
        self._check_images(batch)
        if not self.training:
            return self.head(self.trunk(batch))
        keypoints, weights = self._checked_targets(batch, targets)
        return {"loss_heatmap": self.loss(self.head(self.trunk(batch)), keypoints, weights)}

    def loss(self, heatmaps: Tensor, keypoints: Tensor, weights: Tensor) -> Tensor:
        """Half of the mean squared error against Gaussians around the joints, in the mean over crops and joints.

        Args:
            heatmaps: [B, K, h, w].
            keypoints: [B, K, 2], x and y in pixels of the crop.
            weights: [B, K]; 0 leaves a joint out of the sum but not of the count, and 1.5 counts as 2.25, as published.
        """
        # As published, by int(x + 0.5): what lies left of or above the map comes a pixel nearer than by floor.
        centres = (keypoints / self.stride + 0.5).trunc()
        if self.hard_joints is None:
            return ops.gaussian_mse_loss(heatmaps, centres, weights, self.sigma)
        each = ops.gaussian_mse_loss(heatmaps, centres, weights, self.sigma, reduction="none")
        return each.topk(self.hard_joints, dim=1).values.mean()

    def regions(self, boxes: Tensor) -> Tensor:
        """What the crops of boxes [N, 4] show: float64 [N, 4], centre x and y, width, height; see `crop_boxes`."""
        return crop_boxes(boxes, self.input_size, self.margin)

    def crops(
        self,
        frames: Tensor,
        regions: Tensor,
        frame_index: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Normalised crops, made on the device of the frames.

        Args:
            frames: RGB uint8 [F, H, W, 3] or [H, W, 3].
            regions: [N, 4] from `regions`, on the same device.
            frame_index: int64 [N], the frame of each; None where there is one frame.
            dtype, channels_last: of the crops.

        Returns:
            crops [N, 3, height, width] of `input_size`, and the matrices [N, 2, 3] from the image to them, for
            `estimate`.
        """
        matrices = crop_matrices(regions, self.input_size)
        crops = ops.crop_affine(
            frames, matrices, self.input_size, frame_index, self.mean, self.std, dtype, channels_last=channels_last
        )
        return crops, matrices

    def estimate(
        self, crops: Tensor, matrices: Tensor | None = None, flip: bool = True, decoding: Decoding | None = None
    ) -> tuple[Tensor, Tensor]:
        """The joints in normalised crops.

        Args:
            crops: [N, 3, H, W].
            matrices: [N, 2, 3], from the image to the crop; None gives coordinates of the crop.
            flip: the flip test: the mean with the heatmaps of the mirrored crop, moved by one pixel, as published.
            decoding: None for the model's own.

        Returns:
            keypoints [N, K, 2], x and y in pixels, and scores [N, K], the maxima of the heatmaps: about 0 to 1, but not
            bounded. A map without a positive value gives the upper left corner of its crop, as published.
        """
        heatmaps = self(crops)
        mirrored = self(crops.flip(3)) if flip else None
        return self.decode(heatmaps, matrices, mirrored, decoding)

    def decode(
        self,
        heatmaps: Tensor,
        matrices: Tensor | None = None,
        mirrored: Tensor | None = None,
        decoding: Decoding | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Heatmaps [N, K, h, w], and perhaps those of the mirrored crops, to keypoints and scores; see `estimate`."""
        if matrices is None:
            affine = heatmaps.new_tensor([[self.stride, 0, 0], [0, self.stride, 0]], dtype=torch.float64)
            affine = affine.expand(len(heatmaps), 2, 3)
        else:
            affine = inverse_matrices(matrices, self.stride)
        # DARK's blur goes with the width of the training targets: 11 for sigma 2, 17 for sigma 3.
        kernel = min(max(2 * round(3 * self.sigma) - 1, 1), _LARGEST_BLUR)
        return ops.heatmap_argmax(
            heatmaps,
            self.decoding if decoding is None else decoding,
            blur_kernel=kernel,
            nonpositive="zero",
            flipped=mirrored,
            flip_permutation=None if mirrored is None else self._flip_order,
            flip_shift=0 if mirrored is None else 1,
            affine=affine,
        )

    def person_scores(self, box_scores: Tensor, joint_scores: Tensor) -> Tensor:
        """[N]: the box's score [N] times the mean of its joints' scores [N, K] above 0.2, 0 without such a joint."""
        # A score that is no number fails the comparison too.
        counts = joint_scores > _COUNTING_SCORE
        sums = torch.where(counts, joint_scores, 0).sum(dim=1)
        return box_scores * sums / counts.sum(dim=1).clamp(min=1)

    def load_trunk(self, state_dict: Mapping[str, Tensor], what: str = "weights") -> list[str]:
        """Load the trunk from a network that was trained for something else, as an ImageNet classifier of its authors.

        Of the state dict are taken the entries that begin like one of the trunk's (conv1, bn1, layer1, stage2, ...), so
        that a classifier or another head is left alone.

        Args:
            state_dict: in the authors' names, without a prefix.
            what: begins the sentence of an error.

        Returns:
            The names of entries that begin so and yet have no place in the trunk. HRNet's classifiers have those of the
            exchange from the last module to the coarser branches, which a pose network lacks.

        Raises:
            InputError: an entry that the trunk needs is missing or has another shape.
        """
        own = self.trunk.state_dict()
        parts = {name.split(".")[0] for name in own}
        candidates = {name: value for name, value in state_dict.items() if name.split(".")[0] in parts}
        load_strictly(self.trunk, {name: value for name, value in candidates.items() if name in own}, what)
        return [name for name in candidates if name not in own]

    def _check_images(self, images: Tensor) -> None:
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise InputError(
                f"images must be normalised crops, floating point [B, 3, H, W], got {images.dtype} {list(images.shape)}"
            )
        if any(side == 0 or side % self.multiple for side in images.shape[2:]):
            raise InputError(f"images must have sides that are multiples of {self.multiple}, got {list(images.shape)}")

    def _checked_targets(self, images: Tensor, targets: Sequence[Target] | None) -> tuple[Tensor, Tensor]:
        """Keypoints [B, K, 2] and weights [B, K] of a batch."""
        if len(images) == 0:
            raise InputError("images must hold at least one crop in training, got none")
        if targets is None or len(targets) != len(images):
            got = "none" if targets is None else len(targets)
            raise InputError(f"targets must hold one dict for each of the {len(images)} crops in training, got {got}")
        joints = len(self.skeleton)
        for index, target in enumerate(targets):
            for key, shape in (("keypoints", (joints, 3)), ("weights", (joints,))):
                if key == "keypoints" and key not in target:
                    raise InputError(f"target {index} must hold 'keypoints', got {', '.join(target) or 'nothing'}")
                if key in target and tuple(target[key].shape) != shape:
                    raise InputError(f"target {index}: {key} must be {list(shape)}, got {list(target[key].shape)}")
        # Looked at where the targets lie, so that a GPU is waited for only where they lie there.
        keypoints = torch.stack([target["keypoints"] for target in targets])
        labelled = keypoints[..., 2] > 0
        weights = labelled.float()
        for row, target in zip(weights, targets, strict=True):
            if "weights" in target:
                row.mul_(target["weights"].to(row))
        wrong = {
            "labelled keypoints": (labelled & ~torch.isfinite(keypoints[..., :2]).all(dim=-1)).any(dim=1),
            "weights": ~torch.isfinite(weights).all(dim=1),
        }
        for what, rows in wrong.items():
            if rows.any():
                raise InputError(f"target {int(rows.nonzero()[0])}: {what} must be finite, but some are not")
        points = torch.where(labelled[..., None], keypoints[..., :2].float(), 0)
        return points.to(images.device), weights.to(images.device)


def _are_sides(input_size: Any, multiple: int) -> bool:
    """Whether that is two whole numbers, multiples of `multiple` above 0."""
    if not isinstance(input_size, Sequence) or isinstance(input_size, str) or len(input_size) != 2:
        return False
    return all(isinstance(side, int) and side >= multiple and side % multiple == 0 for side in input_size)


def _stacked(images: Sequence[Tensor]) -> Tensor:
    if len(images) == 0:
        raise InputError("images must hold at least one crop, got none")
    if any(image.shape != images[0].shape for image in images):
        sizes = sorted({str(list(image.shape)) for image in images})
        raise InputError(f"images must all have one size, got {', '.join(sizes)}")
    return torch.stack(list(images))
