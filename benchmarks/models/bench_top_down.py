"""A top-down model in the ways this package runs it, against the same network run plainly in eager float32.

Cropping and decoding, with the flip test, are given as a share of the network's time.

    python -m benchmarks.models.bench_top_down --model hrnet_w32 --batches 1 8 32 --json FILE
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.models.harness import Call, medians, options, show, threads_of, write
from pyposeext.models import create_model
from pyposeext.models.top_down import TopDownPose
from pyposeext.pipelines.acceleration import accelerated

FRAME = (1080, 1920)


def boxes_of(people: int) -> torch.Tensor:
    """People of 120 to 500 pixels in a full-HD frame."""
    generator = torch.Generator().manual_seed(0)
    height = 120 + 380 * torch.rand(people, generator=generator)
    width = height * (0.3 + 0.4 * torch.rand(people, generator=generator))
    corner = torch.rand(people, 2, generator=generator) * torch.tensor([1400.0, 560.0])
    return torch.cat([corner, corner + torch.stack([width, height], dim=1)], dim=1)


def ways(model: TopDownPose, device: torch.device, batch: torch.Tensor, compiled: bool) -> dict[str, Call]:
    """The network alone, on prepared crops."""
    calls: dict[str, Call] = {"eager float32": lambda: model(batch)}
    last = batch.to(memory_format=torch.channels_last)
    for precision in ("float32", "bfloat16"):
        given = last.to(getattr(torch, precision))
        for compile_it in (False, True) if compiled else (False,):
            network = accelerated(model, device, precision, compile_it)
            name = f"{precision}{' compiled' if compile_it else ''}"
            calls[name] = lambda network=network, given=given: network(given)
    return calls


def measure(model: TopDownPose, device: str, people: int, repeats: int, compiled: bool) -> list[dict[str, Any]]:
    """One row for each way of running the network, with the share of cropping and decoding."""
    place = torch.device(device)
    batch = torch.randn(people, 3, *model.input_size, device=place)
    torch._dynamo.reset()
    calls = ways(model, place, batch, compiled)
    frame = torch.randint(0, 256, (*FRAME, 3), dtype=torch.uint8, device=place)
    boxes = boxes_of(people).to(place)
    heatmaps = torch.rand(people, len(model.skeleton), *model.heatmap_size, device=place)
    mirrored = torch.rand_like(heatmaps)
    matrices = model.crops(frame, model.regions(boxes))[1]
    calls["crop"] = lambda: model.crops(frame, model.regions(boxes))
    calls["decode"] = lambda: model.decode(heatmaps, matrices, mirrored)
    found = medians(calls, device, repeats)
    around = found.pop("crop") + found.pop("decode")
    return [
        {
            "people": people,
            "way": name,
            "ms": time,
            "times faster": found["eager float32"] / time,
            # The flip test runs the network twice and crops once.
            "crop and decode ms": around,
            "share of the network, flip test": around / (2 * time),
            "without": around / time,
        }
        for name, time in found.items()
    ]


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--model", default="hrnet_w32")
    parser.add_argument("--input-size", type=int, nargs=2, default=(256, 192), help="height and width")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="people at once")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    given = parser.parse_args()
    model = create_model(given.model, input_size=tuple(given.input_size)).to(given.device)
    assert isinstance(model, TopDownPose)
    rows = []
    for threads in threads_of(given):
        torch.set_num_threads(threads)
        for people in given.batches:
            found = measure(model, given.device, people, given.repeats, not given.no_compile)
            rows += [{"threads": threads, **row} for row in found]
            show(rows[-len(found) :])
    write(given.json, f"top_down {given.model} {given.input_size[0]}x{given.input_size[1]}", given.device, rows)


if __name__ == "__main__":
    main()
