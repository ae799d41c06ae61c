"""A web server on the loopback address that answers as well or as badly as a test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Behaviour:
    """What the server has, and how it gives it out. `requests` are the headers of all requests so far.

    Attributes:
        content: of the one file there is.
        tag, date: its ETag and Last-Modified; "" for none.
        ranges: whether Range is understood, and `if_range` whether If-Range is.
        length: whether Content-Length is sent.
        drops: bytes after which each of the next connections ends.
        statuses: what the next requests are answered instead of the file.
        redirect: where to send everybody.
        content_range: instead of the true one.
        most: bytes of a range that are sent at most.
        silence: seconds before the answer.
        delay: seconds between blocks of 1000 bytes.
    """

    content: bytes
    tag: str = '"one"'
    date: str = ""
    ranges: bool = True
    if_range: bool = True
    length: bool = True
    drops: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    redirect: str = ""
    content_range: str = ""
    most: int | None = None
    silence: float = 0.0
    delay: float = 0.0
    requests: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """The address of the file."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            behaviour.requests.append(dict(self.headers))
            time.sleep(behaviour.silence)
            if behaviour.redirect and self.path == "/file":
                self.send_response(302)
                self.send_header("Location", behaviour.redirect)
                self.end_headers()
            elif behaviour.statuses:
                self.send_response(behaviour.statuses.pop(0))
                self.end_headers()
            else:
                _send(self, behaviour)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/file"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _send(handler: BaseHTTPRequestHandler, behaviour: Behaviour) -> None:
    content, total = behaviour.content, len(behaviour.content)
    asked = handler.headers.get("Range")
    same = handler.headers.get("If-Range") in (None, behaviour.tag, behaviour.date) or not behaviour.if_range
    partial = bool(asked) and behaviour.ranges and same
    start = int(asked.removeprefix("bytes=").removesuffix("-")) if partial else 0
    if start >= total > 0:
        handler.send_response(416)
        handler.end_headers()
        return
    end = min(total, start + behaviour.most) if partial and behaviour.most else total
    handler.send_response(206 if partial else 200)
    if partial:
        handler.send_header("Content-Range", behaviour.content_range or f"bytes {start}-{end - 1}/{total}")
    for name, value in (("ETag", behaviour.tag), ("Last-Modified", behaviour.date)):
        if value:
            handler.send_header(name, value)
    if behaviour.length:
        handler.send_header("Content-Length", str(end - start))
    handler.end_headers()
    stop = start + behaviour.drops.pop(0) if behaviour.drops else end
    try:
        for begin in range(start, min(stop, end), 1000):
            handler.wfile.write(content[begin : min(begin + 1000, stop, end)])
            time.sleep(behaviour.delay)
    except OSError:
        pass  # The client has gone.
