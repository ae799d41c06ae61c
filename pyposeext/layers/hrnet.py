"""HRNet as a trunk: branches of several resolutions side by side, in the key layout of the authors' code.

Sun et al., "Deep High-Resolution Representation Learning for Human Pose Estimation", CVPR 2019, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pyposeext.errors import InputError
from pyposeext.layers.normalization import Norm
from pyposeext.layers.resnet import BasicBlock, Bottleneck


class HRNet(nn.Module):
    """The network without its head: a stem, bottlenecks, and stages that each add a branch of half the resolution.

    HRNet-W32 and W48 are `HRNet(32)` and `HRNet(48)`. HRNet-W18-small-v1 of the authors' ImageNet classifiers is
    `HRNet(16, modules=(1, 1, 1), blocks=2, stem_blocks=1, stem_width=32)`, and v2 is
    `HRNet(18, modules=(1, 3, 2), blocks=2, stem_blocks=2)`.

    Args:
        width: channels of the finest branch; every further branch has twice those of the one before.
        modules: exchange modules of each stage from the second on; stage s has s branches.
        blocks: residual blocks of a branch in one exchange module.
        stem_blocks, stem_width: count and inner width of the first stage's bottlenecks; four times the width come out.
        multiscale_output: whether the last stage gives all its branches, or as in the pose networks the finest alone.
            The coarser ones then still feed it, only the exchange towards them is left out.
        norm: builds every norm from its number of channels.

    Attributes:
        channels, strides: of the outputs.
        multiple: what the sides of the input must be multiples of.

    Names below the trunk are the authors'. A branch that passes through a transition or an exchange unchanged is an
    `nn.Identity`, which keeps the numbers of its neighbours and has no parameters. Everything that knows the number of
    spatial axes is a module (convolution, norm, upsampling), so that a copy can be inflated by replacing modules.
    """

    def __init__(
        self,
        width: int = 32,
        modules: Sequence[int] = (1, 4, 3),
        blocks: int = 4,
        stem_blocks: int = 4,
        stem_width: int = 64,
        multiscale_output: bool = False,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        _check_sizes(width, modules, blocks, stem_blocks, stem_width)
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.bn1 = norm(64)
        self.conv2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False)
        self.bn2 = norm(64)
        bottlenecks = [
            Bottleneck(64 if index == 0 else 4 * stem_width, stem_width, 1, norm) for index in range(stem_blocks)
        ]
        self.layer1 = nn.Sequential(*bottlenecks)
        channels: tuple[int, ...] = (4 * stem_width,)
        for stage, count in enumerate(modules, 2):
            wider = tuple(width * 2**branch for branch in range(stage))
            self.add_module(f"transition{stage - 1}", Transition(channels, wider, norm))
            channels = wider
            last = stage == len(modules) + 1
            exchanges = [
                ExchangeModule(channels, blocks, multiscale_output or not last or index < count - 1, norm)
                for index in range(count)
            ]
            self.add_module(f"stage{stage}", nn.Sequential(*exchanges))
        self.stages = len(modules) + 1
        self.multiple = 4 * 2 ** len(modules)
        self.channels = channels if multiscale_output else channels[:1]
        self.strides = tuple(4 * 2**branch for branch in range(len(self.channels)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)

    def forward(self, input: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to the last stage's maps, [B, width, H / 4, W / 4] first and then, if wanted, the coarser ones.

        H and W are multiples of `multiple`.
        """
        output = F.relu_(self.bn1(self.conv1(input)))
        output = F.relu_(self.bn2(self.conv2(output)))
        branches = [self.layer1(output)]
        for stage in range(2, self.stages + 1):
            branches = self.get_submodule(f"transition{stage - 1}")(branches)
            branches = self.get_submodule(f"stage{stage}")(branches)
        return branches


class Transition(nn.ModuleList):
    """From the branches of one stage to those of the next, one more of half the coarsest resolution.

    A branch whose channels differ gets a 3x3 convolution, norm and ReLU; the others pass through.

    Args:
        channels: of the branches that come in.
        wider: of the branches that go out, one more.
        norm: builds every norm from its number of channels.
    """

    def __init__(self, channels: Sequence[int], wider: Sequence[int], norm: Norm) -> None:
        kept = [
            nn.Identity() if before == after else _convolution(before, after, 1, norm)
            for before, after in zip(channels, wider[:-1], strict=True)
        ]
        # The authors allow several steps down here, hence the nesting.
        super().__init__([*kept, nn.Sequential(_convolution(channels[-1], wider[-1], 2, norm))])

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """n maps to n + 1; the new one is made of the coarsest."""
        return [layer(branch) for layer, branch in zip(self, [*branches, branches[-1]], strict=True)]


class ExchangeModule(nn.Module):
    """Residual blocks on every branch, then an exchange: every output is the ReLU of a sum over all branches.

    Finer maps reach an output through 3x3 convolutions of stride 2, coarser ones through a 1x1 convolution and nearest
    upsampling.

    Args:
        channels: of the branches, from the finest; each has half the resolution of the one before.
        blocks: residual blocks of a branch.
        multiscale_output: whether there is an output for every branch, or for the finest alone.
        norm: builds every norm from its number of channels.
    """

    def __init__(self, channels: Sequence[int], blocks: int, multiscale_output: bool, norm: Norm) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(count, count, 1, norm) for _ in range(blocks))) for count in channels
        )
        targets = range(len(channels) if multiscale_output else 1)
        self.fuse_layers = nn.ModuleList(Exchange(channels, target, norm) for target in targets)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """n maps to n maps of the same shapes, or to the finest alone."""
        branches = [blocks(input) for blocks, input in zip(self.branches, inputs, strict=True)]
        return [exchange(branches) for exchange in self.fuse_layers]


class Exchange(nn.ModuleList):
    """One output of an exchange module: the branches brought to the shape of branch `target`, summed, and a ReLU."""

    def __init__(self, channels: Sequence[int], target: int, norm: Norm) -> None:
        super().__init__(_exchange(channels, source, target, norm) for source in range(len(channels)))

    def forward(self, branches: list[Tensor]) -> Tensor:
        """n maps to the one."""
        first, second, *others = (layer(branch) for layer, branch in zip(self, branches, strict=True))
        total = first + second  # a new tensor: `first` may be a branch that other outputs read too
        for other in others:
            total += other
        return F.relu_(total)


def _exchange(channels: Sequence[int], source: int, target: int, norm: Norm) -> nn.Module:
    """What brings branch `source` to the shape of branch `target`."""
    before, after = channels[source], channels[target]
    if source == target:
        return nn.Identity()
    if source > target:
        upsample = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
        return nn.Sequential(nn.Conv2d(before, after, 1, bias=False), norm(after), upsample)
    steps = [_convolution(before, before, 2, norm) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, _convolution(before, after, 2, norm, relu=False))


def _convolution(in_channels: int, out_channels: int, stride: int, norm: Norm, relu: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False), norm(out_channels)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


def _check_sizes(width: int, modules: Sequence[int], blocks: int, stem_blocks: int, stem_width: int) -> None:
    counts = {"width": width, "blocks": blocks, "stem_blocks": stem_blocks, "stem_width": stem_width}
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} must be at least 1, got {count}")
    if not modules or min(modules) < 1:
        raise InputError(f"modules must be a positive number for each stage from the second on, got {tuple(modules)}")
