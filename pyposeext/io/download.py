"""Files from the web: streamed, continued where a download broke off, checked, and whole or not there."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from pyposeext.errors import InputError
from pyposeext.io.atomic import PendingFile, make_directory, write_bytes

_BLOCK = 1 << 18
_PASSING_ERRORS = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


class Received(NamedTuple):
    """How far a download is, in bytes; `total` is None where the server does not say."""

    received: int
    total: int | None


def download(
    address: str,
    path: str | Path,
    sha256: str = "",
    *,
    on_progress: Callable[[Received], None] | None = None,
    timeout: float = 30.0,
    attempts: int = 5,
    pause: float = 1.0,
) -> str:
    """Fetch a file.

    What has arrived lies beside `path` under its name with ``.part`` until it is whole. It stays there when the
    download is interrupted or fails, and the next call continues it if the server still has the same file.

    Args:
        address: http or https.
        path: where the file goes; an older one is replaced.
        sha256: its SHA-256, or the first digits of it; "" where nothing is known.
        on_progress: called after every block.
        timeout: seconds without a sign of the server after which a connection counts as dropped.
        attempts: how many connections in a row may end without bringing the file further.
        pause: seconds before the second attempt; each further one waits twice as long.

    Returns:
        The SHA-256 of the file, 64 hexadecimal digits.

    Raises:
        InputError: no connection, an error of the server, a file that is not the expected one, a place that cannot be
            written, or another process that fetches the same file now.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise InputError(f"address must begin with http:// or https://, got {address!r}")
    path = Path(path)
    PendingFile(path).discard()
    with exclusive(path), _Part(path, address) as part:
        _fetch(part, on_progress or (lambda _: None), timeout, attempts, pause)
        digest = part.digest.hexdigest()
        if not digest.startswith(sha256.lower()):
            part.remove()
            raise InputError(
                f"the file at {address} has the SHA-256 {digest}, but {sha256} is expected: it was damaged on the way "
                "or is another file now, and nothing of it was kept"
            )
        part.finish()
    return digest


def part_files(path: str | Path) -> list[Path]:
    """What an unfinished download of `path` has left, if anything."""
    path = Path(path)
    names = (_part_name(path), _record_name(path))
    return [place for place in names if place.exists()]


@contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Keeps other processes that use this function from working on `path` at the same time.

    Raises:
        InputError: another process does so now.
    """
    path = Path(path)
    make_directory(path.parent)
    place = path.with_name(f".{path.name}.lock")
    lock = _locked(place, path)
    try:
        yield
    finally:
        # Removed while it is held: whoever opened it meanwhile finds that it is not the file of that name any more.
        place.unlink(missing_ok=True)
        lock.close()


def _locked(place: Path, path: Path) -> IO[bytes]:
    while True:
        lock = place.open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), place.stat()):
                return lock
        except BlockingIOError as error:
            lock.close()
            raise InputError(f"another process is writing {path} at the moment: wait until it is done") from error
        except FileNotFoundError:
            pass
        lock.close()


class _DroppedError(Exception):
    """A connection that ended early or a server that has no time; the sentence says which."""


class _ChangedError(Exception):
    """The server cannot continue what was begun: the file is another one, or the answer is not what was asked for."""


class _Part:
    """The beginning of a file, its hash, and what tells whether the server still has the same file."""

    def __init__(self, path: Path, address: str) -> None:
        self.path, self.address = path, address
        self.digest = hashlib.sha256()
        self.size = 0
        self.total: int | None = None
        self.validator = ""
        self._file: IO[bytes] = _part_name(path).open("ab+")
        self._take_up()

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self.size == 0:
            self.remove()

    @property
    def complete(self) -> bool:
        return self.total is not None and self.size == self.total

    def restart(self, validator: str = "", total: int | None = None) -> None:
        """Forget what there was; what comes now is a file of that size, told apart by that entity tag or date."""
        self._file.truncate(0)
        self.digest = hashlib.sha256()
        self.size, self.total, self.validator = 0, total, validator
        record = {"address": self.address, "validator": validator, "total": total}
        write_bytes(_record_name(self.path), json.dumps(record).encode())

    def append(self, block: bytes) -> None:
        try:
            self._file.write(block)
            self._file.flush()
        except OSError as error:
            raise InputError(f"cannot write {_part_name(self.path)}: {error.strerror or error}") from error
        self.digest.update(block)
        self.size += len(block)

    def finish(self) -> None:
        """Give the file its name."""
        self._file.close()
        _part_name(self.path).replace(self.path)
        _record_name(self.path).unlink(missing_ok=True)

    def remove(self) -> None:
        for place in part_files(self.path):
            place.unlink()

    def _take_up(self) -> None:
        """Continue an earlier download where its record says enough to notice another file."""
        try:
            record = json.loads(_record_name(self.path).read_bytes())
            usable = record["address"] == self.address and bool(record["validator"])
            self.validator, self.total = record["validator"], record["total"]
        except (OSError, ValueError, LookupError, TypeError):
            usable = False
        length = self._file.seek(0, os.SEEK_END)
        if not usable or (self.total is not None and length > self.total):
            self._file.truncate(0)
            self.validator, self.total = "", None
            return
        self._file.seek(0)
        while block := self._file.read(_BLOCK):
            self.digest.update(block)
            self.size += len(block)


def _part_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _record_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.part.json")


def _fetch(part: _Part, on_progress: Callable[[Received], None], timeout: float, attempts: int, pause: float) -> None:
    """Bring the part to its end over as many connections as it takes."""
    failures, furthest = 0, part.size
    while not part.complete:
        try:
            with _opened(part, timeout) as response:
                _receive(part, response, on_progress)
            return
        except _ChangedError as error:
            reason = str(error)
            part.restart()
        except _DroppedError as error:
            reason = str(error)
        failures = 0 if part.size > furthest else failures + 1
        furthest = max(furthest, part.size)
        if failures >= attempts:
            kept = f"; {part.size} bytes have arrived and are kept for the next time" if part.validator else ""
            raise InputError(
                f"{part.address} could not be fetched: {reason}, and {attempts} attempts brought nothing more{kept}"
            )
        time.sleep(pause * 2 ** max(failures - 1, 0))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but not from https to what anybody on the way could change."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before, after) == ("https", "http"):
            raise InputError(f"{req.full_url} redirects to {newurl}, which is not followed: it is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opened(part: _Part, timeout: float) -> Any:
    """The server's answer: the whole file, or its rest where the part can be continued."""
    headers = {"User-Agent": "pyposeext", "Accept-Encoding": "identity"}
    if part.size and part.validator:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    request = urllib.request.Request(part.address, headers=headers)
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.size:
                raise _ChangedError("the server has no such part of it") from error
            phrase = f"the server answers {error.code} {error.reason}"
        if error.code in _PASSING_ERRORS:
            raise _DroppedError(phrase) from error
        raise InputError(f"{part.address} could not be fetched: {phrase}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if part.size:
            raise _DroppedError(_in_words(reason, timeout)) from error
        raise InputError(
            f"{part.address} could not be reached: {_in_words(reason, timeout)}; is this machine online?"
        ) from error


def _receive(part: _Part, response: Any, on_progress: Callable[[Received], None]) -> None:
    """Append what the server sends, to the end of the file or of the connection."""
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        end: int | None = _check_continuation(part, response.headers)
    elif response.status == HTTPStatus.OK:
        length = response.headers.get("Content-Length", "")
        part.restart(_validator(response.headers), int(length) if length.isdecimal() else None)
        end = part.total
    else:
        raise InputError(f"{part.address} could not be fetched: the server answers {response.status}")
    on_progress(Received(part.size, part.total))
    while end is None or part.size < end:
        try:
            # Never past the announced end: a server may keep the connection open.
            block = response.read1(_BLOCK if end is None else min(_BLOCK, end - part.size))
        except (OSError, http.client.HTTPException) as error:
            raise _DroppedError(_in_words(error)) from error
        if not block:
            break
        part.append(block)
        on_progress(Received(part.size, part.total))
    if part.total is not None and part.size < part.total:
        raise _DroppedError(f"the connection ended after {part.size} of {part.total} bytes")


def _check_continuation(part: _Part, headers: Message) -> int:
    """The end of the range that the server sends, once it is sure that it continues the part."""
    stated = headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", stated.strip())
    if match is None or int(match[1]) != part.size or int(match[2]) < part.size:
        raise _ChangedError(f"the server sends the part {stated!r} where bytes from {part.size} on were asked for")
    total = None if match[3] == "*" else int(match[3])
    if part.total is not None and total not in (None, part.total):
        raise _ChangedError(f"the file has {total} bytes now instead of {part.total}")
    # Servers that know no If-Range send the rest of whatever they have now.
    if _validator(headers) not in ("", part.validator):
        raise _ChangedError("the file has changed since the download began")
    part.total = part.total or total
    return int(match[2]) + 1


def _validator(headers: Message) -> str:
    """What If-Range takes: the entity tag where it is a strong one, else the date of the last change, else ""."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _in_words(error: object, timeout: float | None = None) -> str:
    if isinstance(error, TimeoutError):
        return "the server is silent" if timeout is None else f"the server did not answer within {timeout:g} s"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended early"
    with suppress(AttributeError):
        if error.strerror:  # type: ignore[attr-defined]
            return str(error.strerror)  # type: ignore[attr-defined]
    return str(error) or type(error).__name__
