"""`pyposeext weights convert|verify|list`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pyposeext.errors import InputError


def convert(
    file: Annotated[Path, tyro.conf.Positional],
    model: str,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")],
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
) -> None:
    """Turn a published checkpoint into a safetensors file with a manifest.

    Args:
        file: the checkpoint as its authors released it (.pth, .pt); nothing in it is executed.
        model: the model it belongs to.
        output: the .safetensors file to write.
        dtype: how to store the weights.
    """
    from pyposeext.models.weights import convert_checkpoint

    if output.suffix != ".safetensors":
        raise InputError(f"output must end in .safetensors, got {output.name!r}")
    _show({**convert_checkpoint(file, model, output, dtype), "file": output})


def verify(weights: Annotated[str, tyro.conf.Positional]) -> None:
    """Check a weight file: readable, undamaged, and with exactly the tensors of the model it names.

    Args:
        weights: the file, or the name of shipped weights.
    """
    from pyposeext.models.weights import verify_weights

    _show(verify_weights(weights))


def list_shipped() -> None:
    """List the weights that are shipped with this installation."""
    from pyposeext.io.weights import list_weights, read_manifest, weights_path

    names = list_weights()
    if not names:
        print("no weights are shipped with this installation")
    for name in names:
        path = weights_path(name)
        manifest = read_manifest(path)
        print(f"{name}  {manifest.get('model', '')}  {path.stat().st_size / 1e6:.1f} MB  {manifest.get('licence', '')}")


def main(arguments: Sequence[str]) -> int:
    """The exit code, 0."""
    verbs: dict[str, Callable[..., None]] = {"convert": convert, "verify": verify, "list": list_shipped}
    tyro.extras.subcommand_cli_from_dict(verbs, prog="pyposeext weights", args=list(arguments))
    return 0


def _show(facts: dict[str, object]) -> None:
    for key, value in facts.items():
        print(f"{key}: {value}")
