"""The kernels: one thin function each, on the CPU and on CUDA devices, through PyTorch's dispatcher.

Each module beside this one holds the public function, its fake kernel and autograd, and `reference`, the same
computation in plain PyTorch.
"""

from pyposeext.ops.flow_warp import flow_warp
from pyposeext.ops.flow_warp_pool import flow_warp_pool
from pyposeext.ops.heatmap_argmax import heatmap_argmax
from pyposeext.ops.multiscale_roi_align import multiscale_roi_align
from pyposeext.ops.nms import batched_nms, nms, nms_padded
from pyposeext.ops.roi_align import roi_align
from pyposeext.ops.roi_heatmaps_to_keypoints import roi_heatmaps_to_keypoints
from pyposeext.ops.scale_add import scale_add
from pyposeext.ops.tube_roi_align import tube_roi_align

__all__ = [
    "batched_nms",
    "flow_warp",
    "flow_warp_pool",
    "heatmap_argmax",
    "multiscale_roi_align",
    "nms",
    "nms_padded",
    "roi_align",
    "roi_heatmaps_to_keypoints",
    "scale_add",
    "tube_roi_align",
]
