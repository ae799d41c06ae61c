"""Small videos made for a test."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

MILLISECOND = Fraction(1, 1000)


def grey_of(number: int) -> int:
    """The grey of frame `number`, by which a decoded frame is known again."""
    return 20 + 5 * (number % 40)


def number_of(image: NDArray[np.uint8]) -> int:
    """Which frame (modulo 40) an image is."""
    return round((float(image.mean()) - 20) / 5)


def make_video(
    path: Path,
    frames: int = 12,
    size: tuple[int, int] = (64, 48),
    *,
    times: Sequence[int] | None = None,
    images: Sequence[NDArray[np.uint8]] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    container: str | None = None,
    options: dict[str, str] | None = None,
    turned: dict[str, Any] | None = None,
) -> Path:
    """A video of plain grey frames at 25 frames per second, or at `times` in milliseconds; or of `images`.

    `turned` are the arguments of PyAV's set_display_rotation. Every tenth frame is a key frame.
    """
    with av.open(str(path), "w", format=container, options=options or {}) as output:
        stream: Any = output.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = 10
        if times is not None:
            stream.codec_context.time_base = MILLISECOND
        if turned is not None:
            stream.set_display_rotation(**turned)
        count = len(images) if images is not None else len(times) if times is not None else frames
        for number in range(count):
            grey = np.full((size[1], size[0], 3), grey_of(number), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey if images is None else images[number], format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, 25) if times is None else MILLISECOND
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def make_audio(path: Path) -> Path:
    """A file with a second of silence and no video."""
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def make_headers_only(path: Path) -> Path:
    """A video file without a single frame."""
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()
    return path


def make_size_change(path: Path, frames: int = 8) -> Path:
    """Two transport streams of different size, one after the other."""
    parts = [
        make_video(path.with_name(f"part{width}.ts"), frames, (width, 48), container="mpegts") for width in (64, 96)
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def cut(path: Path, share: float) -> Path:
    """The first part of a file, under another name."""
    data = path.read_bytes()
    short = path.with_name(f"cut_{path.name}")
    short.write_bytes(data[: int(len(data) * share)])
    return short
