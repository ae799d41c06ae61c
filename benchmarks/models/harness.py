"""Contestants of one workload that alternate in one process, so that a busy machine slows them alike."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.ops.harness import machine, seconds
from pyposeext.io.atomic import write_bytes

Call = Callable[[], Any]


def medians(calls: dict[str, Call], device: str, repeats: int) -> dict[str, float]:
    """Milliseconds of each call: the median of `repeats` rounds after two that warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for repeat in range(repeats + 2):
            for name, call in calls.items():
                elapsed = seconds(call, device)
                if repeat >= 2:
                    times[name].append(1000 * elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def options(description: str) -> argparse.ArgumentParser:
    """The arguments that every benchmark of models has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads, one run each")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def threads_of(given: argparse.Namespace) -> list[int]:
    """The thread counts to run with; a GPU's work depends on none."""
    return sorted({min(count, os.cpu_count() or 1) for count in given.threads}) if given.device == "cpu" else [1]


def show(rows: list[dict[str, Any]]) -> None:
    """The rows as a table, a column for each key of the first."""
    columns = list(rows[0])
    cells = [[f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in columns] for row in rows]
    widths = [max(len(column), *(len(line[index]) for line in cells)) for index, column in enumerate(columns)]
    for line in [columns, *cells]:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)))


def write(path: Path | None, benchmark: str, device: str, rows: list[dict[str, Any]]) -> None:
    """The rows and what they were measured on, as JSON."""
    if path is not None:
        record = {"benchmark": benchmark, "machine": machine(device), "rows": rows}
        write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())
