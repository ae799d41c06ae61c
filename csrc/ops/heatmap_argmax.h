// The kernels behind heatmap_argmax.
#pragma once
#include "common/cpu_level.h"
#include "common/heatmap_argmax_math.h"

PYPOSEEXT_KERNEL(heatmap_argmax, HeatmapArgmaxArguments)
PYPOSEEXT_KERNEL(heatmap_soft_argmax, HeatmapSoftArgmaxArguments)
PYPOSEEXT_KERNEL(heatmap_soft_argmax_backward, HeatmapSoftArgmaxArguments)
