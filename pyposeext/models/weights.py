"""Weights meet models: loading by name or file, saving with a manifest, fetching, converting and verifying."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pyposeext
from pyposeext.errors import InputError, UnwritableError
from pyposeext.io.download import Received, download, exclusive, part_files
from pyposeext.io.pickles import NUMPY_NUMBERS, read_pickle, tensors_of
from pyposeext.io.weights import (
    cache_folder,
    cached_weights_path,
    file_sha256,
    list_cached_weights,
    list_weights,
    read_manifest,
    read_weights,
    save_weights,
    weights_path,
)
from pyposeext.models.registry import (
    ALIASES,
    Checkpoint,
    Entry,
    build_model,
    checkpoint_named,
    list_checkpoints,
    list_models,
    model_entry,
)

# torch.save before PyTorch 1.6 wrote this number first.
_LEGACY_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def create_model(name: str, weights: str | Path | None = None, **arguments: Any) -> nn.Module:
    """The model of that name, in evaluation mode.

    Args:
        name: one of `list_models()`, or "default", the shipped model with its weights.
        weights: a .safetensors file, the name of weights that are shipped or were fetched, or None for random ones. The
            file's manifest says how the model was built, and `arguments` go over that.
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
    """The file that `weights` names: shipped weights by their name, then those in the cache, else a path.

    Raises:
        InputError: a name that is neither; where it is one of a published file, the sentence says how to get it.
    """
    name = str(weights)
    if name in list_weights():
        return weights_path(name)
    if name in list_cached_weights():
        return cached_weights_path(name)
    path = Path(weights)
    if path.is_file():
        return path
    for _, checkpoint in list_checkpoints():
        if checkpoint.name == name:
            raise InputError(f"weights {name} are not on this machine: {_how_to_get(checkpoint)}")
    return path if path.suffix else weights_path(name)


def weights_of_model(name: str) -> Path:
    """The file of a model that is named without weights: those shipped under its name, else its only ones in the cache.

    Raises:
        InputError: there is none, or several; the sentence lists them.
    """
    if name in list_weights():
        return weights_path(name)
    if name in ALIASES:
        raise InputError(f"this installation has no {name} weights: give a weight file (.safetensors)")
    published = model_entry(name).checkpoints
    cached = list_cached_weights()
    here = [checkpoint.name for checkpoint in published if checkpoint.name in cached]
    if len(here) == 1:
        return cached_weights_path(here[0])
    if here:
        raise InputError(f"model {name} has several weights here: say with weights which of {', '.join(here)}")
    way = ""
    if published:
        names = ", ".join(checkpoint.name for checkpoint in published)
        way = f"; published are {names}: for the first, {_how_to_get(published[0])}"
    raise InputError(f"this installation has no weights of the model {name}: give a weight file (.safetensors){way}")


def _how_to_get(checkpoint: Checkpoint) -> str:
    if checkpoint.direct:
        return f"`pyposeext weights get {checkpoint.name}` fetches it"
    return (
        f"download the file by hand from {checkpoint.source}, "
        f"then `pyposeext weights convert FILE --checkpoint {checkpoint.name}`"
    )


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict that has exactly the model's names and shapes, or raise an InputError that names a difference.

    `what` begins the sentence.
    """
    check_state_dict(model, state_dict, f"{what} do not fit")
    model.load_state_dict(state_dict, strict=True)


def check_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Raises the InputError of `load_strictly`, which begins with `what`, without loading anything."""
    differences = state_dict_differences(model, state_dict)
    if differences:
        raise InputError(
            f"{what} {getattr(model, 'model_name', type(model).__name__)}: {differences[0]}"
            + (f" (and {len(differences) - 1} more differences)" if len(differences) > 1 else "")
        )


def state_dict_differences(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """What is missing, too much or of another shape in a state dict, one phrase each; empty where it fits."""
    own = model.state_dict()
    # Batch norms count their batches for nobody: checkpoints may leave the counters out, and frozen norms ignore them.
    missing = [name for name in own if name not in state_dict and not name.endswith("num_batches_tracked")]
    unknown = [
        name for name in state_dict if name not in own and name.replace("num_batches_tracked", "running_var") not in own
    ]
    shapes = [
        f"{name} is {list(state_dict[name].shape)}, not {list(value.shape)}"
        for name, value in own.items()
        if name in state_dict and state_dict[name].shape != value.shape
    ]
    return [
        *(f"{name} is missing" for name in missing),
        *(f"{name} is not of this model" for name in unknown),
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
    """The state dict in a published checkpoint, read without executing anything in it.

    Args:
        path: a file of torch.save (.pth, .pt) or a pickle of NumPy arrays (.pkl), told apart by what they begin with. A
            state dict may be in a dict under "state_dict", "model_state_dict", "model" or "best_state_dict" (pickles:
            "model" or "blobs"), and its names may begin with the "module." of parallel training.

    Raises:
        InputError: no such file, a file that holds more than tensors and plain containers, or one without tensors.
    """
    if not Path(path).is_file():
        raise InputError(f"checkpoint {path} does not exist")
    if not _is_from_torch(path):
        return tensors_of(read_pickle(path), f"checkpoint {path}")
    try:
        # HRNet's training checkpoints hold their best score as a NumPy number.
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError) as error:
        raise InputError(
            f"checkpoint {path} cannot be read safely: it is damaged or holds more than tensors. Where you trust it, "
            "load it with PyTorch yourself, save its state dict alone with torch.save, and convert that file"
        ) from error
    return _state_dict_in(content, f"checkpoint {path}")


def convert_state_dict(name: str, official_state_dict: Mapping[str, Any], **arguments: Any) -> dict[str, Tensor]:
    """A published checkpoint's state dict as that of this package's model, which loads it with strict=True.

    All names and shapes are compared with those of the model, built without memory. What a file may have of its own is
    read from it: the numbers of joints and classes, whether there are masks, whether boxes and masks are one for all
    classes, and the norm of the heads. Build the model with the same.

    Args:
        name: the model's.
        official_state_dict: as the model's authors released it, old key names included; perhaps wrapped, as in
            `load_checkpoint`.
        arguments: the builder's, where the file needs others, as other widths; they go over what the file says.

    Raises:
        InputError: no such model, or a state dict of something else.
    """
    entry = model_entry(name)
    converted = entry.convert(_state_dict_in(official_state_dict, "official_state_dict"))
    found = {key: value for key, value in _arguments_in(converted).items() if key in entry.arguments}
    try:
        with torch.device("meta"):
            model = build_model(entry, {**found, **arguments})
    except InputError as error:
        raise InputError(f"official_state_dict does not fit {name}: {error}") from error
    check_state_dict(model, converted, "official_state_dict does not fit")
    return converted


def convert_checkpoint(
    file: str | Path,
    model_name: str | None,
    output: str | Path,
    dtype: str = "float32",
    *,
    checkpoint: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A published checkpoint as a weight file of this package.

    Files known by their SHA-256 bring their model, builder arguments, source and licence along.

    Args:
        file: the .pth or .pkl as its authors released it.
        model_name: the model it belongs to; None where the file is known.
        output: the .safetensors file to write.
        dtype: how to store it; see `save_weights`.
        checkpoint: the name of the published file that this is, where its SHA-256 is not known.
        arguments: the builder arguments that the file needs; they go over the known ones.

    Returns:
        The manifest that was written.

    Raises:
        InputError: a file that cannot be read safely, that is not of this model, or that is not the one it is said to
            be.
    """
    if not Path(file).is_file():
        raise InputError(f"checkpoint {file} does not exist")
    digest = file_sha256(file)
    entry, known = _published(file, digest, model_name, checkpoint)
    model = build_model(entry, {**known.arguments, **(arguments or {})})
    load_strictly(model, entry.convert(load_checkpoint(file)), f"weights {file}")
    manifest = manifest_of(model, source=known.source, source_sha256=digest, licence=known.licence)
    save_weights(output, model.state_dict(), manifest, dtype)
    return manifest


def get_weights(name: str, on_progress: Callable[[Received], None] | None = None, **options: Any) -> dict[str, Any]:
    """Fetch a published checkpoint, check it and put it, converted, into the cache, where its name finds it.

    Args:
        name: of a `Checkpoint`.
        on_progress, options: as in `download`.

    Returns:
        Its manifest with "file" added. Weights that are in the cache already are not fetched again.

    Raises:
        InputError: no file of that name, one that its publisher gives out through a page only, or what `download` and
            `convert_checkpoint` raise.
    """
    entry, checkpoint = checkpoint_named(name)
    target = cached_weights_path(name)
    if not checkpoint.direct and not target.is_file():
        raise InputError(f"{name} is given out by a web page only: {_how_to_get(checkpoint)}")
    with exclusive(target):
        if not target.is_file():
            fetched = _fetched_file(checkpoint)
            if not fetched.is_file():
                download(checkpoint.source, fetched, checkpoint.sha256, on_progress=on_progress, **options)
            try:
                convert_checkpoint(fetched, entry.name, target, checkpoint=name)
            except UnwritableError:
                raise
            except InputError:
                # It is not what it should be: the next attempt has to fetch it again.
                fetched.unlink()
                raise
            fetched.unlink()
    return {**read_manifest(target), "file": str(target)}


def remove_weights(name: str) -> list[Path]:
    """Delete weights of that name from the cache, and what an unfinished download of them left; returns the files.

    Raises:
        InputError: there is nothing of that name in the cache.
    """
    files = [cached_weights_path(name)] if name in list_cached_weights() else []
    for _, checkpoint in list_checkpoints():
        if checkpoint.name == name:
            fetched = _fetched_file(checkpoint)
            files += [*([fetched] if fetched.is_file() else []), *part_files(fetched)]
    if not files:
        raise InputError(f"weights must be the name of some in the cache ({cache_folder()}), got {name!r}")
    with exclusive(cached_weights_path(name)):
        for file in files:
            file.unlink(missing_ok=True)
    return files


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


def _published(
    file: str | Path, digest: str, model_name: str | None, checkpoint: str | None
) -> tuple[Entry, Checkpoint]:
    """Which model and which published file `file` is."""
    if checkpoint is not None:
        entry, known = checkpoint_named(checkpoint)
        if model_name is not None and model_entry(model_name) is not entry:
            raise InputError(f"checkpoint {checkpoint} is of the model {entry.name}, not of {model_name}")
        if not known.is_file(digest):
            raise InputError(f"{file} is not {checkpoint}: its SHA-256 is {digest}, not {known.sha256}")
        return entry, known
    if model_name is not None:
        entry = model_entry(model_name)
        return entry, entry.checkpoint_of(digest) or Checkpoint("unknown", Path(file).name, "not stated")
    for entry in map(model_entry, list_models()):
        if found := entry.checkpoint_of(digest):
            return entry, found
    raise InputError(f"{file} is not known by its SHA-256: give the model, or the checkpoint that it is")


def _state_dict_in(content: Any, what: str) -> dict[str, Tensor]:
    """The state dict in what training code saves; `load_checkpoint` says where. `what` begins the sentence."""
    for key in ("state_dict", "model_state_dict", "model", "best_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{what} must hold a state dict (names and tensors), got {type(content).__name__}")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _arguments_in(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The builders' arguments that show in the names and shapes of a state dict in this package's layout."""
    arguments: dict[str, Any] = {}
    for name, output in (
        ("num_joints", "head.conv"),
        ("num_joints", "head.final_layer"),
        ("num_joints", "roi_heads.keypoint_predictor.kps_score_lowres"),
        ("num_classes", "roi_heads.box_predictor.cls_score"),
    ):
        if f"{output}.bias" in state_dict:
            arguments[name] = state_dict[f"{output}.bias"].numel()
    mask_logits = state_dict.get("roi_heads.mask_predictor.mask_fcn_logits.bias")
    box_deltas = state_dict.get("roi_heads.box_predictor.bbox_pred.bias")
    arguments["masks"] = mask_logits is not None
    arguments["class_agnostic_masks"] = mask_logits is not None and mask_logits.numel() == 1
    arguments["class_agnostic_boxes"] = box_deltas is not None and box_deltas.numel() == 4
    heads = {name: value for name, value in state_dict.items() if name.startswith("roi_heads.")}
    if heads:
        normed = any(name.endswith(".weight") and value.dim() == 1 for name, value in heads.items())
        batch = any(name.endswith(".running_var") for name in heads)
        arguments["head_norm"] = "batch" if batch else "group" if normed else None
    return arguments


def _fetched_file(checkpoint: Checkpoint) -> Path:
    """Where a published file lies from the end of its download to that of its conversion."""
    return cache_folder() / f"{checkpoint.name}.download"


def _is_from_torch(path: str | Path) -> bool:
    """Whether a file is torch.save's: a zip archive or, from before PyTorch 1.6, a pickle that begins with a number."""
    with Path(path).open("rb") as file:
        beginning = file.read(len(_LEGACY_TORCH))
    return beginning.startswith(b"PK") or beginning == _LEGACY_TORCH
