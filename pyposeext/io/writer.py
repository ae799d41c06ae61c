"""What every writer of poses has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyposeext.errors import InputError
from pyposeext.structures import Poses, Skeleton


class FramePoses(NamedTuple):
    """The people of one frame.

    Attributes:
        number: of the frame among those read, from 0.
        time: of the frame, in seconds.
        poses: the people in it.
        image: RGB uint8 [H, W, 3], or None where the poses come from a file.
    """

    number: int
    time: float
    poses: Poses
    image: NDArray[np.uint8] | None = None


class PoseWriter(ABC):
    """One output file, filled frame by frame in bounded memory.

    The file is begun in the constructor, which raises an InputError where it cannot be written, and takes its name with
    `close`. `discard` removes it. After either, nothing more may be written.
    """

    @abstractmethod
    def write(self, frame: FramePoses) -> None:
        """Add a frame; frames come in order."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file with the frames so far."""

    @abstractmethod
    def discard(self) -> None:
        """Leave nothing."""


def check_skeleton(poses: Poses, skeleton: Skeleton) -> None:
    """InputError where the poses have other joints than the file."""
    if poses.skeleton.names != skeleton.names:
        raise InputError(f"poses must have the joints of {skeleton.name!r}, got {poses.skeleton.name!r}")


def check_poses(poses: Poses, skeleton: Skeleton, where: str) -> None:
    """InputError where the poses have other joints than the file, or numbers no file holds, `where` they are."""
    check_skeleton(poses, skeleton)
    for name in ("keypoints", "boxes", "scores"):
        if not np.isfinite(getattr(poses, name)).all():
            raise InputError(f"poses must be finite to be written, got {name} that are not in {where}")
