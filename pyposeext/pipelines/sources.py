"""Which model and which weights a word names."""

from __future__ import annotations

from pathlib import Path

from pyposeext.errors import InputError
from pyposeext.io.weights import read_manifest
from pyposeext.models import list_models
from pyposeext.models.registry import ALIASES
from pyposeext.models.weights import weights_file, weights_of_model


def model_and_weights(name_or_path: str, weights: str | Path | None, argument: str = "model") -> tuple[str, Path]:
    """The name of a model and the file of its weights.

    Args:
        name_or_path: a model's name, or a weight file, which names its model.
        weights: with a name, a weight file or the name of weights that are shipped or in the cache; None for those of
            the model's own name, see `weights_of_model`.
        argument: what the sentences call `name_or_path`.

    Raises:
        InputError: a name that is none, weights that are missing or do not say what model they are of.
    """
    known = (*ALIASES, *list_models())
    is_file = name_or_path not in known and (
        Path(name_or_path).suffix == ".safetensors" or Path(name_or_path).is_file()
    )
    if not is_file and name_or_path not in known:
        raise InputError(f"{argument} must be one of {', '.join(known)}, or a weight file, got {name_or_path!r}")
    if is_file and weights is not None:
        raise InputError(f"weights were given twice: {name_or_path} and {weights}")
    if is_file:
        model = read_manifest(name_or_path).get("model")
        if model is None:
            raise InputError(f"weights {name_or_path} do not say what model they are of: give the model's name too")
        return model, Path(name_or_path)
    return name_or_path, weights_of_model(name_or_path) if weights is None else weights_file(weights)
