// The kernel behind crop_affine.
#pragma once
#include "common/cpu_level.h"
#include "common/crop_affine_math.h"

PYPOSEEXT_KERNEL(crop_affine, CropAffineArguments)
