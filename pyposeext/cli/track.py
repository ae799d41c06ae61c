"""`pyposeext track VIDEO -o DIR`: tracked poses of a video."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pyposeext.cli.options import CommonOptions, FormatsOption, OutputOption, missing_path, parse
from pyposeext.cli.progress import show_progress
from pyposeext.io.atomic import check_writable
from pyposeext.io.video import VideoReader
from pyposeext.pipelines.interrupt import Interrupted
from pyposeext.pipelines.settings import DrawingSettings
from pyposeext.pipelines.writers import check_formats
from pyposeext.trackers.linker import LinkerSettings, get_preset

if TYPE_CHECKING:
    from pyposeext.pipelines.video import Saved, VideoPoses


@dataclass(frozen=True)
class TrackArguments:
    """Find the people in a video, follow them over time, and write the results to a folder.

    NAME.posetrack.json, NAME.coco.json, NAME.csv, NAME.mp4 (overlay), NAME.timeline.png and run.toml (every setting).
    The PoseTrack file takes COCO's or PoseTrack's joints and at most 100 people a frame.
    Ctrl-C finishes the files with the frames so far.

    Attributes:
        video: any file that FFmpeg reads.
        output: the folder, made where it is missing.
        formats: which files to write, of posetrack, coco, csv, mp4, timeline and toml; None for all that can hold the
            people.
        preset: the tracker's settings to begin with, "default" or "detect_and_track".
        common: further options.
        tracker: how people are linked over time.
    """

    video: Annotated[Path, tyro.conf.Positional]
    output: Annotated[Path, OutputOption]
    formats: Annotated[tuple[str, ...] | None, FormatsOption] = None
    preset: str = "default"
    common: Annotated[CommonOptions, tyro.conf.arg(name="")] = field(default_factory=CommonOptions)
    tracker: LinkerSettings = field(default_factory=LinkerSettings)


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0, or 2 where the video could not be read to its end."""
    preset = get_preset(_preset(arguments))
    default = TrackArguments(video=missing_path(), output=missing_path(), tracker=preset)
    options = parse(TrackArguments, "track", arguments, default)
    common = options.common
    if options.formats is not None:
        check_formats(options.formats, tracked=True, maximum_people=common.estimator.maximum_people)
    VideoReader(options.video, common.start, common.max_frames).close()
    check_writable(options.output)
    estimator = common.run.load(common.estimator)
    problems: list[str] = []
    video = estimator.video(
        options.video,
        track=True,
        tracker=options.tracker,
        start=common.start,
        max_frames=common.max_frames,
        on_problem=problems.append,
    )
    return save_video(video, options.output, options.formats, common.drawing, common.progress, problems)


def save_video(
    video: VideoPoses,
    output: Path,
    formats: Sequence[str] | None,
    drawing: DrawingSettings,
    progress: str,
    problems: Sequence[str],
) -> int:
    """Work through a video with progress, say what was written and what was wrong; the exit code."""
    try:
        with show_progress(progress, video.info.path.name) as update:
            saved = video.save(output, formats, drawing=drawing, progress=update)
    except Interrupted as interrupted:
        _report(interrupted.saved)
        raise
    _report(saved)
    for problem in problems:
        print(f"pyposeext: {problem}", file=sys.stderr)
    return 0 if saved.complete else 2


def _preset(arguments: Sequence[str]) -> str:
    """The preset must be known before the other tracker options, which go over it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="default")
    return str(parser.parse_known_args(list(arguments))[0].preset)


def _report(saved: Saved) -> None:
    rate = saved.frames / saved.seconds if saved.seconds else 0
    print(f"{saved.frames} frames in {saved.seconds:.1f} s ({rate:.1f} frames per second)")
    for path in saved.files.values():
        print(path)
