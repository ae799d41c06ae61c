"""The output formats by name, and the two that are pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyposeext.errors import InputError
from pyposeext.io.atomic import PendingFile, make_directory
from pyposeext.io.coco import CocoWriter
from pyposeext.io.csv import CsvWriter
from pyposeext.io.images import write_image
from pyposeext.io.posetrack import CONVERTIBLE, PEOPLE_PER_IMAGE, PoseTrackWriter
from pyposeext.io.video import VideoInfo, VideoWriter
from pyposeext.io.writer import FramePoses, PoseWriter
from pyposeext.pipelines.settings import DrawingSettings
from pyposeext.structures import Skeleton
from pyposeext.viz.draw import draw_poses
from pyposeext.viz.timeline import Timeline

SUFFIXES = {
    "posetrack": ".posetrack.json",
    "coco": ".coco.json",
    "csv": ".csv",
    "mp4": ".mp4",
    "timeline": ".timeline.png",
}
# run.toml is no writer of poses: whoever runs the pipeline writes it at the end.
SETTINGS_FORMAT, SETTINGS_FILE = "toml", "run.toml"
FORMATS = (*SUFFIXES, SETTINGS_FORMAT)
_TRACKED_ONLY = ("posetrack", "timeline")


class OverlayWriter(PoseWriter):
    """An H.264 video of the frames with the people drawn on them."""

    def __init__(self, path: str | Path, info: VideoInfo, drawing: DrawingSettings) -> None:
        self._video = VideoWriter(path, info.width, info.height, rate=info.rate, pixel_aspect=info.pixel_aspect)
        self._drawing = drawing

    def write(self, frame: FramePoses) -> None:
        if frame.image is None:
            raise InputError("the overlay video needs the frames' images")
        drawn = draw_poses(
            frame.image,
            frame.poses,
            keypoint_threshold=self._drawing.keypoint_threshold,
            boxes=self._drawing.boxes,
            labels=self._drawing.labels,
            masks=self._drawing.masks,
        )
        self._video.write(drawn, frame.time)

    def close(self) -> None:
        self._video.close()

    def discard(self) -> None:
        self._video.discard()


class TimelineWriter(PoseWriter):
    """A picture of which tracks are in view when."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        PendingFile(self._path).discard()
        self._timeline = Timeline()

    def write(self, frame: FramePoses) -> None:
        if frame.poses.ids is None:
            raise InputError("the timeline shows tracks, but these poses have no ids")
        self._timeline.add(frame.number, frame.time, frame.poses.ids)

    def close(self) -> None:
        write_image(self._path, self._timeline.draw())

    def discard(self) -> None:
        """Nothing is written before `close`."""


def output_path(directory: Path, stem: str, name: str) -> Path:
    """Where the format of that name goes: NAME with the format's suffix, or run.toml."""
    return directory / (SETTINGS_FILE if name == SETTINGS_FORMAT else f"{stem}{SUFFIXES[name]}")


def fitting_formats(
    tracked: bool, maximum_people: int | None = None, skeleton: Skeleton | None = None
) -> tuple[str, ...]:
    """The formats that can hold such poses, at most that many people an image (None for no word on either)."""
    crowded = maximum_people is not None and maximum_people > PEOPLE_PER_IMAGE
    other_joints = skeleton is not None and skeleton.names not in CONVERTIBLE
    unfit = {*(() if tracked else _TRACKED_ONLY), *(("posetrack",) if crowded or other_joints else ())}
    return tuple(name for name in FORMATS if name not in unfit)


def check_formats(formats: Sequence[str], tracked: bool, maximum_people: int | None = None) -> None:
    """InputError where a format is not known, needs tracks that there are not, or cannot hold so many people."""
    if not formats:
        raise InputError(f"formats must name at least one of {', '.join(FORMATS)}")
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"formats must be among {', '.join(FORMATS)}, got {name!r}")
        if name in _TRACKED_ONLY and not tracked:
            raise InputError(f"the format {name!r} holds tracks, but people are not tracked here")
        if name not in fitting_formats(tracked, maximum_people):
            raise InputError(
                f"maximum_people must be {PEOPLE_PER_IMAGE} or less for the format {name!r}, got {maximum_people}: "
                "choose other formats"
            )


def open_writers(
    directory: Path, formats: Sequence[str], info: VideoInfo, skeleton: Skeleton, drawing: DrawingSettings
) -> dict[str, PoseWriter]:
    """A writer for each format but run.toml, by name; all files are begun, so that none can fail for its place later.

    Raises:
        InputError: a file cannot be written there, or would replace the video that is read.
    """
    make_directory(directory)
    stem = info.path.stem
    writers: dict[str, PoseWriter] = {}
    try:
        for name in dict.fromkeys(formats):
            path = output_path(directory, stem, name)
            if path.exists() and path.samefile(info.path):
                raise InputError(f"{path} is the video that is read: choose another output folder")
            if name == SETTINGS_FORMAT:
                PendingFile(path).discard()
            else:
                writers[name] = _open_writer(name, path, info, skeleton, drawing)
    except BaseException:
        for writer in writers.values():
            writer.discard()
        raise
    return writers


def _open_writer(name: str, path: Path, info: VideoInfo, skeleton: Skeleton, drawing: DrawingSettings) -> PoseWriter:
    stem = info.path.stem
    if name == "posetrack":
        return PoseTrackWriter(path, skeleton, stem)
    if name == "coco":
        return CocoWriter(path, skeleton, stem, drawing.keypoint_threshold)
    if name == "csv":
        return CsvWriter(path, skeleton)
    if name == "mp4":
        return OverlayWriter(path, info, drawing)
    return TimelineWriter(path)
