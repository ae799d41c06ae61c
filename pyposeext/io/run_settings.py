"""run.toml: every setting a run used, so that it can be repeated."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyposeext.io.atomic import write_bytes


def write_run_settings(path: str | Path, settings: Mapping[str, Any]) -> None:
    """Write nested mappings of text, numbers, booleans, None, paths and lists of these as TOML.

    TOML has no null: None is written as "none".
    """
    write_bytes(path, to_toml(settings).encode())


def to_toml(settings: Mapping[str, Any]) -> str:
    """The same as text: the plain values first, then a table for each mapping."""
    return "\n".join(_table(settings, ())).strip("\n") + "\n"


def _table(settings: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    lines = ["", f"[{'.'.join(_text(name) for name in names)}]"] if names and (plain or not tables) else []
    lines += [f"{_text(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in tables.items():
        lines += _table(value, (*names, key))
    return lines


def _text(key: str) -> str:
    bare = key.replace("_", "").replace("-", "")
    return key if bare.isascii() and bare.isalnum() else _quoted(key)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    return _quoted(str(value))
