"""Reading and writing videos."""

from __future__ import annotations

import weakref
from pathlib import Path

import av
import numpy as np
import pytest

from pyposeext.errors import InputError
from pyposeext.io.video import VideoReader, VideoWriter
from tests.io.videos import cut, make_audio, make_headers_only, make_size_change, make_video, number_of

VARIABLE = [0, 10, 130, 400, 410, 900, 940]


def test_frames_come_in_order_with_their_times(tmp_path):
    with VideoReader(make_video(tmp_path / "a.mp4", 12)) as reader:
        frames = list(reader)
    assert [frame.number for frame in frames] == list(range(12))
    assert [number_of(frame.image) for frame in frames] == list(range(12))
    assert [frame.time for frame in frames] == pytest.approx([number / 25 for number in range(12)], abs=1e-4)
    assert frames[0].image.shape == (48, 64, 3)
    assert frames[0].image.dtype == np.uint8
    assert reader.complete
    assert reader.problems == []
    assert (reader.info.width, reader.info.height, reader.info.codec) == (64, 48, "h264")


def test_a_variable_rate_keeps_its_times(tmp_path):
    frames = list(VideoReader(make_video(tmp_path / "a.mkv", times=VARIABLE)))
    assert [frame.time for frame in frames] == pytest.approx([time / 1000 for time in VARIABLE], abs=1e-6)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_start_gives_the_same_frames_as_reading_from_the_beginning(tmp_path, name):
    path = make_video(tmp_path / name, 35)
    every = list(VideoReader(path))
    start = every[17].time - every[0].time
    later = list(VideoReader(path, start=start, max_frames=5))
    assert [frame.number for frame in later] == [0, 1, 2, 3, 4]
    assert [frame.time for frame in later] == [frame.time for frame in every[17:22]]
    assert [number_of(frame.image) for frame in later] == [17, 18, 19, 20, 21]


def test_a_start_beyond_the_end_is_said(tmp_path):
    with pytest.raises(InputError, match=r"start=9 s lies beyond the last frame of .*\(0\.5 s long\)"):
        VideoReader(make_video(tmp_path / "a.mp4", 12), start=9)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [({"start": -1.0}, "start must be 0 or more"), ({"max_frames": 0}, "max_frames must be 1 or more")],
)
def test_wrong_arguments(tmp_path, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        VideoReader(make_video(tmp_path / "a.mp4"), **arguments)


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV writes no rotation")
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_and_mirroring_are_done(tmp_path, degrees, mirrored):
    image = np.full((48, 64, 3), 40, np.uint8)
    image[:16, :24] = 220
    image[:16, 40:] = 130
    path = make_video(tmp_path / "a.mp4", images=[image] * 3, turned={"degrees": degrees, "hflip": mirrored})
    with VideoReader(path) as reader:
        shown = next(iter(reader)).image
    expected = np.rot90(image, degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    assert (reader.info.height, reader.info.width) == expected.shape[:2]
    assert np.abs(shown.astype(int) - expected).mean() < 4


def test_marked_colours_are_read_as_marked(tmp_path):
    image = np.full((48, 64, 3), (200, 60, 30), np.uint8)
    writer = VideoWriter(tmp_path / "a.mp4", 64, 48)  # marked as BT.709
    writer.write(image, 0.0)
    writer.close()
    shown = next(iter(VideoReader(tmp_path / "a.mp4"))).image
    assert np.abs(shown.astype(int) - image).max() <= 4
    unmarked = next(iter(VideoReader(make_video(tmp_path / "b.mp4", images=[image])))).image
    assert np.abs(unmarked.astype(int) - image).max() <= 4


def test_odd_sizes_are_read(tmp_path):
    path = make_video(tmp_path / "a.mkv", 3, (63, 47), codec="ffv1", pixels="yuv444p")
    assert next(iter(VideoReader(path))).image.shape == (47, 63, 3)


def test_a_colon_in_the_name_is_no_protocol(tmp_path):
    assert len(list(VideoReader(make_video(tmp_path / "a.mp4", 3).rename(tmp_path / "b:c.mp4")))) == 3


def test_a_wrong_frame_count_is_not_believed(tmp_path):
    path = make_video(tmp_path / "a.avi", 30, codec="mpeg4")
    data = bytearray(path.read_bytes())
    for place in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):
        assert int.from_bytes(data[place : place + 4], "little") == 30
        data[place : place + 4] = (7).to_bytes(4, "little")
    path.write_bytes(data)
    assert len(list(VideoReader(path))) == 30


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.mp4", "libx264", {"movflags": "faststart"}), ("a.mkv", "libx264", {}), ("a.avi", "mpeg4", {})],
)
def test_a_file_cut_short_gives_what_can_be_read_and_says_so(tmp_path, name, codec, options):
    noise = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), np.uint8)
    path = make_video(tmp_path / name, images=list(noise), codec=codec, options=options)
    reader = VideoReader(cut(path, 0.6))
    count = len(list(reader))
    assert 10 < count < 50
    assert not reader.complete
    assert f"cut_{name}: the file is cut short" in reader.problems[0]
    whole = VideoReader(path)
    assert len(list(whole)) == 60
    assert whole.complete


def test_a_matroska_file_that_starts_late_is_complete(tmp_path):
    path = make_video(tmp_path / "a.mkv", images=_noise(50), times=range(5000, 7000, 40))
    reader = VideoReader(path)
    assert (len(list(reader)), reader.complete, reader.problems) == (50, True, [])
    assert reader.info.duration == pytest.approx(2)
    short = VideoReader(cut(path, 0.6))
    assert len(list(short)) < 50
    assert " of 2.00 s" in short.problems[0]
    assert not short.complete


def test_a_duration_that_is_no_time_is_no_duration(tmp_path):
    path = make_video(tmp_path / "a.mkv", 12)
    data = path.read_bytes()
    assert data.count(b"00:00:00.480000000") == 1
    path.write_bytes(data.replace(b"00:00:00.480000000", b"a:b:00.48000000000"))
    reader = VideoReader(path)
    assert (len(list(reader)), reader.complete) == (12, True)
    assert reader.info.duration == pytest.approx(0.48)


def test_an_avi_with_too_high_a_frame_count_is_complete(tmp_path):
    path = make_video(tmp_path / "a.avi", 30, codec="mpeg4")
    data = bytearray(path.read_bytes())
    place = data.index(b"avih") + 8 + 16
    data[place : place + 4] = (99).to_bytes(4, "little")
    place = data.index(b"strh") + 8 + 32
    data[place : place + 4] = (38).to_bytes(4, "little")
    path.write_bytes(data)
    reader = VideoReader(path)
    assert (len(list(reader)), reader.complete, reader.problems) == (30, True, [])


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_an_avi_cut_anywhere_is_cut_short(tmp_path, share):
    path = make_video(tmp_path / "a.avi", images=_noise(60), codec="mpeg4")
    reader = VideoReader(cut(path, share))
    assert len(list(reader)) < 57
    assert not reader.complete


def _noise(count):
    return list(np.random.default_rng(0).integers(0, 255, (count, 48, 64, 3), np.uint8))


def test_a_change_of_size_ends_the_reading(tmp_path):
    reader = VideoReader(make_size_change(tmp_path / "a.ts", 8))
    frames = list(reader)
    assert len(frames) == 8
    assert {frame.image.shape for frame in frames} == {(48, 64, 3)}
    assert not reader.complete
    assert "the frame size changes from 64x48 to 96x48 at frame 8" in reader.problems[0]


def test_damage_in_the_middle_is_skipped_and_said(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), np.uint8)
    path = make_video(tmp_path / "a.mov", images=list(noise), codec="png", pixels="rgb24")
    data = bytearray(path.read_bytes())
    place = data.index(b"\x89PNG", len(data) // 2)
    data[place : place + 200] = bytes(200)
    path.write_bytes(data)
    reader = VideoReader(path)
    assert len(list(reader)) == 39
    assert reader.complete
    assert reader.problems == ["a.mov: 1 damaged packets were skipped"]


def _text(path: Path) -> Path:
    path.write_text("no video at all\n" * 50)
    return path


def _empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path, "no such file"),
        (lambda path: path.parent, "is a folder"),
        (_text, "is not a video that FFmpeg can read"),
        (_empty, "is not a video that FFmpeg can read"),
        (make_audio, "has no video stream, only audio"),
        (make_headers_only, "holds no stream that can be read"),
        (lambda path: cut(make_video(path), 0.5), "damaged"),
    ],
)
def test_what_is_no_video_is_one_sentence(tmp_path, make, sentence):
    with pytest.raises(InputError, match=sentence):
        VideoReader(make(tmp_path / "a.mp4"))


def test_frames_are_not_kept(tmp_path):
    alive = []
    with VideoReader(make_video(tmp_path / "a.mp4", 40)) as reader:
        for frame in reader:
            alive.append(weakref.ref(frame.image))
            assert sum(image() is not None for image in alive) <= 2
    assert len(alive) == 40


def test_written_times_survive(tmp_path):
    times = [5 + time / 1000 for time in VARIABLE]
    writer = VideoWriter(tmp_path / "b.mp4", 64, 48, rate=25)
    rng = np.random.default_rng(0)
    images = [np.repeat(rng.integers(0, 255, (1, 1, 3), np.uint8), 48, 0).repeat(64, 1) for _ in times]
    for image, time in zip(images, times, strict=True):
        writer.write(image, time)
    assert not (tmp_path / "b.mp4").exists()
    writer.close()
    frames = list(VideoReader(tmp_path / "b.mp4"))
    assert [frame.time for frame in frames] == pytest.approx([time - 5 for time in times], abs=1 / 90_000)
    for frame, image in zip(frames, images, strict=True):
        assert np.abs(frame.image.astype(int) - image).mean() < 5
    assert [path.name for path in tmp_path.iterdir()] == ["b.mp4"]


def test_written_odd_sizes_are_padded_to_even(tmp_path):
    writer = VideoWriter(tmp_path / "b.mp4", 63, 47)
    writer.write(np.full((47, 63, 3), 200, np.uint8), 0.0)
    writer.close()
    image = next(iter(VideoReader(tmp_path / "b.mp4"))).image
    assert image.shape == (48, 64, 3)
    assert abs(float(image[-1].mean()) - 200) < 5


def test_equal_times_are_pulled_apart(tmp_path):
    writer = VideoWriter(tmp_path / "b.mp4", 64, 48)
    for _ in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8), 1.0)
    writer.close()
    assert len(list(VideoReader(tmp_path / "b.mp4"))) == 3


def test_a_discarded_or_empty_video_leaves_nothing(tmp_path):
    writer = VideoWriter(tmp_path / "b.mp4", 64, 48)
    writer.write(np.zeros((48, 64, 3), np.uint8), 0.0)
    writer.discard()
    VideoWriter(tmp_path / "c.mp4", 64, 48).close()
    assert list(tmp_path.iterdir()) == []


def test_an_image_of_another_size_is_refused(tmp_path):
    writer = VideoWriter(tmp_path / "b.mp4", 64, 48)
    with pytest.raises(InputError, match="image must be uint8 of 64x48, got uint8 of 48x64"):
        writer.write(np.zeros((64, 48, 3), np.uint8), 0.0)
    writer.discard()


def test_a_place_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        VideoWriter(tmp_path / "file" / "b.mp4", 64, 48)


def test_the_demo_clip(test_data):
    with VideoReader(test_data / "video" / "sports2d_demo.mp4", start=7.5) as reader:
        frames = list(reader)
    assert (reader.info.width, reader.info.height) == (1768, 994)
    assert len(frames) == 5
    assert reader.complete
