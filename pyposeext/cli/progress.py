"""How far a video or a download is, on standard error: a bar, JSON lines, or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyposeext.io.download import Received
from pyposeext.pipelines.video import Progress

_JSON_INTERVAL = 0.5


@contextmanager
def show_progress(kind: str, title: str) -> Iterator[Callable[[Progress], None]]:
    """A callback for `VideoPoses.save` that shows frames, frames per second and the time left.

    Args:
        kind: "bar", "json" (a line at most twice a second, and one at the end) or "none".
        title: of the bar.
    """
    if kind == "bar":
        with _bar(title) as update:
            yield update
    elif kind == "json":
        with _json_lines() as update:
            yield update
    else:
        yield lambda _: None


@contextmanager
def show_download(kind: str, title: str) -> Iterator[Callable[[Received], None]]:
    """A callback for `download` that shows bytes, bytes per second and the time left; `kind` as in `show_progress`."""
    if kind == "bar":
        with _download_bar(title) as update:
            yield update
    elif kind == "json":
        shown = 0.0

        def show(received: Received) -> None:
            nonlocal shown
            if received.received == received.total or time.perf_counter() - shown >= _JSON_INTERVAL:
                shown = time.perf_counter()
                print(json.dumps(received._asdict()), file=sys.stderr, flush=True)

        yield show
    else:
        yield lambda _: None


@contextmanager
def _download_bar(title: str) -> Iterator[Callable[[Received], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Bar(*columns, console=Console(stderr=True))
    task = bar.add_task(title, total=None)

    def update(received: Received) -> None:
        # Not before something arrives: an error has the line for itself.
        bar.start()
        bar.update(task, completed=received.received, total=received.total)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


class _Clock:
    """Frames per second and seconds left since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def read(self, progress: Progress) -> dict[str, Any]:
        elapsed = time.perf_counter() - self._began
        left = elapsed * (1 / progress.fraction - 1) if progress.fraction else None
        return {"fps": round(progress.frames / max(elapsed, 1e-9), 2), "eta": None if left is None else round(left, 1)}


@contextmanager
def _bar(title: str) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[frames]} frames  {task.fields[fps]} fps  eta {task.fields[eta]}"),
    )
    clock = _Clock()
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, frames=0, fps="-", eta="-")

        def update(progress: Progress) -> None:
            now = clock.read(progress)
            eta = "-" if now["eta"] is None else f"{now['eta']:.0f} s"
            total = None if progress.fraction is None else 1.0
            bar.update(
                task, total=total, completed=progress.fraction or 0, frames=progress.frames, fps=now["fps"], eta=eta
            )

        yield update


@contextmanager
def _json_lines() -> Iterator[Callable[[Progress], None]]:
    clock = _Clock()
    last: Progress | None = None
    shown = 0.0

    def show(progress: Progress, done: bool) -> None:
        line = {**progress._asdict(), **clock.read(progress), "done": done}
        print(json.dumps(line), file=sys.stderr, flush=True)

    def update(progress: Progress) -> None:
        nonlocal last, shown
        last = progress
        if time.perf_counter() - shown >= _JSON_INTERVAL:
            shown = time.perf_counter()
            show(progress, False)

    try:
        yield update
    finally:
        if last is not None:
            show(last, True)
