"""deform_conv2d of the layers that use it: HRNet features of people, a detector's P3, and offsets of each joint."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.ops.harness import Workload, main, peer_of
from pyposeext import ops
from pyposeext.ops.deform_conv2d import reference

KERNEL = 3
peer = peer_of("torchvision.ops", "deform_conv2d")


def workload(
    name: str,
    batch: int,
    channels: int,
    outputs: int,
    height: int,
    width: int,
    offset_groups: int = 1,
    dilation: int = 1,
    backward: bool = False,
    layout: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
) -> Workload:
    taps = KERNEL * KERNEL

    def make(device: str) -> tuple[Tensor, ...]:
        def place(*shape: int, scale: float = 1.0, kind: torch.dtype = dtype) -> Tensor:
            return (torch.randn(shape) * scale).to(device, kind).requires_grad_(backward)

        input = place(batch, channels, height, width).detach().contiguous(memory_format=layout).requires_grad_(backward)
        offset = place(batch, 2 * offset_groups * taps, height, width, scale=2.0, kind=torch.float32)
        weight = place(outputs, channels, KERNEL, KERNEL, scale=(taps * channels) ** -0.5)
        return input, offset, weight, place(outputs), place(batch, offset_groups * taps, height, width)

    def run(function):
        def call(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> None:
            result = function(input, offset, weight, bias, 1, dilation, dilation, mask)
            if backward:
                input.grad = offset.grad = weight.grad = bias.grad = mask.grad = None
                result.backward(result.detach())

        return call

    pixels, item = batch * height * width, torch.empty(0, dtype=dtype).element_size()
    # Forward: input, offsets and mask in, output out. Backward: these and the output's gradient in, gradients out.
    size = pixels * ((channels + outputs + offset_groups * taps) * item + 2 * offset_groups * taps * 4)
    operations = 2 * pixels * taps * channels * outputs
    parts = 3 if backward else 1
    shape = f"{batch}x{channels}->{outputs}x{height}x{width}"
    kind = f"{'forward+backward' if backward else 'forward'} {shape} {name}"
    return Workload(
        f"{kind} {str(layout)[6:]} {str(dtype)[6:]}",
        make,
        run(ops.deform_conv2d),
        run(reference),
        run(peer) if peer is not None and dtype != torch.bfloat16 else None,  # it has no bfloat16
        size * parts,
        operations * parts,
        dtype=dtype,
    )


if __name__ == "__main__":
    people, detector = ("people", 8, 48, 48, 96, 72), ("detector", 1, 256, 256, 50, 84)
    joints, family = ("joints", 4, 17, 17, 96, 72, 17, 3), ("aligned", 4, 48, 48, 96, 72, 12, 3)
    main(
        "deform_conv2d",
        [
            workload(*people),
            workload(*people, layout=torch.channels_last),
            workload(*people, dtype=torch.bfloat16),
            workload(*detector),
            workload(*detector, layout=torch.channels_last),
            workload(*joints),
            workload(*family),
            workload(*people, backward=True),
            workload(*detector, backward=True),
            workload(*joints, backward=True),
        ],
        aims={
            "forward 8x48->48x96x72 people contiguous_format float32": "2.5 x",
            "forward 1x256->256x50x84 detector contiguous_format float32": "1.5 x",
        },
        headlines={
            "forward 8x48->48x96x72 people contiguous_format float32": "deform_conv2d",
            "forward+backward 8x48->48x96x72 people contiguous_format float32": "deform_conv2d, forward and backward",
        },
    )
