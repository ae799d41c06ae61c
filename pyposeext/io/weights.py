"""Weight files: safetensors whose metadata hold a manifest that says what they are.

Some are shipped with the installation, others lie in the user's cache, both found by name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pyposeext.errors import InputError, UnwritableError
from pyposeext.io.atomic import PendingFile

# What a manifest may say. `model` is required; `arguments` are the builder's, as JSON can hold them.
MANIFEST_KEYS = (
    "model",
    "arguments",
    "skeleton",
    "source",
    "source_sha256",
    "licence",
    "normalisation",
    "created_by",
    "content_sha256",
)
_STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHIPPED = Path(__file__).resolve().parent.parent / "weights"


def save_weights(
    path: str | Path, state_dict: Mapping[str, Tensor], manifest: Mapping[str, Any], dtype: str = "float32"
) -> None:
    """Write weights with their manifest, whole or not at all.

    Args:
        path: the .safetensors file; an older one is replaced.
        state_dict: tensors by name. Floating point ones of two or more dimensions are stored as `dtype`, the others as
            they are: biases and the statistics of norms are small, and variances may lie below what float16 can hold.
        manifest: "model" and any other of `MANIFEST_KEYS`; the SHA-256 of the contents is added.
        dtype: "float32", "float16" or "bfloat16". Half precision halves the file; values beyond its range are refused.

    Raises:
        InputError: an unknown dtype or manifest key, a manifest without "model", a value that float16 cannot hold, or a
            place that cannot be written.
    """
    if dtype not in _STORED:
        raise InputError(f"dtype must be one of {', '.join(_STORED)}, got {dtype!r}")
    unknown = set(manifest) - set(MANIFEST_KEYS)
    if unknown or "model" not in manifest:
        raise InputError(
            f"manifest must hold 'model' and may hold {', '.join(MANIFEST_KEYS[1:])}, got {list(manifest)}"
        )
    stored = {name: _stored(name, tensor, _STORED[dtype]) for name, tensor in state_dict.items()}
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in manifest.items()}
    metadata["content_sha256"] = _content_sha256(stored)
    pending = PendingFile(path)
    try:
        pending.temporary.touch()
        mode = pending.temporary.stat().st_mode
        safetensors.torch.save_file(stored, pending.temporary, metadata=metadata)
        pending.temporary.chmod(mode)  # the library makes files for their owner alone
        pending.commit()
    except (OSError, safetensors.SafetensorError) as error:  # the latter where the disk is full
        reason = getattr(error, "strerror", None) or error
        raise UnwritableError(f"cannot write {path}: {reason}") from error
    finally:
        pending.discard()


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a weight file, half precision widened to float32, and its manifest.

    Raises:
        InputError: no such file, not safetensors, or damaged: the contents are compared with their SHA-256.
    """
    stored, manifest = _read(path)
    if manifest.get("content_sha256", "") not in ("", _content_sha256(stored)):
        raise InputError(f"weights file {path} is damaged: its contents do not have the SHA-256 in its manifest")
    half = (torch.float16, torch.bfloat16)
    return {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in stored.items()}, manifest


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest alone, {} where a safetensors file has none; errors as in `read_weights`."""
    with _opened(path) as file:
        return _manifest(file.metadata())


def weights_path(name: str) -> Path:
    """The weight file that is shipped under this name.

    Raises:
        InputError: there is none of that name; the sentence lists those there are.
    """
    path = _SHIPPED / f"{name}.safetensors"
    if name not in list_weights():
        there = ", ".join(list_weights()) or "none"
        raise InputError(
            f"weights must be a file or the name of shipped weights ({there}), got {name!r}; "
            "`pyposeext weights list` shows what else there is"
        )
    return path


def list_weights() -> list[str]:
    """Names of the weights that are shipped with this installation, sorted."""
    return sorted(path.stem for path in _SHIPPED.glob("*.safetensors"))


def cache_folder() -> Path:
    """Where fetched weights lie: $PYPOSEEXT_CACHE, else $XDG_CACHE_HOME/pyposeext, else ~/.cache/pyposeext."""
    if own := os.environ.get("PYPOSEEXT_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "pyposeext"
    try:
        return Path.home() / ".cache" / "pyposeext"
    except RuntimeError as error:
        raise InputError("there is no home folder for the cache: set PYPOSEEXT_CACHE to a folder") from error


def cached_weights_path(name: str) -> Path:
    """The file in the cache that holds weights of this name, there or not."""
    return cache_folder() / f"{name}.safetensors"


def list_cached_weights() -> list[str]:
    """Names of the weights in the cache, sorted."""
    return sorted(path.stem for path in cache_folder().glob("*.safetensors"))


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point() or tensor.dim() < 2:
        return tensor.contiguous().clone()
    narrow = tensor.to(dtype).contiguous().clone()
    if torch.isfinite(tensor).all() and not torch.isfinite(narrow).all():
        raise InputError(f"dtype must be able to hold the weights, but {name} goes beyond {dtype}: use float32")
    return narrow


def _content_sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _opened(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise InputError(f"weights file {path} does not exist")
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(
            f"weights file {path} is damaged or not a safetensors file ({error}); "
            "`pyposeext weights convert` makes one from a published checkpoint"
        ) from error


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with _opened(path) as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, _manifest(file.metadata())


def _manifest(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    manifest: dict[str, Any] = {key: value for key, value in (metadata or {}).items() if key in MANIFEST_KEYS}
    for key in ("arguments", "normalisation"):
        if key in manifest:
            try:
                manifest[key] = json.loads(manifest[key])
            except json.JSONDecodeError as error:
                raise InputError(f"weights manifest: {key} must be JSON, got {manifest[key]!r}") from error
    return manifest
