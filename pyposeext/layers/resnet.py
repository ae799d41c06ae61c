"""ResNet-18, -34, -50 and -101 as trunks, in torchvision's key layout.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, with the stride of a bottleneck on its 3x3
convolution ("v1.5").
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pyposeext.errors import InputError
from pyposeext.layers.normalization import Norm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm) -> None:
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

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
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

    Attributes:
        channels: of C2..C5, the outputs.
        strides: of C2..C5.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, depth: int = 50, norm: Norm = nn.BatchNorm2d, trainable_stages: int = 5) -> None:
        super().__init__()
        if depth not in _DEPTHS:
            raise InputError(f"depth must be one of {', '.join(map(str, _DEPTHS))}, got {depth}")
        if not 0 <= trainable_stages <= 5:
            raise InputError(f"trainable_stages must be in 0..5, got {trainable_stages}")
        block, counts = _DEPTHS[depth]
        self.channels = tuple(width * block.expansion for width in (64, 128, 256, 512))
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = norm(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(block, counts[0], 64, 64, 1, norm)
        self.layer2 = _stage(block, counts[1], self.channels[0], 128, 2, norm)
        self.layer3 = _stage(block, counts[2], self.channels[1], 256, 2, norm)
        self.layer4 = _stage(block, counts[3], self.channels[2], 512, 2, norm)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        stages = (self.layer4, self.layer3, self.layer2, self.layer1, nn.ModuleList([self.conv1, self.bn1]))
        for stage in stages[trainable_stages:]:
            stage.requires_grad_(False)

    def forward(self, input: Tensor) -> list[Tensor]:
        """[N, 3, H, W] to C2..C5 at strides 4, 8, 16, 32."""
        output = self.maxpool(F.relu_(self.bn1(self.conv1(input))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            output = stage(output)
            features.append(output)
        return features


def _stage(
    block: type[BasicBlock] | type[Bottleneck], count: int, in_channels: int, width: int, stride: int, norm: Norm
) -> nn.Sequential:
    first = block(in_channels, width, stride, norm)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1, norm) for _ in range(count - 1)))


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm(out_channels))
