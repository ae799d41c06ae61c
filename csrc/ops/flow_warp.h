// The kernels behind flow_warp.
#pragma once
#include "common/cpu_level.h"
#include "common/flow_warp_math.h"

PYPOSEEXT_KERNEL(flow_warp_forward, FlowWarpArguments)
PYPOSEEXT_KERNEL(flow_warp_backward_input, FlowWarpArguments)
PYPOSEEXT_KERNEL(flow_warp_backward_flow, FlowWarpArguments)

// CUDA: fills `cell`, which the op then sorts for flow_warp_backward_input. The CPU kernel sorts for itself.
namespace pyposeext::cuda {
void flow_warp_cells(const FlowWarpArguments& arguments, void* stream);
}
