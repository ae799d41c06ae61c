// The kernels behind roi_align, multiscale_roi_align and tube_roi_align, and what those three ops check alike.
#pragma once
#include "common/cpu_level.h"
#include "common/roi_align_math.h"

PYPOSEEXT_KERNEL(roi_pooling_forward, RoiAlignArguments)
// Fills every element of every level's data, zeros included.
PYPOSEEXT_KERNEL(roi_pooling_backward, RoiAlignArguments)
