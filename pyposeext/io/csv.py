"""Tidy CSV: a row per joint, with the columns frame, time, track, joint, x, y, score."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from pyposeext.errors import InputError
from pyposeext.io.atomic import PendingFile
from pyposeext.io.writer import FramePoses, PoseWriter, check_poses
from pyposeext.structures import Poses, Skeleton

COLUMNS = ("frame", "time", "track", "joint", "x", "y", "score")


class CsvWriter(PoseWriter):
    """Rows of `COLUMNS`: frame from 0, time in seconds, x and y in source pixels, score in 0..1.

    The track is empty where people were not tracked; a person's rows follow each other in the skeleton's order. People
    of a model without joints have no rows: the COCO format holds their boxes and masks.
    """

    def __init__(self, path: str | Path, skeleton: Skeleton) -> None:
        self._pending = PendingFile(path)
        self._skeleton = skeleton
        self._stream = self._pending.temporary.open("w", encoding="utf-8", newline="")
        self._rows = csv.writer(self._stream, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def write(self, frame: FramePoses) -> None:
        check_poses(frame.poses, self._skeleton, f"frame {frame.number}")
        tracks = [""] * len(frame.poses) if frame.poses.ids is None else frame.poses.ids.tolist()
        time = f"{frame.time:.6f}"
        for track, keypoints in zip(tracks, frame.poses.keypoints.tolist(), strict=True):
            self._rows.writerows(
                (frame.number, time, track, joint, f"{x:.3f}", f"{y:.3f}", f"{score:.4f}")
                for joint, (x, y, score) in zip(self._skeleton.names, keypoints, strict=True)
            )

    def close(self) -> None:
        self._stream.close()
        self._pending.commit()

    def discard(self) -> None:
        self._stream.close()
        self._pending.discard()


def read_csv(path: str | Path, skeleton: Skeleton) -> list[FramePoses]:
    """The frames of a file that `CsvWriter` wrote which have people, in order.

    The format has neither boxes nor scores of people: boxes are those around the joints, scores the joints' mean.
    """
    with Path(path).open(encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream)
        header = tuple(next(rows, ()))
        if header != COLUMNS:
            raise InputError(f"{path} must begin with the columns {','.join(COLUMNS)}, got {','.join(header)}")
        people: dict[tuple[int, float], list[list[list[str]]]] = {}
        for number, row in enumerate(rows):
            person = people.setdefault((int(row[0]), float(row[1])), [])
            if number % len(skeleton) == 0:
                person.append([])
            person[-1].append(row[2:])
    return [FramePoses(index, time, _poses(person, skeleton)) for (index, time), person in people.items()]


def _poses(people: list[list[list[str]]], skeleton: Skeleton) -> Poses:
    for rows in people:
        if tuple(row[1] for row in rows) != skeleton.names:
            raise InputError(f"the joints of the file are not those of {skeleton.name!r}")
    keypoints = np.array([[[float(value) for value in row[2:]] for row in rows] for rows in people])
    boxes = np.concatenate([keypoints[:, :, :2].min(axis=1), keypoints[:, :, :2].max(axis=1)], axis=1)
    tracks = [rows[0][0] for rows in people]
    ids = np.array([int(track) for track in tracks]) if all(tracks) else None
    return Poses(keypoints, boxes, keypoints[:, :, 2].mean(axis=1), skeleton, ids)
