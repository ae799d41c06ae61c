// The kernels behind flow_warp and flow_warp_pool. The backwards serve both.
#pragma once
#include "common/cpu_level.h"
#include "common/flow_warp_math.h"

PYPOSEEXT_KERNEL(flow_warp_forward, FlowWarpArguments)
PYPOSEEXT_KERNEL(flow_warp_pool_forward, FlowWarpArguments)
PYPOSEEXT_KERNEL(flow_warp_backward_input, FlowWarpArguments)
PYPOSEEXT_KERNEL(flow_warp_backward_flow, FlowWarpArguments)
PYPOSEEXT_KERNEL(flow_warp_pool_backward_weight, FlowWarpArguments)

// CUDA: what flow_warp_backward_input needs first. The CPU kernels need none of it.
namespace pyposeext::cuda {
bool flow_warp_counts_cells(const FlowWarpArguments& arguments);             // whether a frame's cells can be counted in shared memory
void flow_warp_lists(const FlowWarpArguments& arguments, void* stream);      // then: fills `begin` and `order`
void flow_warp_cells(const FlowWarpArguments& arguments, void* stream);      // else: fills `cell`, to be sorted,
void flow_warp_sorted_lists(const FlowWarpArguments& arguments, void* stream);  // and from that `begin` and `order`
int64_t flow_warp_weight_parts(const FlowWarpArguments& arguments);          // of `partial`
}  // namespace pyposeext::cuda
