"""Files that appear only when they are complete: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import os
from pathlib import Path

from pyposeext.errors import InputError


class PendingFile:
    """A file being written.

    The temporary file is made at once, so that a place that cannot be written is found before any work. The file takes
    its name with `commit` and leaves nothing with `discard`; whichever comes first counts.

    Raises:
        InputError: the folder cannot be made or the file cannot be written there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        make_directory(self.path.parent)
        if self.path.is_dir():
            raise InputError(f"cannot write {self.path}: it is a folder")
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            self.temporary.open("wb").close()
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error
        self._open = True

    def commit(self) -> None:
        """Give the file its name, over an older one of the same name."""
        if self._open:
            self._open = False
            self.temporary.replace(self.path)

    def discard(self) -> None:
        """Remove what was written."""
        if self._open:
            self._open = False
            self.temporary.unlink(missing_ok=True)


def make_directory(directory: str | Path) -> Path:
    """The folder, made where it is missing, or an InputError that says why it cannot be."""
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {directory}: {error.strerror}") from error
    return directory


def check_writable(directory: str | Path) -> Path:
    """The folder, made where it is missing, or an InputError where no file can be written in it."""
    directory = make_directory(directory)
    PendingFile(directory / "pyposeext").discard()
    return directory


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    pending = PendingFile(path)
    try:
        pending.temporary.write_bytes(data)
        pending.commit()
    finally:
        pending.discard()
