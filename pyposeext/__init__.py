"""Human pose in images and video: fast kernels, the published systems, and one command from a video to tracked poses.

`load`, `list_models`, `create_model` and `convert_state_dict` are here; the kernels are in `pyposeext.ops`. Everything
is imported on first use, so that `import pyposeext` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pyposeext.errors import InputError as InputError
    from pyposeext.models import convert_state_dict as convert_state_dict
    from pyposeext.models import create_model as create_model
    from pyposeext.models import list_models as list_models
    from pyposeext.pipelines.estimator import Estimator as Estimator
    from pyposeext.pipelines.loading import load as load
    from pyposeext.structures import Poses as Poses
    from pyposeext.structures import Skeleton as Skeleton

_HOMES = {
    "InputError": "pyposeext.errors",
    "Poses": "pyposeext.structures",
    "Skeleton": "pyposeext.structures",
    "Estimator": "pyposeext.pipelines.estimator",
    "load": "pyposeext.pipelines.loading",
    "create_model": "pyposeext.models",
    "list_models": "pyposeext.models",
    "convert_state_dict": "pyposeext.models",
}

__all__ = [
    "Estimator",
    "InputError",
    "Poses",
    "Skeleton",
    "__version__",
    "convert_state_dict",
    "create_model",
    "list_models",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in ("ops", "models", "layers", "pipelines", "trackers", "datasets", "metrics", "io", "viz", "training"):
        return importlib.import_module(f"pyposeext.{name}")
    raise AttributeError(f"module 'pyposeext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
