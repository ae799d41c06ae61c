"""`pyposeext system`: what is installed and what this machine has."""

from __future__ import annotations

import importlib
import json
import os
import platform
from typing import Annotated, Any

import tyro


def system(as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> None:
    """Say what is installed and what this machine has; worth adding to every report of a defect.

    Args:
        as_json: print a JSON object instead of text.
    """
    facts = system_facts()
    if as_json:
        print(json.dumps(facts, indent=2, default=str))
    else:
        width = max(map(len, facts))
        print("\n".join(f"{key:{width}}  {_text(value)}" for key, value in facts.items()))


def system_facts() -> dict[str, Any]:
    """Versions, how the kernels were built, devices, FFmpeg and the weights, by name."""
    import av
    import torch

    import pyposeext
    from pyposeext.io.weights import cache_folder, list_cached_weights, list_weights

    facts: dict[str, Any] = {
        "pyposeext": pyposeext.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch running": torch.__version__,
    }
    try:
        facts |= _build_facts(importlib.import_module("pyposeext._C").build_info())
    except ImportError as error:
        facts["kernels"] = f"cannot be loaded: {error}"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return facts | {
        "gpus": gpus or "none that this torch can use",
        "cpu cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ffmpeg": f"{av.ffmpeg_version_info} (PyAV {av.__version__})",
        "ffmpeg libraries": {name: ".".join(map(str, version)) for name, version in av.library_versions.items()},
        "weights": [*list_weights(), *list_cached_weights()] or "none",
        "fetched weights go to": str(cache_folder()),
    }


def _build_facts(info: dict[str, Any]) -> dict[str, Any]:
    """How the kernels were built; what `system_facts` says itself is left out."""
    facts = {key.replace("_", " "): value for key, value in info.items() if key != "version"}
    if facts["cuda toolkit"] == facts["cuda architectures"]:  # both say that there is no CUDA
        del facts["cuda architectures"]
    return facts


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
