"""conv_lstm_cell on the states of LSTM Pose Machines and UniPose-LSTM; the unfused expression in torch is the peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.ops.harness import Workload, main
from pyposeext import ops
from pyposeext.ops.conv_lstm_cell import reference


def workload(
    batch: int,
    channels: int,
    backward: bool = False,
    layout: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
    hidden_gates: bool = True,
) -> Workload:
    def make(device: str) -> tuple[Any, ...]:
        def maps(count: int) -> Tensor:
            values = torch.randn(batch, count, 46, 46).to(device, dtype).contiguous(memory_format=layout)
            return values.requires_grad_(backward)

        return maps(4 * channels), maps(channels), maps(4 * channels) if hidden_gates else None

    def run(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., None]:
        def call(*inputs: Tensor | None) -> None:
            hidden, cell = function(*inputs)
            if backward:
                leaves = [leaf for leaf in inputs if leaf is not None]
                torch.autograd.grad([hidden, cell], leaves, [hidden.detach(), cell.detach()])

        return call

    # In units of the state. Forward: gates and cell in, hidden and cell out. Backward: the same and two gradients in,
    # the gradients of the gates (one for both) and of the cell out.
    gates = 8 if hidden_gates else 4
    units = gates + 1 + 2 + (gates + 1 + 2 + 4 + 1 if backward else 0)
    bytes = units * batch * channels * 46 * 46 * torch.empty(0, dtype=dtype).element_size()
    name = (
        f"{'forward+backward' if backward else 'forward'} {batch}x{channels}x46x46 {str(layout)[6:]} {str(dtype)[6:]}"
    )
    name += "" if hidden_gates else " one sum"
    return Workload(
        name,
        make,
        run(ops.conv_lstm_cell),
        None,
        run(reference),
        bytes,
        dtype=dtype,
    )


if __name__ == "__main__":
    main(
        "conv_lstm_cell",
        [
            workload(1, 48),
            workload(1, 15),
            *(workload(7, 48, layout=layout) for layout in (torch.contiguous_format, torch.channels_last)),
            workload(7, 48, hidden_gates=False),
            workload(7, 48, dtype=torch.bfloat16),
            *(workload(7, 48, True, layout) for layout in (torch.contiguous_format, torch.channels_last)),
            workload(7, 48, True, dtype=torch.bfloat16),
            workload(1, 48, True),
        ],
        aims={
            "forward 7x48x46x46 contiguous_format float32": "1.5 x",
        },
        headlines={
            "forward 7x48x46x46 contiguous_format float32": "conv_lstm_cell",
            "forward+backward 7x48x46x46 contiguous_format float32": "conv_lstm_cell, forward and backward",
        },
    )
