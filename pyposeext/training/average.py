"""The exponential moving average of a model's weights, which is what a run gives at the end."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MovingAverage:
    """Averages every floating-point entry of a model's state; other entries are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Starts from the model's present state; `decay` is the weight of the past in 0..1."""
        self._decay = decay
        self._state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes the model's state in after optimizer step `step` (from 1); early steps count more."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            mean = self._state[name]
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged state, under the model's own names."""
        return self._state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a saved average."""
        for name, value in state.items():
            self._state[name].copy_(value)
