"""A picture of which tracks are in view when: frames across, a row per track."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pyposeext.viz.draw import track_colour

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SCALE = 0.45
_INK, _GRID, _PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 30, 40, 60
_PLOT_WIDTH = 1000
_ROW, _BAR = 22, 14
_MAXIMUM_ROWS = 80


class Timeline:
    """Collects in which frames each track was seen, as runs of frames, and draws them."""

    def __init__(self) -> None:
        self._runs: dict[int, list[list[int]]] = {}
        self._frames = 0
        self._seconds = 0.0

    def add(self, frame: int, time: float, ids: NDArray[np.int64]) -> None:
        """Note the tracks [N] that are in view in this frame; frames come in order."""
        for track in ids.tolist():
            runs = self._runs.setdefault(track, [])
            if runs and runs[-1][1] == frame - 1:
                runs[-1][1] = frame
            else:
                runs.append([frame, frame])
        self._frames = frame + 1
        self._seconds = time

    def draw(self) -> NDArray[np.uint8]:
        """RGB uint8 [H, W, 3]. With very many tracks the longest are shown, and the title says so."""
        lengths = {track: sum(last - first + 1 for first, last in runs) for track, runs in self._runs.items()}
        longest = sorted(lengths, key=lambda track: (-lengths[track], track))[:_MAXIMUM_ROWS]
        tracks = sorted(longest)
        height = _TOP + _ROW * max(1, len(tracks)) + _BOTTOM
        canvas = np.full((height, _LEFT + _PLOT_WIDTH + _RIGHT, 3), _PAPER, dtype=np.uint8)
        title = f"{len(lengths)} tracks in {self._frames} frames, to {self._seconds:.2f} s"
        if len(lengths) > len(tracks):
            title += f" (the {len(tracks)} longest are shown)"
        _text(canvas, title, _LEFT, _TOP - 16)
        self._draw_axes(canvas, tracks)
        for row, track in enumerate(tracks):
            middle = _TOP + _ROW * row + _ROW // 2
            for first, last in self._runs[track]:
                corner = (self._across(first), middle - _BAR // 2)
                opposite = (max(self._across(last + 1) - 1, corner[0]), middle + _BAR // 2)
                cv2.rectangle(canvas, corner, opposite, track_colour(track), -1)
                cv2.rectangle(canvas, corner, opposite, _INK, 1)
        return canvas

    def _draw_axes(self, canvas: Any, tracks: list[int]) -> None:
        bottom = canvas.shape[0] - _BOTTOM
        for frame in range(0, self._frames + 1, _step(self._frames)):
            x = self._across(frame)
            cv2.line(canvas, (x, _TOP), (x, bottom), _GRID, 1)
            cv2.line(canvas, (x, bottom), (x, bottom + 5), _INK, 1)
            _text(canvas, str(frame), x, bottom + 22, centred=True)
        cv2.rectangle(canvas, (_LEFT, _TOP), (_LEFT + _PLOT_WIDTH, bottom), _INK, 1)
        _text(canvas, "frame", _LEFT + _PLOT_WIDTH // 2, bottom + 46, centred=True)
        _text(canvas, "track", 8, _TOP - 16)
        for row, track in enumerate(tracks):
            _text(canvas, str(track), 12, _TOP + _ROW * row + _ROW // 2 + 5)

    def _across(self, frame: int) -> int:
        return _LEFT + round(_PLOT_WIDTH * frame / max(1, self._frames))


def _step(frames: int) -> int:
    """A round number of frames between ticks that gives at most about ten of them."""
    rough = max(1.0, frames / 10)
    power = 10 ** math.floor(math.log10(rough))
    return next(int(power * factor) for factor in (1, 2, 5, 10) if power * factor >= rough)


def _text(canvas: Any, text: str, x: int, y: int, centred: bool = False) -> None:
    if centred:
        x -= cv2.getTextSize(text, _FONT, _SCALE, 1)[0][0] // 2
    cv2.putText(canvas, text, (x, y), _FONT, _SCALE, _INK, 1, cv2.LINE_AA)
