"""Pickled NumPy arrays, read without running anything that the file asks for.

A pickle is a program that may name any function of Python. Here it may only make numbers, text, plain containers and
arrays, and NumPy's own part in that is played by stand-ins that check what they are given: NumPy believes what a pickle
says about a dtype, and a wrong word there reads memory that is not the array's.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyposeext.errors import InputError

# Booleans, integers, floats, complex numbers, bytes and text; neither objects nor records.
_DTYPE = re.compile(r"[<>=|]?([biufcSU])\d+|\?")
_PLAIN = (bool, int, float, complex, str, bytes, bytearray, type(None), np.generic)


def read_pickle(path: str | Path) -> Any:
    """What a pickle of NumPy arrays and plain containers holds; those of Python 2 too, with text as latin-1.

    Returns:
        Dicts (OrderedDicts become dicts), lists, tuples, sets, text, bytes and numbers, with arrays in them that cannot
        be written to.

    Raises:
        InputError: no such file, a damaged one, or one that asks for anything else, which is named.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"pickle {path} does not exist")
    with path.open("rb") as file:
        try:
            return _finished(_Unpickler(file, encoding="latin1").load(), {})
        except _RefusedError as error:
            raise InputError(
                f"pickle {path} cannot be read safely: it holds {error}, and only NumPy arrays and plain containers "
                "are read. Where you trust the file, load it with Python yourself, save its arrays alone with "
                "torch.save or pickle, and use that file"
            ) from error
        except Exception as error:
            # A damaged pickle may fail in any way that the calls in it can.
            raise InputError(f"pickle {path} is damaged or not a pickle: {error or type(error).__name__}") from error


def tensors_of(content: Any, what: str) -> dict[str, Tensor]:
    """The weights in a detectron2 (``{"model": ..., "__author__": ...}``) or Detectron (``{"blobs": ...}``) pickle.

    Args:
        content: as `read_pickle` gives it; a bare dict of arrays is taken too.
        what: begins the sentence of an error.

    Returns:
        name -> tensor, without Detectron's momenta.

    Raises:
        InputError: no arrays by name, or arrays of something that a tensor cannot hold.
    """
    if isinstance(content, Mapping):
        content = next((content[key] for key in ("model", "blobs") if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{what} must hold arrays by name, got {type(content).__name__}")
    tensors = {}
    for name, value in content.items():
        if str(name).endswith("_momentum"):
            continue
        kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in "biuf" or value.itemsize > 8:
            raise InputError(f"{what} must hold arrays of numbers, but {name} is {kind}")
        tensors[str(name)] = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
    return tensors


class _RefusedError(Exception):
    """Something that is not read; the text names it."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)
        known = _KNOWN.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise _RefusedError(f"{module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("a reference to data outside the file")


class _Function:
    """A function that a pickle can call but, unlike a real one, not change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("a changed function")


class _DType:
    """Stands for numpy.dtype."""

    __slots__ = ("order", "text")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, text: Any = "", *_: Any) -> None:
        self.text = text.decode("latin1") if isinstance(text, bytes) else text
        if not isinstance(self.text, str) or _DTYPE.fullmatch(self.text) is None:
            raise _RefusedError(f"an array of the dtype {self.text!r}")
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        """(version, byte order, subarray, names, fields, item size, alignment, flags): only the order may say much."""
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise _RefusedError("an array of records")
        self.order = order

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.text).newbyteorder(self.order)  # type: ignore[arg-type]


class _Array:
    """Stands for numpy.ndarray until the whole file is read."""

    __slots__ = ("array",)
    __hash__ = None  # type: ignore[assignment]

    def __setstate__(self, state: Any) -> None:
        """(version, shape, dtype, whether Fortran's order, the bytes)."""
        _, shape, dtype, fortran, data = state
        self.array = _from_bytes(data, dtype, shape, "F" if fortran else "C")


def _from_bytes(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, _DType):
        raise _RefusedError("an array without a dtype")
    # Python 2 has one type for text and bytes.
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, bytes | bytearray):
        raise _RefusedError("an array of objects")
    values = np.frombuffer(raw, dtype.numpy) if len(raw) else np.zeros(0, dtype.numpy)
    values.flags.writeable = False
    return values.reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(kind: Any, *_: Any) -> _Array:
    if kind is not _Array:
        raise _RefusedError("an array of a kind of its own")
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    return _from_bytes(data, dtype, shape, order)


def _scalar(dtype: Any, data: Any) -> Any:
    return _from_bytes(data, dtype, (1,), "C")[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError("text in an encoding of its own")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    # Empty bytes in the protocols of Python 2.
    ("builtins", "bytes"): _Function(lambda: b""),
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("_codecs", "encode"): _Function(_encode),
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Function(_reconstruct),
    ("numpy.core.multiarray", "scalar"): _Function(_scalar),
    ("numpy.core.numeric", "_frombuffer"): _Function(_from_buffer),
}

# The same for the reader of `torch.load`, as torch.serialization.safe_globals takes it: numbers alone.
NUMPY_NUMBERS: list[Any] = [
    (_DType, "numpy.dtype"),
    (_KNOWN["numpy.core.multiarray", "scalar"], "numpy.core.multiarray.scalar"),
    (_KNOWN["numpy.core.multiarray", "scalar"], "numpy._core.multiarray.scalar"),
]


def _finished(value: Any, seen: dict[int, Any]) -> Any:
    """The same with arrays in place of the stand-ins; refuses what a pickle can only name, as a function.

    `seen` holds what was looked at already, by identity: a container may hold itself.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, np.ndarray):
        return value
    if id(value) in seen:
        return seen[id(value)]
    seen[id(value)] = value
    if type(value) is dict:
        for key in value:
            _finished(key, seen)
        value.update({key: _finished(item, seen) for key, item in value.items()})
    elif type(value) is list:
        value[:] = [_finished(item, seen) for item in value]
    elif type(value) in (tuple, set, frozenset):
        seen[id(value)] = type(value)(_finished(item, seen) for item in value)
    elif type(value) is _Array and hasattr(value, "array"):
        seen[id(value)] = value.array
    elif type(value) is _DType:
        seen[id(value)] = value.numpy
    else:
        raise _RefusedError("a function or a class in place of data")
    return seen[id(value)]
