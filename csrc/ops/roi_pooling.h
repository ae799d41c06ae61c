// The kernels behind roi_align, multiscale_roi_align and tube_roi_align, and what those three ops check alike.
#pragma once
#include "common/cpu_level.h"
#include "common/roi_align_math.h"

PYPOSEEXT_KERNEL(roi_pooling_forward, RoiAlignArguments)
// Fills every element of every level's data, zeros included.
PYPOSEEXT_KERNEL(roi_pooling_backward, RoiAlignArguments)

namespace pyposeext {

// What the CUDA backward needs to sort the rois by map and tile.
inline int64_t roi_pooling_scratch_words(const RoiAlignArguments& a) { return 2 * a.rois * a.frames + 2 * a.rois + 2 * a.levels * a.batch; }

}  // namespace pyposeext
