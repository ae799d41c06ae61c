"""scale_add on feature maps; torch.add with alpha is the peer."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.ops.harness import Workload, main
from pyposeext import ops
from pyposeext.ops.scale_add import reference


def workload(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> Workload:
    def make(device: str) -> tuple[Tensor, Tensor, float]:
        x, y = (torch.randn(shape).to(device, dtype).contiguous(memory_format=layout) for _ in range(2))
        return x, y, 0.5

    size = torch.empty(0, dtype=dtype).element_size() * torch.Size(shape).numel()
    name = f"forward {'x'.join(map(str, shape))} {str(layout)[6:]} {str(dtype)[6:]}"
    return Workload(name, make, ops.scale_add, reference, lambda x, y, alpha: torch.add(x, y, alpha=alpha), 3 * size)


if __name__ == "__main__":
    main(
        "scale_add",
        [
            workload((8, 48, 96, 72), torch.float32, torch.contiguous_format),
            workload((8, 48, 96, 72), torch.float32, torch.channels_last),
            workload((8, 48, 96, 72), torch.bfloat16, torch.contiguous_format),
            workload((1, 3, 8, 8), torch.float32, torch.contiguous_format),
        ],
    )
