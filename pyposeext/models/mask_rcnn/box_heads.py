"""The heads of the box branch: what turns pooled features into class logits and box deltas."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from pyposeext.layers.normalization import Norm
from pyposeext.models.mask_rcnn.masks import conv_units


class TwoLayerHead(nn.Module):
    """Two fully connected layers with ReLU: [R, C, p, p] to [R, width]."""

    def __init__(self, in_features: int, width: int = 1024) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_features, width)
        self.fc7 = nn.Linear(width, width)

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(self.fc7(F.relu(self.fc6(input.flatten(1)))))


class ConvolutionalHead(nn.Sequential):
    """Four 3x3 convolutions with norm and ReLU and one fully connected layer: [R, C, p, p] to [R, width].

    He and Wu, "Group Normalization", ECCV 2018, section 4.2; torchvision's second version.
    """

    def __init__(self, channels: int, size: int, norm: Norm, width: int = 1024) -> None:
        super().__init__(
            *conv_units(channels, channels, 4, norm),
            nn.Flatten(),
            nn.Linear(channels * size * size, width),
            nn.ReLU(inplace=True),
        )


class StageHead(nn.Module):
    """The last stage of a ResNet as a head: [R, 1024, 14, 14] to [R, 2048, 7, 7] (He et al. 2017, figure 4, left)."""

    def __init__(self, layer4: nn.Module) -> None:
        super().__init__()
        self.layer4 = layer4

    def forward(self, input: Tensor) -> Tensor:
        return cast(Tensor, self.layer4(input))


class BoxPredictor(nn.Module):
    """Class logits [R, C] (background first) and box deltas [R, 4 * C], or [R, 4] where all classes share them.

    Args:
        in_features: of [R, in_features], or of maps [R, in_features, h, w], of which the mean is taken.
        num_classes: C.
        class_agnostic: one box per RoI whatever it shows.
    """

    def __init__(self, in_features: int, num_classes: int, class_agnostic: bool = False) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes)
        self.bbox_pred = nn.Linear(in_features, 4 if class_agnostic else 4 * num_classes)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        if input.dim() == 4:
            input = input.mean(dim=(2, 3))
        return self.cls_score(input), self.bbox_pred(input)
