"""The published systems, by name: `create_model`, `list_models`, `convert_state_dict`; `register_model` adds one."""

from __future__ import annotations

# Importing them registers their models.
import pyposeext.models.hrnet
import pyposeext.models.mask_rcnn.builders
import pyposeext.models.mask_rcnn.builders_detectron2
import pyposeext.models.mask_rcnn.builders_light
import pyposeext.models.simple_baseline  # noqa: F401
from pyposeext.models.registry import list_models as list_models
from pyposeext.models.registry import register_model as register_model
from pyposeext.models.weights import convert_state_dict as convert_state_dict
from pyposeext.models.weights import create_model as create_model

__all__ = ["convert_state_dict", "create_model", "list_models", "register_model"]
