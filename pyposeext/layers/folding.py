"""Norms multiplied into the convolutions before them, for inference: the same numbers with fewer passes over memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pyposeext.layers.normalization import ConvNorm, FrozenBatchNorm2d


@torch.no_grad()
def fold_norms(model: nn.Module) -> int:
    """Folds every batch norm that directly follows a convolution into it, in place, in the dtype of the weights.

    Which norm follows which convolution is told by the places where this package keeps them: neighbours in an
    `nn.Sequential`, the attributes ``conv<i>`` and ``bn<i>`` of a block, and `ConvNorm`. Fold before casting to half
    precision. The state dict is another one afterwards: for a model that only infers.

    Args:
        model: in evaluation mode; norms that are being trained are refused.

    Returns:
        How many norms were folded.
    """
    if model.training:
        raise ValueError("model must be in evaluation mode, its norms are being trained")
    pairs = [pair for module in model.modules() for pair in _pairs(module)]
    for parent, conv_name, norm_name in pairs:
        conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        scale, shift = _affine(norm)
        # The output channels are dimension 0 of a convolution's weight, and 1 of a transposed one's.
        axis = 1 if isinstance(conv, nn.ConvTranspose2d) else 0
        shape = [1] * conv.weight.dim()
        shape[axis] = -1
        bias = shift if conv.bias is None else shift + conv.bias.float() * scale
        conv.weight.copy_(conv.weight.float() * scale.view(shape))
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
        setattr(parent, norm_name, nn.Identity())
    return len(pairs)


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Names of convolutions and the norms after them among the children of a module."""
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential):
        names = list(children)
        candidates = list(itertools.pairwise(names))
    elif isinstance(module, ConvNorm):
        candidates = [("conv", "norm")]
    else:
        numbers = [match[1] for name in children if (match := re.fullmatch(r"conv(\d*)", name))]
        candidates = [(f"conv{number}", f"bn{number}") for number in numbers]
    for first, second in candidates:
        if _folds(children.get(first), children.get(second)):
            yield module, first, second


def _folds(conv: nn.Module | None, norm: nn.Module | None) -> bool:
    if isinstance(conv, nn.ConvTranspose2d) and conv.groups != 1:
        return False
    return isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)) and isinstance(norm, (nn.BatchNorm2d, FrozenBatchNorm2d))


def _affine(norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] of a norm in evaluation, float32."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.float() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight.float() * scale
    shift = -norm.running_mean.float() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.float()
