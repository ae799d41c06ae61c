// The kernels behind deform_conv2d.
#pragma once
#include "common/cpu_level.h"
#include "common/deform_conv2d_math.h"

PYPOSEEXT_KERNEL(deform_conv2d_forward, DeformConv2dArguments)
PYPOSEEXT_KERNEL(deform_conv2d_backward, DeformConv2dArguments)
