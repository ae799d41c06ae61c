"""Peak memory of tracking a short video and one ten times as long: what is written out must not be kept.

    python -m benchmarks.pipelines.bench_memory --frames 300 --json FILE

The people are made up, so that reading, linking, drawing and writing are measured and not a model.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import av
import numpy as np

from pyposeext.pipelines.inputs import InputImage
from pyposeext.pipelines.video import VideoPoses
from pyposeext.skeletons import COCO17
from pyposeext.structures import Poses
from pyposeext.trackers.linker import GraphLinker

HEIGHT, WIDTH, PEOPLE = 240, 320, 10


def write_video(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height = WIDTH, HEIGHT
        for number in range(frames):
            image = np.full((HEIGHT, WIDTH, 3), number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def people(frames: Sequence[InputImage]) -> list[Poses]:
    corner = np.stack([np.arange(PEOPLE) * 30.0, np.arange(PEOPLE) * 20.0], axis=1)
    joints = corner[:, None] + np.random.default_rng(0).uniform(0, 25, (1, 17, 2))
    keypoints = np.concatenate([joints, np.ones((PEOPLE, 17, 1))], axis=2)
    return [Poses(keypoints, np.concatenate([corner, corner + 25], axis=1), np.ones(PEOPLE), COCO17) for _ in frames]


def track(path: Path, directory: Path, result: multiprocessing.Queue) -> None:
    VideoPoses(path, people, COCO17, linker=GraphLinker()).save(directory)
    result.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def peak_megabytes(frames: int) -> float:
    """In a process of its own, so that the first run's peak does not hide the second's."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, frames)
        result = context.Queue()
        process = context.Process(target=track, args=(path, Path(folder) / "out", result))
        process.start()
        peak = result.get()
        process.join()
        return peak


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of tracking, for a video and one ten times as long.")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    peaks = {str(frames): peak_megabytes(frames) for frames in (options.frames, 10 * options.frames)}
    for frames, peak in peaks.items():
        print(f"{frames} frames with {PEOPLE} people: peak memory {peak:.0f} MB")
    if options.json:
        options.json.write_text(
            json.dumps({"peak_megabytes": peaks, "date": date.today().isoformat()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
