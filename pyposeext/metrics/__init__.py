"""How good predictions are. Each metric is an object: `update` with predictions and truth, `compute`, `merge`."""

from __future__ import annotations

from pyposeext.metrics.coco import CocoEvaluation
from pyposeext.metrics.oks import MeanOKS, oks, oks_matrix
from pyposeext.metrics.pck import PCK, PCKh, box_size, head_size, torso_size

__all__ = ["PCK", "CocoEvaluation", "MeanOKS", "PCKh", "box_size", "head_size", "oks", "oks_matrix", "torso_size"]
