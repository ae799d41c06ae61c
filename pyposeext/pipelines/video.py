"""From a video to people in every frame: reading ahead, estimating in batches, linking and writing, in order."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from pyposeext.io.run_settings import write_run_settings
from pyposeext.io.video import Frame, VideoReader
from pyposeext.io.writer import FramePoses, PoseWriter
from pyposeext.pipelines.inputs import InputImage
from pyposeext.pipelines.interrupt import DeferredInterrupt, Interrupted
from pyposeext.pipelines.prefetch import prefetch
from pyposeext.pipelines.settings import DrawingSettings
from pyposeext.pipelines.writers import (
    SETTINGS_FORMAT,
    check_formats,
    fitting_formats,
    open_writers,
    output_path,
)
from pyposeext.structures import Poses, Skeleton
from pyposeext.trackers.linker import GraphLinker, LinkState

Estimate = Callable[[Sequence[InputImage]], Sequence[Poses]]

# So many frames at least are read ahead, or as many as a batch has.
_READ_AHEAD = 4


class Progress(NamedTuple):
    """How far a video is.

    Attributes:
        frames: done so far.
        time: of the last of them in the video, in seconds.
        fraction: done, 0..1, from the length the file states, which may be wrong; None where it states none.
    """

    frames: int
    time: float
    fraction: float | None


class Saved(NamedTuple):
    """What `VideoPoses.save` wrote.

    Attributes:
        files: by format.
        frames: how many were written.
        seconds: of work.
        complete: False where the video could not be read to its end; `VideoPoses.problems` says why.
    """

    files: dict[str, Path]
    frames: int
    seconds: float
    complete: bool


class VideoPoses:
    """The people in each frame of a video, computed as it is iterated over (again, each time).

    Memory is that of a few batches of frames, whatever the length of the video.

    Args:
        path: any video file that FFmpeg reads.
        estimate: from a batch of frames to the people in each.
        skeleton: of these.
        frames_per_batch: how many frames `estimate` is given at once; the last batch may be smaller.
        ahead: whether `estimate` runs in a thread of its own, a batch ahead of what is done with its results. A model
            compiled with CUDA graphs must not: these belong to a thread.
        maximum_people: how many `estimate` gives at most, or None where that is not known.
        linker: links the people over time; None leaves them without ids.
        start: seconds after the first frame at which to begin.
        max_frames: how many frames at most, or None.
        on_problem: is given a sentence where the video is damaged, cut short or changes its size; the frames before are
            kept. By default it becomes a warning.
        settings: what is to stand in run.toml beside what is known here.

    Attributes:
        info: what the file says about itself.
        problems: the sentences of the last iteration; complete: whether it came to its end with every frame there.

    Raises:
        InputError: as `pyposeext.io.video.VideoReader`.
    """

    def __init__(
        self,
        path: str | Path,
        estimate: Estimate,
        skeleton: Skeleton,
        *,
        frames_per_batch: int = 1,
        ahead: bool = True,
        maximum_people: int | None = None,
        linker: GraphLinker | None = None,
        start: float = 0.0,
        max_frames: int | None = None,
        on_problem: Callable[[str], None] = warnings.warn,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = Path(path)
        self._estimate = estimate
        self._skeleton = skeleton
        self._frames_per_batch = frames_per_batch
        self._ahead = ahead
        self._maximum_people = maximum_people
        self._linker = linker
        self._start = start
        self._max_frames = max_frames
        self._on_problem = on_problem
        self._settings = dict(settings or {})
        self.problems: list[str] = []
        self.complete = False
        with self._open() as reader:
            self.info = reader.info

    def __iter__(self) -> Generator[FramePoses, None, None]:
        self.problems, self.complete = [], False
        state: LinkState | None = None
        size = (self.info.width, self.info.height)
        with self._open() as reader:
            with closing(self._estimated(reader)) as found:
                for frame, people in found:
                    poses = people
                    if self._linker is not None:
                        poses, state = self._linker.link(poses, state, size)
                    yield FramePoses(frame.number, frame.time, poses, frame.image)
            self.problems, self.complete = reader.problems, reader.complete
        for problem in self.problems:
            self._on_problem(problem)

    def save(
        self,
        directory: str | Path,
        formats: Sequence[str] | None = None,
        *,
        drawing: DrawingSettings | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Saved:
        """Work through the video and write the results to `directory`.

        Every file appears only when it is complete. Ctrl-C ends the work after the frame at hand, finishes the files
        with the frames so far and then raises `Interrupted`, a KeyboardInterrupt; a second Ctrl-C leaves no files.

        Args:
            directory: made where it is missing.
            formats: names from `pyposeext.pipelines.writers.FORMATS`; None for all that fit.
            drawing: what the overlay shows.
            progress: called after every frame.

        Raises:
            InputError: unknown formats, formats that need tracks where there are none or cannot hold so many people, a
                place that cannot be written; all before any work.
        """
        tracked = self._linker is not None
        if formats is None:
            formats = fitting_formats(tracked, self._maximum_people, self._skeleton)
        check_formats(formats, tracked, self._maximum_people)
        drawing = drawing or DrawingSettings()
        directory = Path(directory)
        writers = open_writers(directory, formats, self.info, self._skeleton, drawing)
        files = {name: output_path(directory, self.info.path.stem, name) for name in dict.fromkeys(formats)}
        began = time.perf_counter()
        frames = 0
        try:
            with DeferredInterrupt() as interrupt:
                for frame in self.until(interrupt):
                    for writer in writers.values():
                        writer.write(frame)
                    frames = frame.number + 1
                    if progress is not None:
                        progress(self._progress(frame))
                for writer in writers.values():
                    writer.close()
                seconds = time.perf_counter() - began
                if SETTINGS_FORMAT in files:
                    facts = {"frames": frames, "seconds": round(seconds, 3), "interrupted": interrupt.requested}
                    write_run_settings(files[SETTINGS_FORMAT], self._record(facts, formats, drawing))
        except BaseException:
            _discard(writers)
            raise
        saved = Saved({name: path for name, path in files.items() if path.exists()}, frames, seconds, self.complete)
        if interrupt.requested:
            raise Interrupted(saved)
        return saved

    def _estimated(self, reader: VideoReader) -> Generator[tuple[Frame, Poses], None, None]:
        """The frames with their people: reading and, where it goes ahead, estimating are threads of their own.

        The queues in between are bounded: a few frames on the one side, a batch of results on the other.
        """

        def estimate(frames: Iterable[Frame]) -> Generator[list[tuple[Frame, Poses]], None, None]:
            for batch in _batches(frames, self._frames_per_batch):
                people = self._estimate([InputImage(frame.image, frame.number, time=frame.time) for frame in batch])
                yield list(zip(batch, people, strict=True))

        with closing(prefetch(reader, max(_READ_AHEAD, self._frames_per_batch))) as frames:
            batches = prefetch(estimate(frames), 1) if self._ahead else estimate(frames)
            with closing(batches):
                for batch in batches:
                    yield from batch

    def _open(self) -> VideoReader:
        return VideoReader(self._path, self._start, self._max_frames)

    def until(self, interrupt: DeferredInterrupt) -> Iterator[FramePoses]:
        """The frames up to the one at hand when Ctrl-C comes."""
        with closing(iter(self)) as frames:
            for frame in frames:
                yield frame
                if interrupt.requested:
                    return

    def _progress(self, frame: FramePoses) -> Progress:
        fractions = []
        if self.info.duration:
            length = max(self.info.duration - self._start, 1e-3)
            fractions.append(min((frame.time - self.info.start - self._start) / length, 1.0))
        if self._max_frames is not None:
            fractions.append((frame.number + 1) / self._max_frames)
        return Progress(frame.number + 1, frame.time, max(fractions) if fractions else None)

    def _record(self, facts: Mapping[str, Any], formats: Sequence[str], drawing: DrawingSettings) -> dict[str, Any]:
        info = self.info
        return {
            **self._settings,
            "input": {
                "path": str(info.path.resolve()),
                "codec": info.codec,
                "width": info.width,
                "height": info.height,
                "start": self._start,
                "max_frames": self._max_frames,
            },
            "output": {"formats": list(formats), "drawing": vars(drawing)},
            "result": {**facts, "complete": self.complete, "problems": self.problems},
        }


def _batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """The frames in lists of `size`, the last perhaps shorter."""
    batch: list[Frame] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _discard(writers: Mapping[str, PoseWriter]) -> None:
    for writer in writers.values():
        writer.discard()
