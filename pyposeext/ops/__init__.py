"""The kernels: one thin function each, on the CPU and on CUDA devices, through PyTorch's dispatcher.

Each module beside this one holds the public function, its fake kernel and autograd, and `reference`, the same
computation in plain PyTorch.
"""

from pyposeext.ops.conv_lstm_cell import conv_lstm_cell
from pyposeext.ops.crop_affine import crop_affine
from pyposeext.ops.deform_conv2d import deform_conv2d
from pyposeext.ops.flow_warp import flow_warp
from pyposeext.ops.flow_warp_pool import flow_warp_pool
from pyposeext.ops.gaussian_heatmaps import gaussian_heatmaps
from pyposeext.ops.gaussian_mse_loss import gaussian_mse_loss
from pyposeext.ops.heatmap_argmax import heatmap_argmax
from pyposeext.ops.multiscale_roi_align import multiscale_roi_align
from pyposeext.ops.nms import batched_nms, nms, nms_padded
from pyposeext.ops.oks_nms import oks_nms, oks_nms_padded
from pyposeext.ops.paste_masks import paste_masks, paste_masks_rle, paste_masks_runs
from pyposeext.ops.roi_align import roi_align
from pyposeext.ops.roi_heatmaps_to_keypoints import roi_heatmaps_to_keypoints
from pyposeext.ops.scale_add import scale_add
from pyposeext.ops.tube_nms import tube_nms, tube_nms_padded
from pyposeext.ops.tube_roi_align import tube_roi_align

__all__ = [
    "batched_nms",
    "conv_lstm_cell",
    "crop_affine",
    "deform_conv2d",
    "flow_warp",
    "flow_warp_pool",
    "gaussian_heatmaps",
    "gaussian_mse_loss",
    "heatmap_argmax",
    "multiscale_roi_align",
    "nms",
    "nms_padded",
    "oks_nms",
    "oks_nms_padded",
    "paste_masks",
    "paste_masks_rle",
    "paste_masks_runs",
    "roi_align",
    "roi_heatmaps_to_keypoints",
    "scale_add",
    "tube_nms",
    "tube_nms_padded",
    "tube_roi_align",
]
