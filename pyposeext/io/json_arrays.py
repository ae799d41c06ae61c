"""JSON objects whose arrays are too long for memory: COCO and PoseTrack files are made of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

Record = dict[str, Any]


class JsonArrays:
    """Several arrays that grow at the same time, spooled to unnamed files until they are written out as one object.

    Args:
        names: of the arrays, in the order in which they are written.
        directory: where to spool, None for the system's place.
    """

    def __init__(self, names: tuple[str, ...], directory: Path | None = None) -> None:
        self._spools: dict[str, IO[str]] = {
            name: tempfile.TemporaryFile("w+", encoding="utf-8", dir=directory)  # noqa: SIM115
            for name in names
        }

    def append(self, name: str, record: Record) -> None:
        """Add a record to the array of that name."""
        self._spools[name].write(_dump(record) + "\n")

    def write(
        self,
        stream: IO[str],
        rest: Mapping[str, Any],
        complete: Mapping[str, Callable[[Record], Record]] | None = None,
    ) -> None:
        """Write the object: the arrays, then the members of `rest`.

        Args:
            stream: where to.
            rest: further members, small ones.
            complete: for an array, what makes its records complete with facts that are known only at the end.
        """
        separator = "{"
        for name, spool in self._spools.items():
            stream.write(f"{separator}{json.dumps(name)}: [")
            separator = ",\n"
            spool.seek(0)
            last = complete.get(name) if complete else None
            for number, line in enumerate(spool):
                record = _dump(last(json.loads(line))) if last else line.rstrip("\n")
                stream.write(f"{',' if number else ''}\n{record}")
            stream.write("\n]")
        for name, value in rest.items():
            stream.write(f"{separator}{json.dumps(name)}: {_dump(value)}")
            separator = ",\n"
        stream.write("}\n")

    def close(self) -> None:
        """Free the spooled data."""
        for spool in self._spools.values():
            spool.close()


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
