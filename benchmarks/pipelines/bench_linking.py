"""Linking people from frame to frame: milliseconds a frame on one thread.

python -m benchmarks.pipelines.bench_linking --json FILE
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

for _pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_pool] = "1"

import numpy as np  # noqa: E402

from benchmarks.ops.harness import machine  # noqa: E402
from pyposeext.io.atomic import write_bytes  # noqa: E402
from pyposeext.skeletons import COCO17  # noqa: E402
from pyposeext.structures import Poses  # noqa: E402
from pyposeext.trackers.linker import PRESETS, GraphLinker  # noqa: E402

_SIZE = (1920, 1080)


def crowd(people: int, frames: int, missed: float = 0.1, seed: int = 0) -> Iterator[Poses]:
    """People who walk through a full-HD image and are missed in a tenth of the frames."""
    rng = np.random.default_rng(seed)
    places = rng.uniform((0, 0), _SIZE, (people, 2))
    speeds = rng.normal(0, 4, (people, 2))
    sides = np.stack([rng.uniform(40, 80, people), rng.uniform(100, 200, people)], axis=1)
    inside = rng.uniform(0, 1, (people, 17, 2))
    for _ in range(frames):
        places = (places + speeds) % _SIZE
        seen = rng.permutation(people)[: round(people * (1 - missed))]
        corners = places[seen] + rng.normal(0, 2, (len(seen), 2))
        points = corners[:, None] + inside[seen] * sides[seen, None] + rng.normal(0, 2, (len(seen), 17, 2))
        keypoints = np.concatenate([points, rng.uniform(0.3, 1, (len(seen), 17, 1))], axis=2)
        boxes = np.concatenate([corners, corners + sides[seen]], axis=1)
        yield Poses(keypoints, boxes, rng.uniform(0.95, 1, len(seen)), COCO17)


def measure(preset: str, people: int, frames: int) -> dict[str, Any]:
    """Milliseconds a frame with that many people in view."""
    linker, state = GraphLinker(preset), None
    times = []
    for poses in crowd(people, frames):
        start = time.perf_counter()
        _, state = linker.link(poses, state, _SIZE)
        times.append(1000 * (time.perf_counter() - start))
    times = times[5:]
    return {
        "preset": preset,
        "people": people,
        "milliseconds": statistics.median(times),
        "milliseconds_95": float(np.percentile(times, 95)),
        "tracks": state.next_id if state else 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the linking of people from frame to frame.")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    rows = [measure(preset, people, options.frames) for preset in PRESETS for people in (2, 10, 50, 100)]
    print(f"{'preset':18}{'people':>8}{'ms median':>12}{'ms 95 %':>12}")
    for row in rows:
        print(f"{row['preset']:18}{row['people']:8}{row['milliseconds']:12.3f}{row['milliseconds_95']:12.3f}")
    if options.json:
        record = {"benchmark": "linking", "machine": machine("cpu"), "frames": options.frames, "rows": rows}
        write_bytes(options.json, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
