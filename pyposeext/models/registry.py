"""Models by name: a builder function with keyword arguments each, and what reads its published checkpoints."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from torch import Tensor, nn

from pyposeext.errors import InputError

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])
StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A published weight file.

    Attributes:
        name: what `pyposeext weights get` calls it, unique over all models and fit for a file's name.
        source: where it is from: the address of the file itself, or the page that leads to it.
        licence: as its publisher states it.
        arguments: what the builder needs to give the file's outputs.
        sha256: as many of the hexadecimal digits of its SHA-256 as its publisher states, or all 64 once somebody here
            has seen the file; "" where nothing is known.
        direct: whether `source` is the file itself.
    """

    name: str
    source: str
    licence: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    direct: bool = True

    def __post_init__(self) -> None:
        if re.fullmatch(r"\w[\w.+-]*", self.name, re.ASCII) is None:
            raise ValueError(f"a checkpoint's name must be of letters, digits and ._+-, got {self.name!r}")
        if re.fullmatch(r"([0-9a-f]{8,64})?", self.sha256) is None:
            raise ValueError(f"checkpoint {self.name}: sha256 must be 8 to 64 digits 0-9a-f, got {self.sha256!r}")

    @property
    def host(self) -> str:
        """Whose address it is."""
        return urlsplit(self.source).hostname or self.source

    def is_file(self, sha256: str) -> bool:
        """Whether the file of that SHA-256 (64 digits) can be this one; True where nothing is known of it."""
        return sha256.startswith(self.sha256)


@dataclass(frozen=True)
class Entry:
    """A registered model: its builder, its converter of published weights, and the files that were published."""

    name: str
    builder: Callable[..., nn.Module]
    convert: Callable[[StateDict], dict[str, Tensor]]
    checkpoints: tuple[Checkpoint, ...]
    signature: Callable[..., nn.Module]

    def checkpoint_of(self, sha256: str) -> Checkpoint | None:
        """This model's published file of that SHA-256 (64 hexadecimal digits), where it is known."""
        known = (checkpoint for checkpoint in self.checkpoints if checkpoint.sha256)
        return next((checkpoint for checkpoint in known if checkpoint.is_file(sha256)), None)

    @property
    def arguments(self) -> dict[str, Any]:
        """The builder's keyword arguments and their defaults."""
        return {name: parameter.default for name, parameter in inspect.signature(self.signature).parameters.items()}


_ENTRIES: dict[str, Entry] = {}
# The alias of the shipped weights: they are pyposeext/weights/default.safetensors and belong to this model.
ALIASES = {"default": "keypoint_rcnn_efficientnet_lite0_fpn"}


def register_model(
    convert: Callable[[StateDict], dict[str, Tensor]] = dict,
    checkpoints: Sequence[Checkpoint] = (),
    arguments_of: Callable[..., nn.Module] | None = None,
) -> Callable[[Builder], Builder]:
    """Decorator: registers a builder under its own name.

    Args:
        convert: from the published layout to this package's state dict; without it the layouts are the same.
        checkpoints: the published files.
        arguments_of: a builder whose arguments and defaults this one has too; it then takes ``**arguments``.
    """

    def register(builder: Builder) -> Builder:
        name = builder.__name__
        if name in _ENTRIES:
            raise ValueError(f"two models are named {name!r}")
        taken = [*ALIASES, *(checkpoint.name for _, checkpoint in list_checkpoints())]
        for checkpoint in checkpoints:
            if checkpoint.name in taken:
                raise ValueError(f"two checkpoints are named {checkpoint.name!r}")
            taken.append(checkpoint.name)
        _ENTRIES[name] = Entry(name, builder, convert, tuple(checkpoints), arguments_of or builder)
        return builder

    return register


def list_models() -> list[str]:
    """The names that `create_model` takes, sorted, without the alias "default"."""
    return sorted(_ENTRIES)


def model_entry(name: str) -> Entry:
    """The entry of that name or alias, or an InputError that lists the names there are."""
    entry = _ENTRIES.get(ALIASES.get(name, name))
    if entry is None:
        raise InputError(f"model must be one of {', '.join([*ALIASES, *list_models()])}, got {name!r}")
    return entry


def list_checkpoints() -> list[tuple[Entry, Checkpoint]]:
    """Every published file with the model it belongs to, in the order of the models' names."""
    return [(_ENTRIES[name], checkpoint) for name in list_models() for checkpoint in _ENTRIES[name].checkpoints]


def checkpoint_named(name: str) -> tuple[Entry, Checkpoint]:
    """The published file of that name and its model, or an InputError that lists the names there are."""
    for entry, checkpoint in list_checkpoints():
        if checkpoint.name == name:
            return entry, checkpoint
    names = ", ".join(checkpoint.name for _, checkpoint in list_checkpoints())
    raise InputError(f"checkpoint must be one of {names}, got {name!r}")


def build_model(entry: Entry, arguments: Mapping[str, Any]) -> nn.Module:
    """The model with random weights. Its attributes `model_name` and `model_arguments` say how it was built."""
    known = entry.arguments
    for argument in arguments:
        if argument not in known:
            raise InputError(f"model {entry.name} takes the arguments {', '.join(known)}, got {argument!r}")
    model = entry.builder(**{**known, **arguments})
    model.model_name = entry.name  # type: ignore[assignment]
    model.model_arguments = {**known, **arguments}  # type: ignore[assignment]
    return model
