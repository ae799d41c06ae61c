"""Mask R-CNN with a box branch and a keypoint branch (He et al., ICCV 2017)."""

from __future__ import annotations

from pyposeext.models.mask_rcnn.model import MaskRCNN as MaskRCNN
