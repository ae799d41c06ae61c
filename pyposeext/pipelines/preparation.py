"""How a model is made ready to run, the same for pose models and detectors."""

from __future__ import annotations

from typing import Any

import torch


def prepare_model(model: Any, device: torch.device) -> Any:
    """The model on its device, in evaluation mode and in the memory format that convolutions are fastest in."""
    return model.to(device=device, memory_format=torch.channels_last).eval()
