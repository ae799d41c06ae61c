"""Side-by-side measurements of one op: ours, the plain-PyTorch reference, the field's library and the physical floor.

A benchmark file lists its `Workload`s and calls `main`. All contestants of a workload alternate in one process, so that
a busy machine slows them alike; what counts is the ratio of their medians.

    python -m benchmarks.ops.bench_roi_align --device cpu --json FILE
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyposeext
from pyposeext import _C


@dataclass
class Workload:
    """One named case.

    Attributes:
        name: what is computed, with its sizes.
        make: device -> the arguments of the contestants.
        ours: the op; `reference` and `peer`, where given, take the same arguments.
        bytes: the fewest bytes that must move: every input element that counts read once, every output written once.
        operations: floating-point operations that no version can do without; 0 where moving bytes decides.
        reference_repeats: how often the reference runs; it can be thousands of times slower.
    """

    name: str
    make: Callable[[str], tuple[Any, ...]]
    ours: Callable[..., Any]
    reference: Callable[..., Any] | None
    peer: Callable[..., Any] | None
    bytes: int
    operations: int = 0
    reference_repeats: int = 3


def peer_of(module: str, attribute: str) -> Callable[..., Any] | None:
    """A function of an optional library, or None where it is not installed or does not load."""
    try:
        found: Any = __import__(module, fromlist=[attribute])
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except Exception:
        return None


def seconds(call: Callable[[], Any], device: str) -> float:
    """One timed call: events on a GPU, the clock elsewhere."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def median_seconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    call()
    return statistics.median(seconds(call, device) for _ in range(repeats))


def machine_rates(device: str) -> dict[str, float]:
    """Bytes a second of a large copy (read plus written) and operations a second of a large float32 matrix product."""
    source = torch.ones((64 if device == "cpu" else 1024) * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    side = 1024 if device == "cpu" else 8192
    matrix = torch.randn(side, side, device=device)
    copy = median_seconds(lambda: target.copy_(source), device, 9)
    product = median_seconds(lambda: torch.mm(matrix, matrix, out=torch.empty_like(matrix)), device, 9)
    return {
        "copy_bytes_per_second": 2 * source.numel() * 4 / copy,
        "operations_per_second": 2 * side**3 / product,
    }


def rewriting(tensor: Tensor) -> Callable[[], Any]:
    """A call that pushes the workload's inputs out of a GPU's cache between repeats; nothing on the CPU."""
    return (lambda: tensor.add_(1)) if tensor.is_cuda else (lambda: None)


def measure(workload: Workload, device: str, repeats: int, rates: dict[str, float]) -> dict[str, Any]:
    """Alternating repeats of every contestant of one workload."""
    arguments = workload.make(device)
    contestants = {"ours": workload.ours, "peer": workload.peer, "reference": workload.reference}
    calls = {name: function for name, function in contestants.items() if function is not None}
    times: dict[str, list[float]] = {name: [] for name in calls}
    flush = rewriting(torch.zeros(2**26 if device != "cpu" else 1, device=device))
    for repeat in range(repeats + 1):
        for name, function in calls.items():
            if name == "reference" and repeat > workload.reference_repeats:
                continue
            flush()
            elapsed = seconds(lambda function=function: function(*arguments), device)
            if repeat > 0:  # the first round warms up
                times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    floor = max(workload.bytes / rates["copy_bytes_per_second"], workload.operations / rates["operations_per_second"])
    row: dict[str, Any] = {
        "workload": workload.name,
        "milliseconds": medians["ours"] * 1e3,
        "best_milliseconds": min(times["ours"]) * 1e3,
        "gigabytes_per_second": workload.bytes / medians["ours"] / 1e9,
        "floor_milliseconds": floor * 1e3,
        "times_floor": medians["ours"] / floor,
    }
    for name in ("peer", "reference"):
        if name in medians:
            row[f"{name}_milliseconds"] = medians[name] * 1e3
            row[f"times_faster_than_{name}"] = medians[name] / medians["ours"]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as people read them."""
    columns = ["threads", "milliseconds", "floor_milliseconds", "times_floor", "gigabytes_per_second"]
    columns += ["times_faster_than_peer", "times_faster_than_reference"]
    heads = ["threads", "ms", "floor ms", "x floor", "GB/s", "x peer", "x reference"]
    width = max(len(row["workload"]) for row in rows)
    lines = [f"{'workload':<{width}}" + "".join(f"{head:>13}" for head in heads)]
    for row in rows:
        values = [row.get(column, math.nan) for column in columns]
        cells = ("-" if math.isnan(value) else f"{value:.4g}" for value in values)
        lines.append(f"{row['workload']:<{width}}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":")[1].strip() if names else processor
    facts = {"processor": processor, "torch": torch.__version__, "pyposeext": pyposeext.__version__}
    if device != "cpu":
        facts["gpu"] = torch.cuda.get_device_name()
    return {**facts, "date": date.today().isoformat(), "build": _C.build_info()}


def main(op: str, workloads: list[Workload]) -> None:
    """The command line every benchmark of an op has."""
    parser = argparse.ArgumentParser(description=f"Measures {op} against its reference, a peer and the floor.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", default="1,2", help="thread counts on the CPU, with commas")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--only", default="", help="measure only workloads whose name holds this text")
    parser.add_argument("--no-reference", action="store_true", help="leave the slow references out")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    counts = [int(count) for count in options.threads.split(",")] if options.device == "cpu" else [0]
    rows = []
    torch.manual_seed(0)
    for threads in counts:
        if threads:
            torch.set_num_threads(threads)
        rates = machine_rates(options.device)
        for workload in workloads:
            if options.no_reference:
                workload.reference = None
            if options.only in workload.name:
                rows.append({"threads": threads, **measure(workload, options.device, options.repeats, rates), **rates})
    print(table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            {"op": op, "device": options.device, "machine": machine(options.device), "rows": rows}, indent=1
        )
        temporary = options.json.with_suffix(".part")
        temporary.write_text(text + "\n")
        temporary.replace(options.json)
