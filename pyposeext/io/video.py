"""Video files through FFmpeg (PyAV): a streaming reader and an H.264 writer, both in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from pyposeext.errors import InputError
from pyposeext.io.atomic import PendingFile

Image = NDArray[np.uint8]

_BT709, _UNSPECIFIED_COLOUR = 1, 2
_LIMITED_RANGE, _FULL_RANGE = 1, 2
_WRITE_TIME_BASE = Fraction(1, 90_000)
_ENCODERS = ("libx264", "libopenh264")


class Frame(NamedTuple):
    """One frame: its number among the frames read (from 0), its time in seconds, and RGB uint8 [H, W, 3], upright."""

    number: int
    time: float
    image: Image


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about itself.

    Attributes:
        path: the file.
        width: of a frame as it is shown, after rotation, in pixels.
        height: likewise.
        codec: FFmpeg's name of the codec.
        container: FFmpeg's name of the container.
        start: time of the first frame in seconds.
        duration: seconds the container states, or None. A hint for progress, never trusted.
        rate: mean frames per second the container states, or None. A hint too.
        pixel_aspect: width over height of a pixel as it is shown.
    """

    path: Path
    width: int
    height: int
    codec: str
    container: str
    start: float
    duration: float | None
    rate: float | None
    pixel_aspect: Fraction


class VideoReader:
    """The frames of a video file, decoded one at a time.

    Times are the frames' own timestamps in seconds, so that variable frame rates are kept; a frame without a timestamp,
    or with one that does not grow, follows its predecessor at the mean rate. Rotation and mirroring that the file asks
    for are done. Nothing relies on the frame count of the container.

    A file that is damaged or cut short gives what can be read. A frame of another size ends the reading, because
    coordinates before and after would not compare. `problems` then says in a sentence each what happened, and
    `complete` is False where frames are missing at the end; both are final when the iteration is over.

    Args:
        path: any file that FFmpeg reads.
        start: seconds after the first frame at which to begin.
        max_frames: how many frames to read at most, or None.
        threads: decoding threads, 0 for FFmpeg's choice.

    Raises:
        InputError: no such file, not a video, no video stream, no frame.
    """

    def __init__(self, path: str | Path, start: float = 0.0, max_frames: int | None = None, threads: int = 0) -> None:
        self.path = Path(path)
        if not start >= 0:
            raise InputError(f"start must be 0 or more seconds, got {start}")
        if max_frames is not None and max_frames < 1:
            raise InputError(f"max_frames must be 1 or more, got {max_frames}")
        self.problems: list[str] = []
        self.complete = True
        self._start = float(start)
        self._max_frames = max_frames
        self._threads = threads
        self._damaged_packets = 0
        self._partial_packet = False
        self._decoded = 0
        self._end: float | None = None
        self._open()
        try:
            self._frames = self._read()
            self._first = next(self._frames, None)
            if self._first is None:
                raise InputError(self._no_frames())
            self.info = self._describe(self._first)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._frames

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def _open(self) -> None:
        self._container = _open_container(self.path)
        try:
            self._stream = _video_stream(self._container, self.path)
        except BaseException:
            self._container.close()
            raise
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = self._threads
        rate = self._stream.average_rate or self._stream.guessed_rate
        self._rate = float(rate) if rate else None
        start_time = self._stream.start_time
        self._stream_start = float(start_time * self._stream.time_base) if start_time is not None else 0.0

    def _read(self) -> Iterator[Frame]:
        time = None
        size = None
        for index, decoded in enumerate(self._from_start()):
            time = self._time_of(decoded, time)
            self._end = time + float((decoded.duration or 0) * (decoded.time_base or 0))
            image = _upright_rgb(decoded)
            if size is not None and image.shape != size:
                self._say_size_change(size, image.shape, index, time)
                return
            size = image.shape
            yield Frame(index, time, image)
            if index + 1 == self._max_frames:
                self._say_damage()
                return
        self._say_end()

    def _from_start(self) -> Iterator[av.VideoFrame]:
        """The decoded frames from `start` on."""
        if self._start == 0:
            yield from self._decode()
            return
        target = self._stream_start + self._start - 1e-4
        sought = self._seek()
        for decoded in self._decode():
            if sought and decoded.time is not None and decoded.time > target:
                # The index is wrong or the place is the first frame: only reading from the beginning is sure.
                self._container.close()
                self._open()
                yield from (late for late in self._decode() if late.time is None or late.time >= target)
                return
            sought = False
            if decoded.time is None or decoded.time >= target:
                yield decoded

    def _seek(self) -> bool:
        """Go to the key frame before `start`; False where the file cannot seek."""
        try:
            self._container.seek(int((self._stream_start + self._start) / self._stream.time_base), stream=self._stream)
        except av.FFmpegError:
            self._container.close()
            self._open()
            return False
        return True

    def _decode(self) -> Iterator[av.VideoFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError:
                # The container cannot go on (a file cut short); what the decoder still holds is good.
                self.complete = False
                yield from self._decode_packet(None)
                return
            self._partial_packet |= packet.is_corrupt
            yield from self._decode_packet(packet)

    def _decode_packet(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        try:
            frames = self._stream.decode(packet)
        except av.EOFError:
            return []
        except av.FFmpegError:
            self._damaged_packets += 1
            return []
        self._decoded += len(frames)
        return frames

    def _time_of(self, decoded: av.VideoFrame, previous: float | None) -> float:
        if decoded.time is not None and (previous is None or decoded.time > previous):
            return float(decoded.time)
        if previous is None:
            return self._stream_start
        return previous + 1 / (self._rate or 25)

    def _describe(self, first: Frame) -> VideoInfo:
        height, width = first.image.shape[:2]
        aspect = Fraction(self._stream.sample_aspect_ratio or 1)
        if (width, height) != (self._stream.width, self._stream.height):
            aspect = 1 / aspect
        return VideoInfo(
            path=self.path,
            width=width,
            height=height,
            codec=self._stream.codec_context.name,
            container=self._container.format.name,
            start=self._stream_start,
            duration=self._stated_duration() or self._container_duration(),
            rate=self._rate,
            pixel_aspect=aspect,
        )

    def _stated_duration(self) -> float | None:
        """Seconds of video the file states for this stream alone, or None."""
        duration = _seconds(self._stream.duration, self._stream.time_base)
        if duration is None:
            duration = self._until(_clock_seconds(self._stream.metadata.get("DURATION", "")))
        return duration

    def _container_duration(self) -> float | None:
        """Seconds the file states for all its streams together, or None."""
        duration = _seconds(self._container.duration, Fraction(1, av.time_base))
        return self._until(duration) if "matroska" in self._container.format.name else duration

    def _until(self, end: float | None) -> float | None:
        """Matroska states the time of the end, not the length."""
        return end - self._stream_start if end is not None and end > self._stream_start else None

    def _no_frames(self) -> str:
        stated = self._stated_duration()
        if self._start > 0 and self._decoded:
            length = f" ({stated:.1f} s long)" if stated else ""
            return f"start={self._start:g} s lies beyond the last frame of {self.path}{length}"
        return f"{self.path} has a video stream but not one frame that can be decoded"

    def _say_size_change(self, old: tuple[int, ...], new: tuple[int, ...], index: int, time: float) -> None:
        self.complete = False
        self.problems.append(
            f"{self.path.name}: the frame size changes from {old[1]}x{old[0]} to {new[1]}x{new[0]} at frame {index} "
            f"({time:.2f} s); the frames before it were kept"
        )

    def _say_end(self) -> None:
        stated = self._stated_duration()
        read = (self._end or 0.0) - self._stream_start
        slack = 0.25 + 3 / (self._rate or 25)
        self.complete = self.complete and not (stated is not None and read < stated - slack)
        # An AVI cut short states a duration to match its size; its header still has the number of frames. That is
        # often too high (frames dropped while recording), so the file must also be seen to end too early.
        if self._container.format.name == "avi" and self._start == 0 and self._decoded < self._stream.frames - 3:
            self.complete = self.complete and not (self._partial_packet or _riff_is_cut(self.path))
        if not self.complete:
            of = f" of {stated:.2f}" if stated is not None and read < stated - slack else ""
            self.problems.append(
                f"{self.path.name}: the file is cut short; {read:.2f}{of} s could be read and were kept"
            )
        self._say_damage()

    def _say_damage(self) -> None:
        # Where a file is cut short, the last packet is half there: that has been said.
        if self._damaged_packets > (0 if self.complete else 1):
            self.problems.append(f"{self.path.name}: {self._damaged_packets} damaged packets were skipped")


class VideoWriter:
    """An H.264 file (yuv420p, BT.709) that keeps the frames' times.

    The first frame is at zero and every distance in time is kept to 1/90000 s. Odd sizes are padded to even ones by
    repeating the last column or row. The file appears under its name only with `close`.

    Args:
        path: the file, any name: the container is MP4.
        width: of a frame, in pixels.
        height: likewise.
        rate: mean frames per second, a hint to the encoder, or None.
        pixel_aspect: width over height of a pixel as it is to be shown.
        quality: H.264's constant rate factor, 0 (lossless) to 51.
        threads: encoding threads, 0 for the encoder's choice.

    Raises:
        InputError: the file cannot be written, or FFmpeg has no H.264 encoder.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        *,
        rate: float | None = None,
        pixel_aspect: Fraction = Fraction(1),
        quality: int = 23,
        threads: int = 0,
    ) -> None:
        encoder = next((name for name in _ENCODERS if name in av.codecs_available), None)
        if encoder is None:
            raise InputError(f"this build of PyAV has no H.264 encoder (looked for {', '.join(_ENCODERS)})")
        self._size = (width, height)
        self._first: float | None = None
        self._last = -1
        self._pending = PendingFile(path)
        container: Any = av.open(
            f"file:{self._pending.temporary}", "w", format="mp4", options={"movflags": "faststart"}
        )
        options = {"crf": str(quality), "preset": "veryfast"} if encoder == "libx264" else {}
        self._container = container
        self._stream = stream = container.add_stream(
            encoder, rate=Fraction(rate or 25).limit_denominator(1001), options=options
        )
        stream.width = width + width % 2
        stream.height = height + height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = _WRITE_TIME_BASE
        context.thread_count = threads
        context.sample_aspect_ratio = pixel_aspect
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE

    def write(self, image: Image, time: float) -> None:
        """Add a frame: RGB uint8 [H, W, 3] of the writer's size, at that time in seconds."""
        height, width = image.shape[:2]
        if (width, height) != self._size or image.dtype != np.uint8:
            expected = f"uint8 of {self._size[0]}x{self._size[1]}"
            raise InputError(f"image must be {expected}, got {image.dtype} of {width}x{height}")
        if width % 2 or height % 2:
            padded: Any = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            image = padded
        if self._first is None:
            self._first = time
        self._last = max(round((time - self._first) / _WRITE_TIME_BASE), self._last + 1)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
        frame.pts = self._last
        frame.time_base = _WRITE_TIME_BASE
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file and give it its name; without a frame there is no file."""
        if self._first is None:
            self.discard()
            return
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._pending.commit()

    def discard(self) -> None:
        """Remove what was written."""
        try:
            self._container.close()
        finally:
            self._pending.discard()


def _open_container(path: Path) -> Any:
    if not path.exists():
        raise InputError(f"no such file: {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a video file")
    try:
        # The prefix keeps a colon in the name from being read as a protocol.
        return av.open(f"file:{path}", metadata_errors="replace")
    except PermissionError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except av.FFmpegError as error:
        raise InputError(f"{path} is not a video that FFmpeg can read, or is damaged ({error.strerror})") from error


def _video_stream(container: Any, path: Path) -> Any:
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    found = sorted({stream.type for stream in container.streams} - {"video", "data"})
    if not videos and found:
        raise InputError(f"{path} has no video stream, only {', '.join(found)}")
    if not videos:
        raise InputError(f"{path} holds no stream that can be read: it is empty, damaged or cut short")
    best = container.streams.best("video")
    stream = best if best in videos else videos[0]
    if stream.codec_context is None:
        raise InputError(f"{path} holds video in a codec that this FFmpeg cannot decode")
    return stream


def _seconds(duration: int | None, time_base: Fraction | None) -> float | None:
    return float(duration * time_base) if duration and time_base else None


def _clock_seconds(clock: str) -> float | None:
    """Seconds of 00:00:03.000000000, or None where it is nothing of the kind."""
    try:
        hours, minutes, seconds = clock.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _riff_is_cut(path: Path) -> bool:
    """Whether a RIFF file is smaller than its first chunk says."""
    with path.open("rb") as stream:
        head = stream.read(8)
    return path.stat().st_size < 8 + int.from_bytes(head[4:], "little")


def _rgb(decoded: av.VideoFrame) -> Any:
    """The frame as RGB uint8 [H, W, 3], as it is stored."""
    # Players take an unmarked HD video for BT.709; without being told, FFmpeg's scaler takes it for BT.601.
    unmarked_hd = decoded.colorspace == _UNSPECIFIED_COLOUR and min(decoded.width, decoded.height) >= 720
    colours: dict[str, Any] = {}
    if (unmarked_hd or decoded.colorspace == _BT709) and not decoded.format.is_rgb:
        # Before version 18 PyAV listens to the colour space only where the ranges are given too.
        full = decoded.color_range == _FULL_RANGE or decoded.format.name.startswith("yuvj")
        ranges = {"src_color_range": _FULL_RANGE if full else _LIMITED_RANGE, "dst_color_range": _FULL_RANGE}
        colours = {"src_colorspace": "ITU709", **ranges}
    return decoded.to_ndarray(format="rgb24", **colours)


def _upright_rgb(decoded: av.VideoFrame) -> Image:
    """The same, turned and mirrored as its display matrix asks."""
    image = _rgb(decoded)
    side_data: Any = decoded.side_data
    matrix = next((bytes(data) for data in side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return image
    # Row vectors times [[a, b], [c, d]] in 16.16 fixed point; only quarter turns and mirrorings occur.
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
    turned = abs(b) > abs(a)
    if turned:
        image = cv2.transpose(image)
    flip_x, flip_y = (c < 0, b < 0) if turned else (a < 0, d < 0)
    if flip_x or flip_y:
        image = cv2.flip(image, -1 if flip_x and flip_y else int(flip_x))
    return image
