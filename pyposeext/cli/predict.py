"""`pyposeext predict IMAGE|FOLDER|VIDEO|-`: poses without tracking."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from pyposeext.cli.options import CommonOptions, FormatsOption, OutputOption, parse
from pyposeext.errors import InputError
from pyposeext.io.atomic import check_writable
from pyposeext.io.coco import CocoWriter
from pyposeext.io.images import IMAGE_SUFFIXES, list_images, read_image, write_image
from pyposeext.io.video import VideoReader
from pyposeext.pipelines.interrupt import DeferredInterrupt
from pyposeext.viz.draw import draw_poses

if TYPE_CHECKING:
    from pyposeext.pipelines.estimator import Estimator
    from pyposeext.structures import Poses

_FORMATS = ("coco", "overlay")
_VIDEO_FORMATS = {"coco": "coco", "overlay": "mp4"}


@dataclass(frozen=True)
class PredictArguments:
    """Find the people in an image, in every image of a folder, or in every frame of a video.

    Without -o the poses go to standard output as one JSON object in COCO's layout. With -o the folder gets
    NAME.coco.json and overlays: NAME.overlay.png of an image, one for each image of a folder, NAME.mp4 of a video.
    Images of a folder that differ only in their suffix keep it in the name; one that cannot be read, or that a file of
    detections does not know, is said and left out. Ctrl-C finishes a video's files with the
    frames so far.

    Attributes:
        input: an image, a folder of images, a video, or - for an encoded image on standard input.
        output: the folder, made where it is missing.
        formats: which files to write with -o: coco, overlay.
        common: further options.
    """

    input: tyro.conf.Positional[str]
    output: Annotated[Path | None, OutputOption] = None
    formats: Annotated[tuple[str, ...], FormatsOption] = _FORMATS
    common: Annotated[CommonOptions, tyro.conf.arg(name="")] = field(default_factory=CommonOptions)


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0, or 2 where a video could not be read to its end, or an image of a folder was left out."""
    options = parse(PredictArguments, "predict", arguments)
    for name in options.formats or ("",):
        if name not in _FORMATS:
            raise InputError(f"formats must be among {', '.join(_FORMATS)}, got {name!r}")
    if options.output is not None:
        check_writable(options.output)
    if _is_video(options.input):
        return _predict_video(options)
    problems: list[str] = []
    images = _images(options.input, problems)
    first = next(images, None)
    if first is not None:
        estimator = options.common.run.load(options.common.estimator)
        _predict_images(options, estimator, _chain(first, images), problems)
    _say(problems)
    return 2 if problems else 0


def _is_video(source: str) -> bool:
    path = Path(source)
    if source == "-" or path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return False
    if not path.exists():
        raise InputError(f"no such file: {path}")
    return True


def _images(source: str, problems: list[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Name and RGB of each image; one of a folder that cannot be read is a sentence more in `problems`."""
    if source == "-":
        data = sys.stdin.buffer.read()
        if not data:
            raise InputError("standard input is empty, expected an encoded image")
        yield "stdin", read_image(data)
        return
    path = Path(source)
    if not path.is_dir():
        yield path.name, read_image(path)
        return
    for file in list_images(path):
        try:
            image = read_image(file)
        except InputError as error:
            problems.append(str(error))
            continue
        yield file.name, image


def _predict_images(
    options: PredictArguments,
    estimator: Estimator,
    images: Iterator[tuple[str, NDArray[np.uint8]]],
    problems: list[str],
) -> None:
    """Write what is found; an image of a folder whose boxes are not known is a sentence more in `problems`."""
    drawing = options.common.drawing
    stem = "stdin" if options.input == "-" else Path(options.input).resolve().stem
    target = sys.stdout if options.output is None else options.output / f"{stem}.coco.json"
    overlays = _overlay_names(options.input)
    writer = None
    if options.output is None or "coco" in options.formats:
        writer = CocoWriter(target, estimator.skeleton, stem, drawing.keypoint_threshold)
    count = 0
    try:
        for name, image, poses in _estimated(estimator, images, problems if Path(options.input).is_dir() else None):
            count += 1
            if writer is not None:
                writer.write_image(poses, name, image.shape[1::-1])
            if options.output is not None and "overlay" in options.formats:
                drawn = draw_poses(
                    image,
                    poses,
                    keypoint_threshold=drawing.keypoint_threshold,
                    boxes=drawing.boxes,
                    masks=drawing.masks,
                )
                write_image(options.output / overlays.get(name, f"{Path(name).stem}.overlay.png"), drawn)
        if writer is not None and count:
            writer.close()
        elif writer is not None:
            writer.discard()
    except BaseException:
        if writer is not None:
            writer.discard()
        raise
    if options.output is not None:
        print(f"{count} image{'' if count == 1 else 's'}: {', '.join(options.formats)} in {options.output}")


def _estimated(
    estimator: Estimator, images: Iterator[tuple[str, NDArray[np.uint8]]], problems: list[str] | None
) -> Iterator[tuple[str, NDArray[np.uint8], Poses]]:
    """Each image with its people; without `problems` an image whose boxes are not known is an error."""
    from pyposeext.pipelines.file_detector import UnknownImageError

    for name, image in images:
        try:
            poses = estimator.image(image, name=name)
        except UnknownImageError as error:
            if problems is None:
                raise
            problems.append(str(error))
            continue
        yield name, image, poses


def _overlay_names(source: str) -> dict[str, str]:
    """What the overlay of each image of a folder is called: no two the same."""
    names = [path.name for path in list_images(source)] if Path(source).is_dir() else []
    stems = Counter(Path(name).stem for name in names)
    # A stem may also be the whole name of another image (a.jpg.png beside a.jpg).
    plain = {name for name in names if stems[Path(name).stem] == 1 and Path(name).stem not in names}
    return {name: f"{Path(name).stem if name in plain else name}.overlay.png" for name in names}


def _chain(
    first: tuple[str, NDArray[np.uint8]], others: Iterator[tuple[str, NDArray[np.uint8]]]
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    yield first
    yield from others


def _predict_video(options: PredictArguments) -> int:
    from pyposeext.cli.track import save_video

    common = options.common
    VideoReader(options.input, common.start, common.max_frames).close()
    estimator = common.run.load(common.estimator)
    problems: list[str] = []
    video = estimator.video(options.input, start=common.start, max_frames=common.max_frames, on_problem=problems.append)
    if options.output is not None:
        formats = [_VIDEO_FORMATS[name] for name in options.formats]
        return save_video(video, options.output, formats, common.drawing, common.progress, problems)
    writer = CocoWriter(sys.stdout, estimator.skeleton, Path(options.input).stem, common.drawing.keypoint_threshold)
    try:
        with DeferredInterrupt() as interrupt:
            for frame in video.until(interrupt):
                writer.write(frame)
            writer.close()
    except BaseException:
        writer.discard()
        raise
    if interrupt.requested:
        raise KeyboardInterrupt
    _say(problems)
    return 0 if video.complete else 2


def _say(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"pyposeext: {' '.join(problem.split())}", file=sys.stderr)
