"""Feature pyramids: the standard one in torchvision's key layout, and a light one for CPUs.

Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pyposeext.layers.normalization import ConvNorm, Norm


class FeaturePyramid(nn.Module):
    """1x1 laterals, a top-down path with nearest-neighbour resizing, a 3x3 output convolution per level, and P6.

    Args:
        in_channels: channels of C2..C5.
        out_channels: channels of every output map.
        norm: builds a norm after each convolution, which then has no bias; None for biases and no norm.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256, norm: Norm | None = None) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.inner_blocks = nn.ModuleList(_unit(channels, out_channels, 1, norm) for channels in in_channels)
        self.layer_blocks = nn.ModuleList(_unit(out_channels, out_channels, 3, norm) for _ in in_channels)
        _initialise(self)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """C2..C5, each [N, C_l, H_l, W_l], to P2..P5 of the same sizes and P6 of half of P5's, all `out_channels`."""
        return _top_down(features, self.inner_blocks, self.layer_blocks)


class LightFeaturePyramid(nn.Module):
    """As `FeaturePyramid`, with depthwise separable output convolutions and a norm and ReLU after them.

    Args:
        in_channels: channels of C2..C5.
        out_channels: channels of every output map.
        norm: builds the norm from the number of channels.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 96, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.inner_blocks = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.layer_blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels, bias=False),
                ConvNorm(out_channels, out_channels, norm=norm),
            )
            for _ in in_channels
        )
        _initialise(self.inner_blocks)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """C2..C5, each [N, C_l, H_l, W_l], to P2..P5 of the same sizes and P6 of half of P5's, all `out_channels`."""
        return _top_down(features, self.inner_blocks, self.layer_blocks)


def _initialise(part: nn.Module) -> None:
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _unit(in_channels: int, out_channels: int, kernel: int, norm: Norm | None) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm is None)
    return nn.Sequential(conv) if norm is None else nn.Sequential(conv, norm(out_channels))


def _top_down(features: Sequence[Tensor], inner: nn.ModuleList, layer: nn.ModuleList) -> list[Tensor]:
    merged = inner[-1](features[-1])
    outputs = [layer[-1](merged)]
    for index in range(len(features) - 2, -1, -1):
        lateral = inner[index](features[index])
        merged = lateral + F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
        outputs.insert(0, layer[index](merged))
    outputs.append(F.max_pool2d(outputs[-1], 1, 2, 0))
    return outputs
