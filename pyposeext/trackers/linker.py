"""Linking people from frame to frame into tracks: a bipartite graph between two frames, as in Detect-and-Track
(Girdhar et al., CVPR 2018, section 3.2), with gating, bridged gaps and motion as options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyposeext.errors import InputError
from pyposeext.structures import Poses
from pyposeext.trackers.assignment import ASSIGNMENTS
from pyposeext.trackers.costs import box_areas, box_iou, head_sizes, pose_oks, pose_pck

_VELOCITY_MEMORY = 0.5
_LARGEST_BUFFER = 0.5


@dataclass(frozen=True)
class LinkerSettings:
    """How people are linked. The defaults are the product's own; `PRESETS` names others.

    Attributes:
        assignment: least total cost ("hungarian") or cheapest pair first ("greedy").
        box_weight: of 1 - IoU in the cost of a pair.
        oks_weight: of 1 - OKS; of 1 - IoU where the skeleton has no sigmas, or no joints at all.
        pck_weight: of 1 - PCK.
        minimum_score: people below it are left out.
        birth_score: a track begins only with a person of this score, and people below it are linked after the others;
            None for `minimum_score`.
        minimum_area: people whose box, clipped to the image, has fewer square pixels are left out.
        joint_score: joints below it in either frame do not count in OKS and PCK.
        plus_one: box widths are x2 - x1 + 1, as in Detectron.
        maximum_cost: pairs that cost more are never linked; None links whatever is left, at any cost.
        max_gap: for how many frames in a row a track may miss its person and still go on.
        buffer: boxes compared with a track that has missed its person are enlarged by this share of their sides, on
            every side and for each frame missed, up to a half (buffered IoU, Yang et al. 2023): where somebody may have
            got to is less certain then.
        constant_velocity: whether a track is expected where its speed takes it as well as where it was.
        id_limit: ids begin again at 0 after this many; None for never.
    """

    assignment: Literal["hungarian", "greedy"] = "hungarian"
    box_weight: float = 0.5
    oks_weight: float = 0.5
    pck_weight: float = 0.0
    minimum_score: float = 0.2
    birth_score: float | None = 0.5
    minimum_area: float = 50.0
    joint_score: float = 0.2
    plus_one: bool = False
    maximum_cost: float | None = 0.9
    max_gap: int = 15
    buffer: float = 0.1
    constant_velocity: bool = True
    id_limit: int | None = None

    def __post_init__(self) -> None:
        if self.assignment not in ASSIGNMENTS:
            raise InputError(f"assignment must be one of {', '.join(ASSIGNMENTS)}, got {self.assignment!r}")
        weights = (self.box_weight, self.oks_weight, self.pck_weight)
        if min(weights) < 0 or sum(weights) == 0:
            raise InputError(f"the weights of box, OKS and PCK must be 0 or more and not all 0, got {weights}")
        if self.buffer < 0:
            raise InputError(f"buffer must be 0 or more, got {self.buffer}")
        if self.max_gap < 0:
            raise InputError(f"max_gap must be 0 or more, got {self.max_gap}")
        if self.id_limit is not None and self.id_limit < 1:
            raise InputError(f"id_limit must be 1 or more, got {self.id_limit}")


PRESETS = {
    "default": LinkerSettings(),
    # Detect-and-Track as it was released: neither gate nor memory nor motion.
    "detect_and_track": LinkerSettings(
        box_weight=1.0,
        oks_weight=0.0,
        minimum_score=0.95,
        joint_score=0.0,
        birth_score=None,
        plus_one=True,
        maximum_cost=None,
        max_gap=0,
        buffer=0.0,
        constant_velocity=False,
        id_limit=999,
    ),
}


def get_preset(name: str) -> LinkerSettings:
    """The settings of that name, or an InputError that lists the names there are."""
    if name not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


@dataclass(frozen=True)
class LinkState:
    """The M tracks that may go on, between one frame and the next.

    Attributes:
        boxes: [M, 4], where each was last seen.
        keypoints: [M, K, 3], likewise.
        velocities: [M, 2], pixels a frame.
        missed: [M], frames since each was last seen.
        ids: [M].
        next_id: of the next track to begin.
    """

    boxes: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    velocities: NDArray[np.float32]
    missed: NDArray[np.int64]
    ids: NDArray[np.int64]
    next_id: int = 0


class GraphLinker:
    """Links the people of each frame to the tracks so far; bounded memory, one frame at a time.

    Args:
        settings: a `LinkerSettings`, or the name of one of `PRESETS`.
    """

    def __init__(self, settings: LinkerSettings | str = "default") -> None:
        self.settings = get_preset(settings) if isinstance(settings, str) else settings

    def link(
        self, poses: Poses, state: LinkState | None = None, size: tuple[int, int] | None = None
    ) -> tuple[Poses, LinkState]:
        """The people of a frame with their ids, and the state to give with the next frame.

        Args:
            poses: N people.
            state: what the frame before gave, None for the first.
            size: (width, height) of the frame, to clip the boxes to, or None.

        Returns:
            Those of the people who pass the filters, in their order, with ids [N'] and boxes clipped; the new state.
        """
        people = self._filter(poses, size)
        if state is None:
            state = _no_tracks(people)
        before, now = self._pairs(people, state)
        ids = np.full(len(people), -1, dtype=np.int64)
        ids[now] = state.ids[before]
        born = self._births(people, ids)
        ids[born] = state.next_id + np.arange(len(born))
        next_id = state.next_id + len(born)
        if self.settings.id_limit is not None:
            ids[born] %= self.settings.id_limit
            next_id %= self.settings.id_limit

        velocities = np.zeros((len(people), 2), dtype=np.float32)
        velocities[now] = _velocities(state, before, people.boxes[now])
        seen = LinkState(
            people.boxes, people.keypoints, velocities, np.zeros(len(people), dtype=np.int64), ids, next_id
        )
        known = np.flatnonzero(ids >= 0)
        lost = np.setdiff1d(np.arange(len(state.ids)), before)
        lost = lost[state.missed[lost] < self.settings.max_gap]
        waiting = _take(state, lost)
        waiting = replace(waiting, missed=waiting.missed + 1)
        return replace(people[known], ids=ids[known]), _join(_take(seen, known), waiting, next_id)

    def _filter(self, poses: Poses, size: tuple[int, int] | None) -> Poses:
        boxes = poses.boxes
        if size is not None:
            boxes = np.clip(boxes, 0, np.array([*size, *size], dtype=np.float32))
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        kept = (poses.scores >= self.settings.minimum_score) & (areas >= self.settings.minimum_area)
        return replace(poses, boxes=boxes, ids=None)[kept]

    def _pairs(self, people: Poses, state: LinkState) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        cost, strong = self._cost(state.boxes, state.keypoints, state.missed, people), self._strong(people)
        if self.settings.constant_velocity:
            shift = state.velocities * (state.missed[:, None] + 1)
            keypoints = state.keypoints.copy()
            keypoints[:, :, :2] += shift[:, None]
            # A track may have stopped, or its speed was noise: where it was seen last counts as much.
            cost = np.minimum(cost, self._cost(state.boxes + np.tile(shift, 2), keypoints, state.missed, people))
        before, now = self._assign(cost, np.arange(len(state.ids)), np.flatnonzero(strong))
        # Faint people only go on with tracks that no strong one claims (ByteTrack, Zhang et al. 2022): a partial
        # finding of somebody must not take over the track.
        left = np.setdiff1d(np.arange(len(state.ids)), before)
        faint_before, faint_now = self._assign(cost, left, np.flatnonzero(~strong))
        return np.concatenate([before, faint_before]), np.concatenate([now, faint_now])

    def _assign(
        self, cost: NDArray[np.floating[Any]], before: NDArray[np.int64], now: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs between some tracks and some people."""
        rows, columns = ASSIGNMENTS[self.settings.assignment](cost[np.ix_(before, now)], self.settings.maximum_cost)
        return before[rows], now[columns]

    def _cost(
        self,
        boxes: NDArray[np.floating[Any]],
        keypoints: NDArray[np.floating[Any]],
        missed: NDArray[np.int64],
        people: Poses,
    ) -> NDArray[np.floating[Any]]:
        """[M, N], the weighted sum of the active costs."""
        settings = self.settings
        cost = np.zeros((len(boxes), len(people)))
        # Without sigmas there is no OKS: the boxes count for it.
        has_oks = bool(people.skeleton.sigmas)
        box_weight = settings.box_weight + (0.0 if has_oks else settings.oks_weight)
        if box_weight:
            cost += box_weight * (1 - self._overlap(boxes, missed, people.boxes))
        if settings.oks_weight and has_oks:
            areas = box_areas(boxes)
            alike = pose_oks(keypoints, people.keypoints, areas, people.skeleton.sigmas, settings.joint_score)
            cost += settings.oks_weight * (1 - alike)
        if settings.pck_weight:
            heads = head_sizes(keypoints, people.skeleton)
            cost += settings.pck_weight * (1 - pose_pck(keypoints, people.keypoints, heads, settings.joint_score))
        # A person with a coordinate that is not a number is like nobody, and the assignment takes no such costs.
        return np.nan_to_num(cost, nan=settings.box_weight + settings.oks_weight + settings.pck_weight)

    def _overlap(
        self, boxes: NDArray[np.floating[Any]], missed: NDArray[np.int64], now: NDArray[np.floating[Any]]
    ) -> NDArray[np.floating[Any]]:
        """IoU [M, N], of enlarged boxes where the track has missed its person."""
        overlap = np.zeros((len(boxes), len(now)))
        for frames in np.unique(missed):
            rows = missed == frames
            share = min(self.settings.buffer * frames, _LARGEST_BUFFER)
            overlap[rows] = box_iou(_enlarged(boxes[rows], share), _enlarged(now, share), self.settings.plus_one)
        return overlap

    def _births(self, people: Poses, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.flatnonzero((ids < 0) & self._strong(people))

    def _strong(self, people: Poses) -> NDArray[np.bool_]:
        needed = self.settings.birth_score
        return np.ones(len(people), dtype=bool) if needed is None else people.scores >= needed


def _enlarged(boxes: NDArray[np.floating[Any]], share: float) -> NDArray[np.floating[Any]]:
    """Boxes with `share` of their sides added on every side."""
    boxes = boxes.astype(np.float64)
    margin = share * (boxes[:, 2:] - boxes[:, :2])
    return np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1)


def _no_tracks(people: Poses) -> LinkState:
    none = people[np.zeros(0, dtype=np.int64)]
    integers = np.zeros(0, dtype=np.int64)
    return LinkState(none.boxes, none.keypoints, np.zeros((0, 2), dtype=np.float32), integers, integers)


def _take(state: LinkState, rows: NDArray[np.int64]) -> LinkState:
    return replace(
        state,
        boxes=state.boxes[rows],
        keypoints=state.keypoints[rows],
        velocities=state.velocities[rows],
        missed=state.missed[rows],
        ids=state.ids[rows],
    )


def _join(first: LinkState, second: LinkState, next_id: int) -> LinkState:
    return LinkState(
        np.concatenate([first.boxes, second.boxes]),
        np.concatenate([first.keypoints, second.keypoints]),
        np.concatenate([first.velocities, second.velocities]),
        np.concatenate([first.missed, second.missed]),
        np.concatenate([first.ids, second.ids]),
        next_id,
    )


def _velocities(state: LinkState, before: NDArray[np.int64], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pixels a frame [P, 2] of the tracks `before` that are now at `boxes`, smoothed over time."""
    moved = (boxes[:, :2] + boxes[:, 2:] - state.boxes[before, :2] - state.boxes[before, 2:]) / 2
    measured = moved / (state.missed[before, None] + 1)
    smoothed = _VELOCITY_MEMORY * state.velocities[before] + (1 - _VELOCITY_MEMORY) * measured
    return smoothed.astype(np.float32)
