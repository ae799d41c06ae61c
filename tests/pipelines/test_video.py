"""From a video to files, with a made-up estimator."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from pyposeext.errors import InputError
from pyposeext.io.coco import read_coco
from pyposeext.io.csv import read_csv
from pyposeext.io.posetrack import read_posetrack
from pyposeext.io.video import VideoReader
from pyposeext.pipelines.interrupt import Interrupted
from pyposeext.pipelines.rcnn import RCNNEstimator
from pyposeext.pipelines.settings import EstimatorSettings
from pyposeext.pipelines.video import VideoPoses
from pyposeext.pipelines.writers import FORMATS, DrawingSettings
from pyposeext.skeletons import COCO17
from pyposeext.trackers.linker import GraphLinker
from tests.io.videos import cut, make_size_change, make_video
from tests.pipelines.fakes import BrightSpotModel, estimate, numbers

TIMES = [0, 40, 200, 240, 500]


def video_of(path, linker="default", **arguments):
    return VideoPoses(path, estimate, COCO17, linker=linker and GraphLinker(linker), **arguments)


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "clip.mkv", times=TIMES)


def test_frames_are_iterated_with_ids_times_and_images(clip):
    video = video_of(clip)
    frames = list(video)
    assert numbers(frames) == [0, 1, 2, 3, 4]
    assert [frame.time for frame in frames] == pytest.approx([time / 1000 for time in TIMES])
    assert all(frame.poses.ids.tolist() == [0] for frame in frames)
    assert frames[0].image.shape == (48, 64, 3)
    assert video.complete
    assert numbers(list(video)) == [0, 1, 2, 3, 4]


def test_without_a_linker_there_are_no_ids(clip):
    assert next(iter(video_of(clip, linker=None))).poses.ids is None


def test_every_format_is_saved_and_agrees(clip, tmp_path):
    frames = list(video_of(clip))
    saved = video_of(clip).save(tmp_path / "out")
    assert set(saved.files) == set(FORMATS)
    names = {"clip.posetrack.json", "clip.coco.json", "clip.csv", "clip.mp4", "clip.timeline.png", "run.toml"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert (saved.frames, saved.complete) == (5, True)
    for read in (
        read_coco(saved.files["coco"]),
        read_csv(saved.files["csv"], COCO17),
        read_posetrack(saved.files["posetrack"]),
    ):
        assert numbers(read) == [0, 1, 2, 3, 4]
        assert [frame.time for frame in read] == pytest.approx([time / 1000 for time in TIMES])
        for one, other in zip(read, frames, strict=True):
            np.testing.assert_allclose(one.poses.keypoints[:, 5:, :2], other.poses.keypoints[:, 5:, :2], atol=1e-3)
            assert one.poses.ids.tolist() == [0]
    overlay = list(VideoReader(saved.files["mp4"]))
    assert [frame.time for frame in overlay] == pytest.approx([time / 1000 for time in TIMES], abs=2e-5)
    assert np.ptp(overlay[0].image, axis=(0, 1)).max() > 50  # the plain grey frame has something drawn on it


def test_run_toml_holds_the_settings(clip, tmp_path):
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    video = RCNNEstimator(BrightSpotModel()).video(
        clip, track=True, tracker="detect_and_track", start=0.1, max_frames=2
    )
    video.save(tmp_path / "out", ["csv", "toml"], drawing=DrawingSettings(boxes=True))
    record = tomllib.loads((tmp_path / "out" / "run.toml").read_text())
    assert record["tracker"]["id_limit"] == 999
    assert record["tracker"]["maximum_cost"] == "none"
    assert record["estimator"]["pose_from"] == "crops"
    assert record["input"]["start"] == 0.1
    assert record["output"]["drawing"]["boxes"] is True
    assert record["result"]["frames"] == 2
    assert set(record["versions"]) == {"pyposeext", "torch", "python", "ffmpeg"}


def test_untracked_videos_have_the_formats_that_fit(clip, tmp_path):
    saved = video_of(clip, linker=None).save(tmp_path / "out")
    assert set(saved.files) == {"coco", "csv", "mp4", "toml"}
    with pytest.raises(InputError, match="the format 'timeline' holds tracks"):
        video_of(clip, linker=None).save(tmp_path / "other", ["timeline"])
    assert not (tmp_path / "other").exists()


def test_more_people_than_posetrack_numbers_are_refused_before_any_work(clip, tmp_path):
    estimator = RCNNEstimator(BrightSpotModel(), EstimatorSettings(maximum_people=101))
    video = estimator.video(clip, track=True, max_frames=1)
    with pytest.raises(InputError, match="maximum_people must be 100 or less for the format 'posetrack', got 101"):
        video.save(tmp_path / "out", ["posetrack", "csv"])
    assert not (tmp_path / "out").exists()
    assert set(video.save(tmp_path / "out").files) == set(FORMATS) - {"posetrack"}


@pytest.mark.parametrize(
    ("formats", "sentence"), [(["gif"], "formats must be among .*, got 'gif'"), ([], "at least one")]
)
def test_wrong_formats(clip, tmp_path, formats, sentence):
    with pytest.raises(InputError, match=sentence):
        video_of(clip).save(tmp_path / "out", formats)


def test_progress_is_told(clip, tmp_path):
    seen = []
    video_of(clip).save(tmp_path / "out", ["csv"], progress=seen.append)
    assert [progress.frames for progress in seen] == [1, 2, 3, 4, 5]
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] > 0.8
    seen.clear()
    video_of(clip, max_frames=2).save(tmp_path / "out", ["csv"], progress=seen.append)
    assert seen[-1].fraction == 1


def test_the_input_is_never_overwritten(tmp_path):
    clip = make_video(tmp_path / "clip.mp4")
    data = clip.read_bytes()
    with pytest.raises(InputError, match="is the video that is read"):
        video_of(clip).save(tmp_path, ["csv", "mp4"])
    assert clip.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_place_that_cannot_be_written_is_found_before_any_work(clip, tmp_path):
    def never(frames):
        raise AssertionError("a frame was worked on")

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        VideoPoses(clip, never, COCO17, linker=GraphLinker()).save(tmp_path / "file" / "out")


def test_a_video_cut_short_is_kept_and_said(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), np.uint8)
    clip = cut(make_video(tmp_path / "clip.mp4", images=list(noise), options={"movflags": "faststart"}), 0.6)
    problems = []
    video = video_of(clip, on_problem=problems.append)
    saved = video.save(tmp_path / "out", ["csv"])
    assert 5 < saved.frames < 40
    assert not saved.complete
    assert "cut short" in problems[0]
    assert len(read_csv(saved.files["csv"], COCO17)) == saved.frames
    with pytest.warns(UserWarning, match="cut short"):
        list(video_of(clip))


def test_a_change_of_size_is_kept_and_said(tmp_path):
    problems = []
    video = video_of(make_size_change(tmp_path / "clip.ts", 8), on_problem=problems.append)
    saved = video.save(tmp_path / "out", ["mp4", "coco"])
    assert (saved.frames, saved.complete) == (8, False)
    assert "the frame size changes" in problems[0]
    assert len(list(VideoReader(saved.files["mp4"]))) == 8


@pytest.mark.parametrize("ahead", [True, False])
def test_an_error_on_the_way_leaves_no_files(clip, tmp_path, ahead):
    def fails(frames):
        raise RuntimeError("no more")

    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="no more"):
        VideoPoses(clip, fails, COCO17, linker=GraphLinker(), ahead=ahead).save(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert threading.active_count() == threads


@pytest.mark.parametrize(("ahead", "most"), [(True, 3), (False, 1)])
def test_batches_are_estimated_only_so_far_ahead(tmp_path, ahead, most):
    batches, places = [], set()

    def note(frames):
        batches.append([frame.number for frame in frames])
        places.add(threading.current_thread())
        return estimate(frames)

    clip = make_video(tmp_path / "clip.mkv", 30)
    frames = iter(VideoPoses(clip, note, COCO17, frames_per_batch=4, ahead=ahead))
    next(frames)
    time.sleep(0.3)
    # One is at hand, one waits, and one is worked on or waits to be put beside it.
    assert 1 <= len(batches) <= most
    assert (threading.main_thread() in places) is not ahead
    assert numbers(frames) == list(range(1, 30))
    assert batches[-1] == [28, 29]


def test_frames_before_an_error_are_given(tmp_path):
    def fails(frames):
        if frames[0].number == 3:
            raise RuntimeError("no more")
        return estimate(frames)

    seen = []
    with pytest.raises(RuntimeError, match="no more"):
        seen.extend(frame.number for frame in VideoPoses(make_video(tmp_path / "clip.mkv"), fails, COCO17))
    assert seen == [0, 1, 2]


def interrupt_at(*frames):
    def progress(now):
        if now.frames in frames:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def test_an_interrupt_finishes_the_files(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    clip = make_video(tmp_path / "clip.mp4", 30)
    with pytest.raises(Interrupted) as caught:
        video_of(clip).save(tmp_path / "out", progress=interrupt_at(7))
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.saved.frames == 7
    assert len(read_csv(tmp_path / "out" / "clip.csv", COCO17)) == 7
    assert len(list(VideoReader(tmp_path / "out" / "clip.mp4"))) == 7
    assert len(json.loads((tmp_path / "out" / "clip.coco.json").read_text())["images"]) == 7
    assert "interrupted = true" in (tmp_path / "out" / "run.toml").read_text()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_leaves_no_files(tmp_path):
    def twice(now):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        video_of(make_video(tmp_path / "clip.mp4", 30)).save(tmp_path / "out", progress=twice)
    assert list((tmp_path / "out").iterdir()) == []


def test_leaving_the_loop_stops_the_reading(clip):
    threads = threading.active_count()
    for frame in video_of(clip):
        if frame.number == 1:
            break
    assert threading.active_count() == threads
