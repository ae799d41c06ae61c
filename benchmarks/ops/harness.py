"""Side-by-side measurements of one op: ours, the plain-PyTorch reference, the field's library and the physical floor.

A benchmark file lists its `Workload`s and calls `main`. All contestants of a workload alternate in one process, so that
a busy machine slows them alike; what counts is the ratio of their medians. The floor is what the machine needs at the
rates it reaches in the same process: copying past the caches, reading, multiplying.

    python -m benchmarks.ops.bench_roi_align --device cpu --json FILE
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
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

SECONDS_PER_CONTESTANT = 1.0  # a slow contestant is repeated less often, but at least twice
SHORT = 0.005  # seconds; so short a call is made once before it is timed: the other contestants left the core cold
# glibc hands large blocks back to the system, and the next result then starts with a page fault for each of its pages,
# which can take longer than the kernel. Kept, they cost nobody anything: neither ours nor the peers.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


@dataclass
class Workload:
    """One named case.

    Attributes:
        name: what is computed, with its sizes.
        make: device -> the arguments of the contestants.
        ours: the op; `reference` and `peer`, where given, take the same arguments.
        bytes: the fewest bytes that must move: every input element that counts read once, every output written once.
        operations: floating-point operations that no version can do without; 0 where moving bytes decides.
        reads_only: nothing of size is written, so that the floor follows from the rate of reading, not of copying.
        dtype: of the operations; the floor of 16-bit ones on a GPU follows from the rate of its matrix units.
        reference_repeats: how often the reference runs at most; it can be thousands of times slower.
    """

    name: str
    make: Callable[[str], tuple[Any, ...]]
    ours: Callable[..., Any]
    reference: Callable[..., Any] | None
    peer: Callable[..., Any] | None
    bytes: int
    operations: int = 0
    reads_only: bool = False
    dtype: torch.dtype = torch.float32
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


def gpu_rates() -> dict[str, float]:
    """The GPU's counterparts of `_C.machine_rate()`: a large copy, a large sum, large matrix products."""

    def best(call: Callable[[], Any]) -> float:
        call()
        return min(seconds(call, "cuda") for _ in range(9))

    source = torch.ones(2**30 // 4, device="cuda")
    target = torch.empty_like(source)
    matrices = {dtype: torch.randn(8192, 8192, device="cuda").to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    product = {dtype: best(lambda m=matrix: torch.mm(m, m)) for dtype, matrix in matrices.items()}
    return {
        "copy": 2 * source.nbytes / best(lambda: target.copy_(source)),
        "read": source.nbytes / best(lambda: torch.sum(source)),
        "multiply_add": 2 * 8192**3 / product[torch.float32],
        "multiply_add_16_bit": 2 * 8192**3 / product[torch.bfloat16],
    }


def machine_rates(device: str) -> dict[str, float]:
    """Bytes a second copied (read plus written) and read, float32 operations a second: what floors follow from."""
    return dict(_C.machine_rate()) if device == "cpu" else gpu_rates()


def floor_of(workload: Workload, rates: dict[str, float]) -> float:
    """Seconds that the workload needs at the machine's rates."""
    sixteen_bit = workload.dtype in (torch.float16, torch.bfloat16)
    operations = rates.get("multiply_add_16_bit" if sixteen_bit else "multiply_add", rates["multiply_add"])
    moving = workload.bytes / rates["read" if workload.reads_only else "copy"]
    return max(moving, workload.operations / operations)


def rewriting(tensor: Tensor) -> Callable[[], Any]:
    """A call that pushes the workload's inputs out of a GPU's cache between repeats; nothing on the CPU."""
    return (lambda: tensor.add_(1)) if tensor.is_cuda else (lambda: None)


def measure(workload: Workload, device: str, repeats: int, rates: dict[str, float]) -> dict[str, Any]:
    """Alternating repeats of every contestant of one workload. Times are in milliseconds."""
    arguments = workload.make(device)
    contestants = {"ours": workload.ours, "peer": workload.peer, "reference": workload.reference}
    calls = {name: function for name, function in contestants.items() if function is not None}
    times: dict[str, list[float]] = {name: [] for name in calls}
    flush = rewriting(torch.zeros(2**26 if device != "cpu" else 1, device=device))
    for repeat in range(repeats + 1):
        for name, function in calls.items():
            spent = sum(times[name])
            limit = workload.reference_repeats if name == "reference" else repeats
            if repeat > limit or (len(times[name]) >= 2 and spent > SECONDS_PER_CONTESTANT):
                continue
            if times[name] and times[name][-1] < SHORT:
                function(*arguments)
            flush()
            elapsed = seconds(lambda function=function: function(*arguments), device)
            if repeat > 0 or elapsed > 1:  # the first round warms up, which a slow contestant need not do
                times[name].append(elapsed)
    medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    floor = floor_of(workload, rates) * 1e3
    row: dict[str, Any] = {
        "workload": workload.name,
        "time": medians["ours"],
        "best time": min(times["ours"]) * 1e3,
        "GB/s": workload.bytes / medians["ours"] / 1e6,
        "floor": floor,
        "times floor": medians["ours"] / floor,
    }
    for name in ("peer", "reference"):
        if name in medians:
            row[f"{name} time"] = medians[name]
            row[f"times faster than {name}"] = medians[name] / medians["ours"]
    return row


COLUMNS = {
    "level": "level",
    "threads": "threads",
    "time": "ms",
    "best time": "best ms",
    "floor": "floor ms",
    "times floor": "x floor",
    "aim": "aim",
    "GB/s": "GB/s",
    "times faster than peer": "x peer",
    "times faster than reference": "x reference",
}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as people read them."""

    def cell(value: Any) -> str:
        if isinstance(value, str):
            return value
        return "-" if value is None or math.isnan(value) else f"{value:.4g}"

    width = max((len(row["workload"]) for row in rows), default=8)
    lines = [f"{'workload':<{width}}" + "".join(f"{head:>12}" for head in COLUMNS.values())]
    for row in rows:
        lines.append(f"{row['workload']:<{width}}" + "".join(f"{cell(row.get(column)):>12}" for column in COLUMNS))
    return "\n".join(lines)


def commit() -> str:
    """The commit that was measured; "+" marks changes that are not in it."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False).stdout

    changed = git("status", "--porcelain", "--", ":/csrc", ":/pyposeext", ":/benchmarks/ops").strip()
    return git("rev-parse", "--short", "HEAD").strip() + ("+" if changed else "")


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":")[1].strip() if names else processor
    facts = {"processor": processor, "processors": os.cpu_count(), "torch": torch.__version__}
    if device != "cpu":
        facts["gpu"] = torch.cuda.get_device_name()
    version = {"pyposeext": pyposeext.__version__, "commit": commit(), "date": date.today().isoformat()}
    return {**facts, **version, "build": _C.build_info()}


def measure_all(workloads: list[Workload], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each workload and thread count, at this process's instruction set."""
    counts = [int(count) for count in options.threads.split(",")] if options.device == "cpu" else [0]
    rows = []
    for threads in counts:
        if threads:
            torch.set_num_threads(threads)
        torch.manual_seed(0)
        rates = machine_rates(options.device)
        level = {"level": _C.build_info()["cpu_level"], "threads": threads} if threads else {}
        for workload in workloads:
            if threads != counts[0]:
                workload.reference = None  # slow, and not about threads
            if options.only in workload.name:
                rows.append({**level, **measure(workload, options.device, options.repeats, rates), "rates": rates})
    return rows


def measure_level(level: str, arguments: list[str]) -> list[dict[str, Any]]:
    """The rows of the same benchmark in a process of its own that is held to a lower instruction set, ours alone."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", sys.modules["__main__"].__spec__.name, *arguments]
        command += ["--alone", "--levels", level, "--json", str(file)]
        subprocess.run(command, env={**os.environ, "PYPOSEEXT_CPU_LEVEL": level}, check=True, stdout=subprocess.DEVNULL)
        return json.loads(file.read_text())["rows"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures an op against its reference, a peer and the floor.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", default="1,2", help="thread counts on the CPU, with commas")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--only", default="", help="measure only workloads whose name holds this text")
    parser.add_argument("--levels", default="", help="instruction sets, with commas; without it the best and avx2")
    parser.add_argument("--no-reference", action="store_true", help="leave the slow references out")
    parser.add_argument("--alone", action="store_true", help="leave references and peers out")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def main(
    op: str, workloads: list[Workload], aims: dict[str, str] | None = None, headlines: dict[str, str] | None = None
) -> None:
    """The command line every benchmark of an op has.

    Both dictionaries go by the names of workloads. `aims` says what is meant to be reached, for the table ("4.5 x" the
    floor, or "40 ms"); `headlines` gives a label to those that stand for the op in the chart.
    """
    options = parse()
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):  # read once, when a process starts
        command = [sys.executable, "-m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **KEEP_MEMORY})
    notes = {"aim": aims or {}, "headline": headlines or {}}
    unknown = {name for names in notes.values() for name in names} - {workload.name for workload in workloads}
    if unknown:
        raise ValueError(f"aims and headlines name workloads that do not exist: {', '.join(sorted(unknown))}")
    for workload in workloads:
        workload.reference = None if options.no_reference or options.alone else workload.reference
        workload.peer = None if options.alone else workload.peer
    here = _C.build_info()["cpu_level"]
    others = options.levels.split(",") if options.levels else [here, "avx2"] if here == "avx512" else [here]
    rows = measure_all(workloads, options) if here in others or options.device != "cpu" else []
    if options.device == "cpu":
        shared = ["--threads", options.threads, "--repeats", str(options.repeats), "--only", options.only]
        for level in dict.fromkeys(others):
            rows += measure_level(level, shared) if level != here else []
    for row in rows:
        row.update({key: names[row["workload"]] for key, names in notes.items() if row["workload"] in names})
    print(f"{op}, {options.device}")
    print(table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        units = {"time": "ms", "floor": "ms", "rates": "bytes or operations a second"}
        facts = {"op": op, "device": options.device, "machine": machine(options.device), "units": units, "rows": rows}
        temporary = options.json.with_suffix(".part")
        temporary.write_text(json.dumps(facts, indent=1) + "\n")
        temporary.replace(options.json)
