// The kernels behind deform_conv2d.
#pragma once
#include "common/cpu_level.h"
#include "common/deform_conv2d_math.h"

PYPOSEEXT_KERNEL(deform_conv2d_forward, DeformConv2dArguments)
PYPOSEEXT_KERNEL(deform_conv2d_backward, DeformConv2dArguments)

// CUDA: fills `cell`, which the op then sorts for the backward; and how many parts the gradient of the weight is summed in.
// The CPU kernel needs neither.
namespace pyposeext::cuda {
void deform_conv2d_cells(const DeformConv2dArguments& arguments, void* stream);
int64_t deform_conv2d_splits(const DeformConv2dArguments& arguments);
}
