"""The picture of tracks over frames."""

from __future__ import annotations

import numpy as np

from pyposeext.viz.draw import track_colour
from pyposeext.viz.timeline import Timeline


def has_colour(image, track):
    return (image == np.array(track_colour(track))).all(axis=2)


def test_a_bar_lies_where_its_track_was_seen():
    timeline = Timeline()
    for frame in range(100):
        ids = [4] if 20 <= frame < 40 or 60 <= frame < 70 else []
        timeline.add(frame, frame / 25, np.array([*ids, 9], dtype=np.int64))
    image = timeline.draw()
    first, second = has_colour(image, 4), has_colour(image, 9)
    assert np.nonzero(first)[0].max() < np.nonzero(second)[0].min()
    across = np.nonzero(first.any(axis=0))[0]
    whole = np.nonzero(second.any(axis=0))[0]
    length = whole.max() - whole.min()
    assert abs(len(across) / length - 0.3) < 0.02
    assert abs((across.min() - whole.min()) / length - 0.2) < 0.01
    assert abs((across.max() - whole.min()) / length - 0.7) < 0.01


def test_nothing_and_very_many_tracks_can_be_drawn():
    empty = Timeline().draw()
    assert empty.dtype == np.uint8
    timeline = Timeline()
    for frame in range(3000):
        timeline.add(frame, frame / 25, np.array([frame], dtype=np.int64))
    assert timeline.draw().shape[0] < 2500


def test_memory_is_of_runs_not_of_frames():
    timeline = Timeline()
    for frame in range(10_000):
        timeline.add(frame, 0.0, np.array([1, 2], dtype=np.int64))
    assert sum(len(runs) for runs in timeline._runs.values()) == 2
