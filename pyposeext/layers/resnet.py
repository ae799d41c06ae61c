"""ResNet-18, -34, -50 and -101 as trunks, in torchvision's key layout.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. The stride of a bottleneck lies on its 3x3
convolution ("v1.5"), or on its first 1x1 as in the paper and detectron2's ResNet-50 and -101.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pyposeext.errors import InputError
from pyposeext.layers.normalization import Norm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm, stride_in_1x1: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = norm(width)
        self.downsample = _shortcut(in_channels, width, stride, norm)

    def forward(self, input: Tensor) -> Tensor:
        output = F.relu_(self.bn1(self.conv1(input)))
        output = self.bn2(self.conv2(output))
        output += input if self.downsample is None else self.downsample(input)
        return F.relu_(output)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut; four times `width` channels come out."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm, stride_in_1x1: bool = False) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, first, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = norm(4 * width)
        self.downsample = _shortcut(in_channels, 4 * width, stride, norm)

    def forward(self, input: Tensor) -> Tensor:
        output = F.relu_(self.bn1(self.conv1(input)))
        output = F.relu_(self.bn2(self.conv2(output)))
        output = self.bn3(self.conv3(output))
        output += input if self.downsample is None else self.downsample(input)
        return F.relu_(output)


_DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """A ResNet without its classifier.

    Args:
        depth: 18, 34, 50 or 101.
        norm: builds every norm from its number of channels; `FrozenBatchNorm2d` where pretrained weights are loaded,
            `nn.BatchNorm2d` from scratch.
        trainable_stages: how many of layer4, layer3, layer2, layer1 and the stem, in this order, get gradients: 0..5.
        stride_in_1x1: the stride of a bottleneck lies on its first convolution.
        with_layer4: False ends with C4.

    Attributes:
        channels: of C2..C5.
        strides: of C2..C5.
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self,
        depth: int = 50,
        norm: Norm = nn.BatchNorm2d,
        trainable_stages: int = 5,
        stride_in_1x1: bool = False,
        with_layer4: bool = True,
    ) -> None:
        super().__init__()
        if depth not in _DEPTHS:
            raise InputError(f"depth must be one of {', '.join(map(str, _DEPTHS))}, got {depth}")
        if not 0 <= trainable_stages <= 5:
            raise InputError(f"trainable_stages must be in 0..5, got {trainable_stages}")
        block = _DEPTHS[depth][0]
        self.channels = tuple(width * block.expansion for width in (64, 128, 256, 512))
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = norm(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2, self.layer3 = (resnet_stage(depth, stage, norm, stride_in_1x1) for stage in (1, 2, 3))
        self.layer4 = resnet_stage(depth, 4, norm, stride_in_1x1) if with_layer4 else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        stages = (self.layer4, self.layer3, self.layer2, self.layer1, nn.ModuleList([self.conv1, self.bn1]))
        for stage in stages[trainable_stages:]:
            if stage is not None:
                stage.requires_grad_(False)

    def forward(self, input: Tensor) -> list[Tensor]:
        """[N, 3, H, W] to C2..C5 at strides 4, 8, 16, 32, or to C2..C4."""
        output = self.maxpool(F.relu_(self.bn1(self.conv1(input))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            if stage is not None:
                output = stage(output)
                features.append(output)
        return features


def resnet_stage(depth: int, stage: int, norm: Norm, stride_in_1x1: bool = False) -> nn.Sequential:
    """Stage 1..4 of the ResNet of that depth by itself, initialised as torch initialises convolutions."""
    block, counts = _DEPTHS[depth]
    width = 64 * 2 ** (stage - 1)
    in_channels = 64 if stage == 1 else width // 2 * block.expansion
    first = block(in_channels, width, 1 if stage == 1 else 2, norm, stride_in_1x1)
    rest = (block(width * block.expansion, width, 1, norm, stride_in_1x1) for _ in range(counts[stage - 1] - 1))
    return nn.Sequential(first, *rest)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm(out_channels))
