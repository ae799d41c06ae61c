"""Weights meet models: loading by name or file, saving with a manifest, converting and verifying."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pyposeext
from pyposeext.errors import InputError
from pyposeext.io.weights import file_sha256, list_weights, read_weights, save_weights, weights_path
from pyposeext.models.registry import ALIASES, Checkpoint, build_model, model_entry


def create_model(name: str, weights: str | Path | None = None, **arguments: Any) -> nn.Module:
    """The model of that name, in evaluation mode.

    Args:
        name: one of `list_models()`, or "default", the shipped model with its weights.
        weights: a .safetensors file, the name of shipped weights, or None for random ones. The file's manifest says how
            the model was built, and `arguments` go over that.
        arguments: the builder's keyword arguments; its docstring describes them.

    Raises:
        InputError: an unknown name, argument or weight file, or weights of another model.
    """
    entry = model_entry(name)
    if weights is None and name in ALIASES:
        weights = name
    if weights is None:
        return build_model(entry, arguments).eval()
    path = weights_file(weights)
    state_dict, manifest = read_weights(path)
    if manifest.get("model", entry.name) != entry.name:
        raise InputError(f"weights {path} are of the model {manifest['model']}, not of {entry.name}")
    model = build_model(entry, {**manifest.get("arguments", {}), **arguments})
    load_strictly(model, state_dict, f"weights {path}")
    return model.eval()


def weights_file(weights: str | Path) -> Path:
    """The file that `weights` names: shipped weights by their name, else a path."""
    if str(weights) in list_weights():
        return weights_path(str(weights))
    path = Path(weights)
    return path if path.suffix or path.is_file() else weights_path(str(weights))


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict that has exactly the model's names and shapes, or raise an InputError that names a difference.

    `what` begins the sentence.
    """
    differences = state_dict_differences(model, state_dict)
    if differences:
        raise InputError(
            f"{what} do not fit {getattr(model, 'model_name', type(model).__name__)}: {differences[0]}"
            + (f" (and {len(differences) - 1} more differences)" if len(differences) > 1 else "")
        )
    model.load_state_dict(state_dict, strict=True)


def state_dict_differences(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """What is missing, too much or of another shape in a state dict, one phrase each; empty where it fits."""
    own = model.state_dict()
    # Batch norms count their batches for nobody: checkpoints may leave the counters out.
    missing = [name for name in own if name not in state_dict and not name.endswith("num_batches_tracked")]
    shapes = [
        f"{name} is {list(state_dict[name].shape)}, not {list(value.shape)}"
        for name, value in own.items()
        if name in state_dict and state_dict[name].shape != value.shape
    ]
    return [
        *(f"{name} is missing" for name in missing),
        *(f"{name} is not of this model" for name in state_dict if name not in own),
        *shapes,
    ]


def manifest_of(model: nn.Module, **extra: Any) -> dict[str, Any]:
    """The manifest of a model that `create_model` made; `extra` are further `MANIFEST_KEYS`."""
    if not hasattr(model, "model_name"):
        raise InputError("model must be one that create_model made, so that its name and arguments are known")
    manifest: dict[str, Any] = {
        "model": model.model_name,
        "arguments": model.model_arguments,
        "created_by": f"pyposeext {pyposeext.__version__}",
    }
    skeleton = getattr(model, "skeleton", None)
    if skeleton is not None:
        manifest["skeleton"] = skeleton.name
    normaliser = getattr(model, "transform", model)
    if hasattr(normaliser, "mean"):
        manifest["normalisation"] = {"mean": normaliser.mean, "std": normaliser.std}
    return {**manifest, **extra}


def save_model(path: str | Path, model: nn.Module, dtype: str = "float32", **extra: Any) -> None:
    """Write a model's weights with its manifest; `extra` are further `MANIFEST_KEYS`, as source and licence."""
    save_weights(path, model.state_dict(), manifest_of(model, **extra), dtype)


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a .pth or .pt file, read without executing anything in it.

    Raises:
        InputError: no such file, a file that holds more than tensors and plain containers, or one without tensors.
    """
    if not Path(path).is_file():
        raise InputError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError) as error:
        raise InputError(
            f"checkpoint {path} cannot be read safely: it is damaged or holds more than tensors. Where you trust it, "
            "load it with PyTorch yourself, save its state dict alone with torch.save, and convert that file"
        ) from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"checkpoint {path} must hold a state dict (names and tensors), got {type(content).__name__}")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def convert_checkpoint(
    file: str | Path, model_name: str, output: str | Path, dtype: str = "float32", **arguments: Any
) -> dict[str, Any]:
    """A published checkpoint as a weight file of this package.

    Args:
        file: the .pth as its authors released it. Files known by their SHA-256 bring their builder arguments, source
            and licence along.
        model_name: the model it belongs to.
        output: the .safetensors file to write.
        dtype: how to store it; see `save_weights`.
        arguments: builder arguments that the file needs; they go over the known ones.

    Returns:
        The manifest that was written.

    Raises:
        InputError: a file that cannot be read safely or that is not of this model.
    """
    entry = model_entry(model_name)
    state_dict = load_checkpoint(file)
    digest = file_sha256(file)
    known = entry.checkpoint_of(digest) or Checkpoint(Path(file).name, Path(file).name, "not stated")
    model = build_model(entry, {**known.arguments, **arguments})
    load_strictly(model, entry.convert(state_dict), f"weights {file}")
    manifest = manifest_of(model, source=known.source, source_sha256=digest, licence=known.licence)
    save_weights(output, model.state_dict(), manifest, dtype)
    return manifest


def verify_weights(weights: str | Path) -> dict[str, Any]:
    """Check a weight file: readable, contents of the SHA-256 it states, names and shapes of its model.

    Returns:
        Its manifest, with "file", "file_sha256", "tensors" and "parameters" (counts) added.

    Raises:
        InputError: the first thing that is wrong.
    """
    path = weights_file(weights)
    state_dict, manifest = read_weights(path)
    if "model" not in manifest:
        raise InputError(f"weights {path} have no manifest that names their model")
    model = build_model(model_entry(manifest["model"]), manifest.get("arguments", {}))
    load_strictly(model, state_dict, f"weights {path}")
    counts = {"tensors": len(state_dict), "parameters": sum(parameter.numel() for parameter in model.parameters())}
    return {**manifest, "file": str(path), "file_sha256": file_sha256(path), **counts}
