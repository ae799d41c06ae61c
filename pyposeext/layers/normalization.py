"""Batch normalisation with frozen statistics, and convolutions that take such a norm into their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine terms are constants (Detectron's AffineChannel).

    Holds four float32 buffers, `weight`, `bias`, `running_mean` and `running_var`, each [C], and computes
    ``x * scale + (bias - running_mean * scale)`` with ``scale = weight / sqrt(running_var + eps)``.

    Args:
        channels: C.
        eps: the value of the checkpoint at hand. Torchvision's V1 detection files need 0.0 and everything else 1e-5;
            the wrong one costs several AP points.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenBatchNorm2d:
        # With eps 0 some variances underflow in float16 and make the scale infinite: half() leaves the buffers alone.
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = before.to(after.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [N, C, H, W]; the result has the input's dtype."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return input * scale.to(input.dtype).view(1, -1, 1, 1) + shift.to(input.dtype).view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation and an optional ReLU or ReLU6, as one unit.

    In evaluation, and in training when `frozen_norm` is set, the norm is multiplied into the convolution's weights on
    the fly: the same numbers with two passes over the activations fewer, and gradients still reach the norm's weight
    and bias. A norm other than batch normalisation always runs by itself.

    Args:
        in_channels, out_channels, kernel_size, stride, groups: the convolution's; padding is kernel_size // 2.
        norm: builds the norm from the number of channels.
        activation: ``"relu"``, ``"relu6"`` or None.
        frozen_norm: keep the running statistics as they are during training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm: Norm = nn.BatchNorm2d,
        activation: str | None = "relu",
        frozen_norm: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
        )
        self.norm = norm(out_channels)
        self.activation = activation
        self.frozen_norm = frozen_norm

    def forward(self, input: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        norm = self.norm
        if isinstance(norm, nn.BatchNorm2d) and (self.frozen_norm or not self.training):
            weight, bias = folded_weights(self.conv.weight, norm)
            conv = self.conv
            output = F.conv2d(input, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        else:
            output = norm(self.conv(input))
        if self.activation == "relu":
            return F.relu_(output)
        if self.activation == "relu6":
            return F.relu6(output, inplace=True)
        return output


def folded_weights(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight [O, I, kh, kw] and bias [O] of one convolution that does what convolution and norm do in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()
    bias = norm.bias.float() - norm.running_mean.float() * scale
    return (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype), bias.to(weight.dtype)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of 16 channels, or of 8 where 16 do not divide: the safe norm for small batches."""
    return nn.GroupNorm(channels // (16 if channels % 16 == 0 else 8), channels)
