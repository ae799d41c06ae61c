"""A model made ready to infer: norms folded, channels last, on its device, perhaps in half precision and compiled."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from pyposeext.errors import InputError
from pyposeext.layers.folding import fold_norms
from pyposeext.pipelines.settings import Precision

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# The parts of a model that are tensors in and tensors out, whatever the number of people.
_COMPILED_PARTS = ("trunk", "head", "backbone")


def accelerated(
    model: nn.Module, device: torch.device, precision: Precision = "float32", compiled: bool = False
) -> nn.Module:
    """A copy of a model that gives the same results faster; the model itself stays as it is.

    Args:
        model: any of `pyposeext.models`.
        device: where the copy runs.
        precision: of weights and activations. Norms are folded in float32 before they are rounded. bfloat16 moves
            joints by a fraction of a heatmap's pixel; on a CPU it pays where the CPU multiplies bfloat16 natively.
        compiled: trunk and head go through `torch.compile`, on a GPU with CUDA graphs. Every new batch size is compiled
            anew, so feed it few: `padded_count`. On a CPU it needs a C++ compiler.

    Raises:
        InputError: an unknown precision, or float16 on a CPU.
    """
    if precision not in _DTYPES:
        raise InputError(f"precision must be one of {', '.join(_DTYPES)}, got {precision!r}")
    if precision == "float16" and device.type == "cpu":
        raise InputError("precision float16 needs a GPU, on a CPU take bfloat16 or float32")
    prepared: Any = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(prepared)
    prepared = prepared.to(device=device, dtype=_DTYPES[precision], memory_format=torch.channels_last)
    if compiled:
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        for name in _COMPILED_PARTS:
            part = getattr(prepared, name, None)
            if part is not None:
                setattr(prepared, name, torch.compile(part, mode=mode, dynamic=False))
    accelerated_model: nn.Module = prepared
    return accelerated_model


def prepare_model(model: Any, device: torch.device) -> Any:
    """The model itself on its device, in evaluation mode and in the memory format that convolutions are fastest in."""
    return model.to(device=device, memory_format=torch.channels_last).eval()


def padded_count(count: int, most: int) -> int:
    """The batch size that `count` items, at most `most`, are padded to: a power of two or `most` itself."""
    return min(1 << max(count - 1, 0).bit_length(), most)
