"""x + alpha * y: the smallest op that keeps the whole contract, as a pattern for new ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyposeext.ops._library import empty_with_layout, is_channels_last


def scale_add(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """x + alpha * y, element by element.

    Args:
        x: [B, C, H, W], float32, float64, float16 or bfloat16, any strides; channels_last stays channels_last.
        y: [B, C, H, W], of `x`'s dtype, any strides. Copied where its layout is not `x`'s.
        alpha: any number.

    Returns:
        [B, C, H, W] in `x`'s dtype and layout. Added up in float32 (float64 for float64) and rounded once: half
        precision is within 5e-4, bfloat16 within 4e-3 of float64, relative to the largest value.

    Raises:
        RuntimeError: a wrong rank, shape, dtype or device.

    Differentiable, as often as wished, with respect to `x` and `y`.
    """
    return torch.ops.pyposeext.scale_add(x, y, alpha)


@torch.library.register_fake("pyposeext::scale_add")
def _fake(x, y, alpha):  # type: ignore[no-untyped-def]
    return empty_with_layout(x, x.shape, is_channels_last(x))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.alpha = inputs[2]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    return gradient, gradient * ctx.alpha, None


torch.library.register_autograd("pyposeext::scale_add", _backward, setup_context=_setup)


def reference(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """The specification in plain PyTorch."""
    return x + alpha * y
