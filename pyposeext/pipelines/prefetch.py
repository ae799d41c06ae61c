"""Reading ahead in a thread, a bounded number of items, so that decoding and inference overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")

_END = object()
_PATIENCE = 0.1


def prefetch(items: Iterable[Item], size: int = 4) -> Generator[Item, None, None]:
    """The items in their order, at most `size` of them read ahead; an exception of `items` is raised in its place.

    Closing the generator stops the thread before it returns.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=size)
    stopped, ended = threading.Event(), threading.Event()

    def put(entry: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=_PATIENCE)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:  # handed on to the consumer
            put((_END, error))
        finally:
            ended.set()

    thread = threading.Thread(target=read, name="pyposeext-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        _join(thread, ended)


def _join(thread: threading.Thread, ended: threading.Event) -> None:
    """Waits for a thread also through Ctrl-C: one that goes on while the interpreter ends would crash it.

    It waits for `ended`, which the thread sets: a `join` that Ctrl-C breaks off takes the thread for ended.
    """
    interrupted = False
    while True:
        try:
            ended.wait()
            thread.join()
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt
