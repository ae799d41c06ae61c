"""A model made ready to infer: norms folded, channels last, on its device, perhaps in half precision and compiled."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from pyposeext.errors import InputError
from pyposeext.layers.folding import fold_norms
from pyposeext.pipelines.settings import Precision

# With all powers of two below the limit of sizes that PyTorch compiles, one is left for the largest batch.
_LARGEST_POWER = 32
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def accelerated(
    model: nn.Module, device: torch.device, precision: Precision = "float32", compiled: bool = False
) -> nn.Module:
    """A copy of a model that gives the same results faster; the model itself stays as it is.

    Args:
        model: any of `pyposeext.models`.
        device: where the copy runs.
        precision: of weights and activations. Norms are folded in float32 before they are rounded. bfloat16 has 8
            bits: joints move by up to about a heatmap's pixel, boxes by a few pixels, and people at the threshold may
            come or go. On a CPU it pays where the CPU multiplies bfloat16 natively.
        compiled: what is tensors in and tensors out goes through `torch.compile`, on a GPU with CUDA graphs. Every new
            size is compiled anew, and after PyTorch's limit of 8 the rest runs as it is: feed it few (`padded_count`).
            On a CPU it needs a C++ compiler.

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
        _compile_parts(prepared, "reduce-overhead" if device.type == "cuda" else "default")
    accelerated_model: nn.Module = prepared
    return accelerated_model


class CompiledPart(nn.Module):
    """A network as one compiled function, whose results stay when it is called again: a CUDA graph overwrites its own.

    Args:
        network: from a tensor to a tensor or to several.
        mode: of `torch.compile`.
    """

    def __init__(self, network: nn.Module, mode: str) -> None:
        super().__init__()
        self.network = torch.compile(network, mode=mode, dynamic=False)

    def forward(self, input: torch.Tensor) -> Any:
        output = self.network(input)
        return output.clone() if isinstance(output, torch.Tensor) else [part.clone() for part in output]


def _compile_parts(model: Any, mode: str) -> None:
    """Compiles, in place, the parts of a model that do not depend on what is found."""
    if hasattr(model, "trunk"):
        # One function, not two: a graph of its own for the head would find the trunk's results overwritten.
        model.trunk = CompiledPart(nn.Sequential(model.trunk, model.head), mode)
        model.head = nn.Identity()
    else:
        model.backbone = CompiledPart(model.backbone, mode)


def prepare_model(model: Any, device: torch.device) -> Any:
    """The model itself on its device, in evaluation mode and in the memory format that convolutions are fastest in."""
    return model.to(device=device, memory_format=torch.channels_last).eval()


def padded_count(count: int, most: int) -> int:
    """The batch size that `count` items, at most `most`, are padded to: 1, 2, 4, 8, 16, 32 or `most` itself."""
    return most if count > _LARGEST_POWER else min(1 << max(count - 1, 0).bit_length(), most)
