// The kernels behind paste_masks and paste_masks_runs.
#pragma once
#include "common/cpu_level.h"
#include "common/paste_masks_math.h"

PYPOSEEXT_KERNEL(paste_masks, PasteMasksArguments)
PYPOSEEXT_KERNEL(paste_masks_runs, PasteMasksRunsArguments)
