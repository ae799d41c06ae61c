"""The step of a convolutional LSTM after its convolutions (Shi et al. 2015, without peepholes)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyposeext.ops._library import empty_with_layout, is_channels_last


def conv_lstm_cell(
    gates: Tensor,
    cell: Tensor | None = None,
    hidden_gates: Tensor | None = None,
    *,
    gate_order: str = "ifgo",
    store_tanh: bool = False,
    cell_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """new_cell = sigmoid(f) * cell + sigmoid(i) * tanh(g), hidden = sigmoid(o) * tanh(new_cell), in one pass.

    Args:
        gates: [B, 4 * C, H, W], what the convolutions give, biases included: the four gates one after the other, before
            their sigmoids and tanh. float32, float64, float16 or bfloat16, any strides; channels_last stays
            channels_last. Without a cell also [B, 3 * C, H, W], without the forget gate.
        cell: [B, C, H, W], the previous state, any strides, or None on a first frame, when sigmoid(f) * cell is left
            out. Of `gates`' dtype, or float32 where that has 16 bits: then the state keeps its accuracy over the
            frames, also under autocast.
        hidden_gates: added to `gates`, of its shape and dtype, any strides: the convolution of the previous hidden
            state, so that the sum of the two need not be stored.
        gate_order: the order of the gates: i input, f forget, g cell, o output. "ifgo" is torch.nn.LSTM's; "gifo" that
            of LSTM Pose Machines; without a cell also three letters such as "gio" (UniPose-LSTM's first frame).
        store_tanh: the new cell is stored after its tanh, and hidden = sigmoid(o) * new_cell: the first frame of
            UniPose-LSTM and of the PyTorch port of LSTM Pose Machines, whose Caffe net stores it without.
        cell_dtype: of the new cell, by default the cell's dtype, or without one that of `gates`; float32 with gates of
            16 bits starts an accurate state.

    Returns:
        hidden, in `gates`' dtype, and the new cell; both [B, C, H, W] in `gates`' layout. Computed in float32 (float64
        for float64) and rounded once. float32 values are within 4 units in the last place of float64's where the
        activations alone decide; a sigmoid below 1e-38 is rounded up to that. NaN and infinities spread by the rules
        of arithmetic.

    Raises:
        RuntimeError: a wrong rank, shape, dtype, device or gate order; a second derivative.

    Differentiable once with respect to `gates`, `hidden_gates` and `cell`; activations are computed again in the
    backward rather than stored. Deterministic.
    """
    of_cell = cell_dtype or (gates if cell is None else cell).dtype
    name = str(of_cell).removeprefix("torch.")
    return torch.ops.pyposeext.conv_lstm_cell(gates, hidden_gates, cell, gate_order, store_tanh, name)


@torch.library.register_fake("pyposeext::conv_lstm_cell")
def _fake(gates, hidden_gates, cell, gate_order, store_tanh, cell_dtype):  # type: ignore[no-untyped-def]
    batch, channels, height, width = gates.shape
    shape = (batch, channels // len(gate_order), height, width)
    hidden = empty_with_layout(gates, shape, is_channels_last(gates))
    return hidden, torch.empty_like(hidden, dtype=getattr(torch, cell_dtype))


@torch.library.register_fake("pyposeext::conv_lstm_cell_backward")
def _fake_backward(  # type: ignore[no-untyped-def]
    gradient_hidden, gradient_cell, gates, hidden_gates, cell, gate_order, store_tanh, cell_dtype
):
    of_gates = empty_with_layout(gates, gates.shape, is_channels_last(gates))
    if cell is None:
        return of_gates, gates.new_empty(0, dtype=getattr(torch, cell_dtype))
    return of_gates, empty_with_layout(cell, cell.shape, is_channels_last(cell))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    gates, hidden_gates, cell, *ctx.options = inputs
    ctx.save_for_backward(gates, hidden_gates, cell)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, of_hidden: Tensor | None, of_cell: Tensor | None) -> tuple[Tensor | None, ...]:
    gates, hidden_gates, cell = ctx.saved_tensors
    of_gates, of_previous = torch.ops.pyposeext.conv_lstm_cell_backward(
        of_hidden, of_cell, gates, hidden_gates, cell, *ctx.options
    )
    return of_gates, None if hidden_gates is None else of_gates, None if cell is None else of_previous, None, None, None


def _no_double_backward(ctx: Any, *directions: Tensor) -> None:
    raise RuntimeError("conv_lstm_cell: its gradient cannot be differentiated again")


torch.library.register_autograd("pyposeext::conv_lstm_cell", _backward, setup_context=_setup)
torch.library.register_autograd("pyposeext::conv_lstm_cell_backward", _no_double_backward)


def reference(
    gates: Tensor,
    cell: Tensor | None = None,
    hidden_gates: Tensor | None = None,
    *,
    gate_order: str = "ifgo",
    store_tanh: bool = False,
    cell_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification in plain PyTorch: as `conv_lstm_cell`, differentiable as often as wished."""
    of_cell = cell_dtype or (gates if cell is None else cell).dtype
    total = gates if hidden_gates is None else gates + hidden_gates
    gate = dict(zip(gate_order, total.chunk(len(gate_order), dim=1), strict=True))
    new_cell = torch.sigmoid(gate["i"]) * torch.tanh(gate["g"])
    if cell is not None:
        new_cell = torch.sigmoid(gate["f"]) * cell + new_cell
    if store_tanh:
        new_cell = torch.tanh(new_cell)
        return (torch.sigmoid(gate["o"]) * new_cell).to(gates.dtype), new_cell.to(of_cell)
    return (torch.sigmoid(gate["o"]) * torch.tanh(new_cell)).to(gates.dtype), new_cell.to(of_cell)
