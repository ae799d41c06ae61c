"""`pyposeext weights get|list|convert|verify|remove`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pyposeext.cli.options import ProgressKind
from pyposeext.errors import InputError


def get(name: Annotated[str, tyro.conf.Positional], progress: ProgressKind = "bar") -> None:
    """Download published weights, check them, and keep them, converted, under their name.

    A download that was interrupted goes on where it stopped. They lie in $PYPOSEEXT_CACHE, else
    $XDG_CACHE_HOME/pyposeext, else ~/.cache/pyposeext.

    Args:
        name: as `pyposeext weights list` shows it.
        progress: a bar, JSON lines or nothing, on standard error.
    """
    from pyposeext.cli.progress import show_download
    from pyposeext.models.weights import get_weights

    with show_download(progress, name) as update:
        manifest = get_weights(name, update)
    _show(manifest)
    _show_unverified(name, manifest)


def convert(
    file: Annotated[Path, tyro.conf.Positional],
    model: str | None = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None,
    checkpoint: str | None = None,
    arguments: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
) -> None:
    """Turn a published checkpoint into a safetensors file with a manifest.

    Args:
        file: the checkpoint as its authors released it (.pth, .pt, .pkl); nothing in it is executed.
        model: the model it belongs to; not needed where the file is a known one.
        output: the .safetensors file to write; with --checkpoint it may be left out, and the weights are then kept
            where `weights get` puts its own, to be found by their name.
        checkpoint: which published file this is, as `pyposeext weights list` shows it. Files whose SHA-256 is known are
            recognised without it.
        arguments: the builder's, which go over the known ones, for instance '{"num_joints": 16}'.
        dtype: how to store the weights.
    """
    from pyposeext.io.weights import cached_weights_path
    from pyposeext.models.weights import convert_checkpoint

    if output is None:
        if checkpoint is None:
            raise InputError("output must be given where --checkpoint does not name the file")
        output = cached_weights_path(checkpoint)
    if output.suffix != ".safetensors":
        raise InputError(f"output must end in .safetensors, got {output.name!r}")
    manifest = convert_checkpoint(file, model, output, dtype, checkpoint=checkpoint, arguments=_arguments(arguments))
    _show({**manifest, "file": output})
    if checkpoint is not None:
        _show_unverified(checkpoint, manifest)


def verify(weights: Annotated[str, tyro.conf.Positional]) -> None:
    """Check a weight file: readable, undamaged, and with exactly the tensors of the model it names.

    Args:
        weights: the file, or the name of weights that are shipped or were fetched.
    """
    from pyposeext.models.weights import verify_weights

    _show(verify_weights(weights))


def list_all(as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> None:
    """List the weights that are shipped, those that were fetched, and those that `weights get` can fetch.

    Args:
        as_json: print a JSON list with all that is known of them instead of text.
    """
    weights = _shipped_and_cached()
    known = {entry["name"] for entry in weights}
    weights += [entry for entry in _published() if entry["name"] not in known]
    if as_json:
        print(json.dumps(weights, indent=2))
        return
    widths = [max(len(str(entry[key])) for entry in weights) for key in ("name", "model", "state")] if weights else []
    for entry in weights:
        columns = zip((entry["name"], entry["model"], entry["state"]), widths, strict=True)
        print("  ".join([*(f"{text:{width}}" for text, width in columns), entry["about"]]))


def remove(name: Annotated[str, tyro.conf.Positional]) -> None:
    """Delete fetched weights, and what an interrupted download of them left.

    Args:
        name: as `pyposeext weights list` shows it.
    """
    from pyposeext.models.weights import remove_weights

    for file in remove_weights(name):
        print(f"removed {file}")


def main(arguments: Sequence[str]) -> int:
    """The exit code, 0."""
    verbs: dict[str, Callable[..., None]] = {
        "get": get,
        "list": list_all,
        "convert": convert,
        "verify": verify,
        "remove": remove,
    }
    tyro.extras.subcommand_cli_from_dict(verbs, prog="pyposeext weights", args=list(arguments))
    return 0


def _shipped_and_cached() -> list[dict[str, Any]]:
    from pyposeext.io.weights import (
        cached_weights_path,
        list_cached_weights,
        list_weights,
        read_manifest,
        weights_path,
    )

    places = [("shipped", name, weights_path(name)) for name in list_weights()]
    places += [("fetched", name, cached_weights_path(name)) for name in list_cached_weights()]
    weights = []
    for state, name, path in places:
        try:
            manifest = read_manifest(path)
        except InputError as error:
            weights.append({"name": name, "model": "", "state": state, "file": str(path), "about": str(error)})
            continue
        size = path.stat().st_size
        keys = ("source", "source_sha256", "licence")
        facts: dict[str, Any] = {key: manifest[key] for key in keys if key in manifest}
        about = "  ".join([f"{size / 1e6:.1f} MB", *([facts["licence"]] if "licence" in facts else [])])
        model = manifest.get("model", "")
        facts |= {"file": str(path), "bytes": size, "about": about}
        weights.append({"name": name, "model": model, "state": state, **facts})
    return weights


def _published() -> list[dict[str, Any]]:
    from pyposeext.models.registry import list_checkpoints

    weights = []
    for entry, checkpoint in list_checkpoints():
        digits = len(checkpoint.sha256)
        known = f"{digits} digits of its SHA-256 known" if digits else "SHA-256 not known"
        weights.append(
            {
                "name": checkpoint.name,
                "model": entry.name,
                "state": "can be fetched" if checkpoint.direct else "by hand",
                "source": checkpoint.source,
                "sha256": checkpoint.sha256,
                "licence": checkpoint.licence,
                "about": f"{checkpoint.host}  {known}  {checkpoint.licence}",
            }
        )
    return weights


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"arguments must be a JSON object as '{{\"num_joints\": 16}}', got {text!r}") from error
    if not isinstance(arguments, dict):
        raise InputError(f"arguments must be a JSON object as '{{\"num_joints\": 16}}', got {text!r}")
    return arguments


def _show_unverified(name: str, manifest: dict[str, Any]) -> None:
    """Say so where nothing tells whether the file is the published one."""
    from pyposeext.models.registry import checkpoint_named

    if not checkpoint_named(name)[1].sha256:
        print(f"no SHA-256 of {name} is known, so nobody has verified this one: {manifest['source_sha256']}")


def _show(facts: dict[str, object]) -> None:
    for key, value in facts.items():
        print(f"{key}: {value}")
