"""The training loop: plain, resumable to the bit, and the same on one process or under torchrun."""

from __future__ import annotations

import ctypes
import json
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pyposeext.errors import InputError
from pyposeext.io.atomic import write_bytes
from pyposeext.models.weights import state_dict_differences
from pyposeext.training.average import MovingAverage
from pyposeext.training.data import Batch, Images


@dataclass(frozen=True)
class Settings:
    """How to train. Exactly one of `steps` and `minutes` says when it ends.

    Attributes:
        steps: optimizer steps.
        minutes: wall time of training; a resumed run goes on with what was left.
        optimizer: "adamw"; "adam", as it was published; or "sgd" with momentum.
        learning_rate: the top of the schedule, for new layers.
        trunk_rate: the trunk's learning rate, as a share of that.
        weight_decay: "adamw" leaves out parameters of fewer than two dimensions.
        momentum: of "sgd".
        schedule: "one_cycle", a rise over `warmup` and half a cosine down to a hundredth; or "steps", the same rate but
            for `warmup_steps` and a tenth of it after each milestone.
        warmup: share of the run over which the rate of "one_cycle" rises.
        warmup_steps: over which the rate of "steps" rises in a straight line from a thousandth.
        milestones: shares of the run.
        accumulate: batches per optimizer step, whose gradients are averaged.
        clip: the largest gradient norm; None for no limit.
        average_decay: of the exponential moving average of the weights; 0 for none, the weights as they are.
        precision: of the forward pass; float16 needs a GPU.
        seed: decides data, initialisation of new layers and sampling.
        log_every: steps between lines of the log.
        checkpoint_minutes: time between checkpoints.
    """

    steps: int | None = None
    minutes: float | None = None
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    trunk_rate: float = 0.3
    weight_decay: float = 0.02
    momentum: float = 0.9
    schedule: Literal["one_cycle", "steps"] = "one_cycle"
    warmup: float = 0.05
    warmup_steps: int = 0
    milestones: tuple[float, ...] = ()
    accumulate: int = 1
    clip: float | None = 5.0
    average_decay: float = 0.998
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0
    log_every: int = 20
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise InputError(f"exactly one of steps and minutes must be given, got {self.steps} and {self.minutes}")
        for name in ("steps", "minutes", "learning_rate", "clip", "accumulate", "log_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be positive, got {value}")
        for name in ("steps", "accumulate", "log_every"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                raise InputError(f"{name} must be a whole number, got {value!r}")
        for name in ("trunk_rate", "weight_decay", "momentum", "warmup_steps", "checkpoint_minutes"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("average_decay", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be from 0 to below 1, got {getattr(self, name)}")
        for name, choices in (
            ("optimizer", ("adamw", "adam", "sgd")),
            ("schedule", ("one_cycle", "steps")),
            ("precision", ("float32", "bfloat16", "float16")),
        ):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not all(0 < share < 1 for share in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise InputError(f"milestones must be rising shares of the run between 0 and 1, got {self.milestones}")


@dataclass(frozen=True)
class Progress:
    """One line of the log: where training stands, all processes together. `losses` are means since the last line."""

    step: int
    fraction: float
    seconds: float
    samples_per_second: float
    learning_rate: float
    losses: dict[str, float]


@dataclass
class _Interval:
    """What came together since the last line of the log; checkpoints hold it, so that a resumed run logs the same."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0

    def add(self, losses: dict[str, Tensor], samples: int, seconds: float) -> None:
        """One more step."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.steps, self.samples, self.seconds = self.steps + 1, self.samples + samples, self.seconds + seconds

    def means(self) -> dict[str, float]:
        """The losses' means over the steps."""
        return {name: float(value) / self.steps for name, value in self.sums.items()}


class Trainer:
    """Trains a model whose forward pass gives a dictionary of losses.

    The model is called as ``model(images, targets)`` with float32 [B, 3, H, W], or a list of [3, H, W] where images
    differ in size, and a list of target dictionaries. Under torchrun every process has its own batches and gradients
    are averaged (DistributedDataParallel).
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Settings,
        directory: str | Path,
        trunk_prefix: str = "",
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepares a run in `directory`, or goes on with the one found there.

        Args:
            model: on the device it is to be trained on.
            settings: must equal those of the run found in `directory`, except for its length and intervals.
            directory: gets ``log.jsonl`` and ``checkpoint.pt``.
            trunk_prefix: parameters whose names start with it get `settings.trunk_rate`.
            inputs: what else decides the run, by name, in JSON's types: its data, say. They must equal those of the run
                found in `directory`, too.

        Raises:
            InputError: the run found in `directory` is one of other settings, of other inputs or of another model.
        """
        raise_memory_thresholds()
        self.model = model
        self.settings = settings
        self.device = next(model.parameters()).device
        if settings.precision == "float16" and self.device.type != "cuda":
            raise InputError(f"precision float16 needs a GPU, the model is on {self.device}")
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.rank, self.processes = 0, 1
        if distributed.is_initialized():
            self.rank, self.processes = distributed.get_rank(), distributed.get_world_size()
        self.optimizer = _optimizer(model, settings, trunk_prefix)
        self.average = MovingAverage(model, settings.average_decay)
        self.step = 0
        self.seconds = 0.0
        # Tuples become lists, as they do in a file of JSON.
        self._inputs: dict[str, Any] = json.loads(json.dumps(dict(inputs or {})))
        self._interval = _Interval()
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "float16")
        self._checkpoint = self.directory / "checkpoint.pt"
        if self._checkpoint.exists():
            self._load()
        self._called = DistributedDataParallel(model) if distributed.is_initialized() else model

    @property
    def fraction(self) -> float:
        """How much of the run is done, 0 to 1."""
        if self.settings.steps is not None:
            return min(self.step / self.settings.steps, 1.0)
        assert self.settings.minutes is not None
        return min(self.seconds / (60 * self.settings.minutes), 1.0)

    @property
    def next_batch(self) -> int:
        """The number of the batch that the next step begins with."""
        return self.step * self.settings.accumulate

    def fit(self, data: Iterator[Batch], on_progress: Callable[[Progress], None] | None = None) -> None:
        """Trains to the end of the run.

        Args:
            data: batches from number `self.next_batch` on.
            on_progress: called with every line of the log, by the first process only.

        Raises:
            KeyboardInterrupt: on Ctrl-C, once the step under way is done and the checkpoint written.
        """
        with _HeldInterrupt() as interrupt:
            self._fit(data, on_progress, interrupt)

    def _fit(
        self, data: Iterator[Batch], on_progress: Callable[[Progress], None] | None, interrupt: _HeldInterrupt
    ) -> None:
        self.model.train()
        self._drop_later_lines()
        last = checkpoint = time.monotonic()
        while self.fraction < 1.0:
            losses, samples = self._advance(data)
            now = time.monotonic()
            self._interval.add(losses, samples, now - last)
            (self.seconds, stopped), last = self._agreed(self.seconds + now - last, interrupt.asked), now
            if self.step % self.settings.log_every == 0 or self.fraction >= 1.0:
                means = self._log(on_progress)
                if not all(math.isfinite(value) for value in means.values()):
                    raise FloatingPointError(f"a loss is not finite at step {self.step}: {means}")
            if stopped:
                self.save()
                raise KeyboardInterrupt
            if now - checkpoint > 60 * self.settings.checkpoint_minutes:
                self.save()
                checkpoint = now
        self.save()

    def learning_rate(self) -> float:
        """That of new layers in the next step; see `Settings.schedule`."""
        settings = self.settings
        if settings.schedule == "steps":
            rate = settings.learning_rate * 0.1 ** sum(share <= self.fraction for share in settings.milestones)
            risen = min(self.step / settings.warmup_steps, 1.0) if settings.warmup_steps else 1.0
            return rate * (0.001 * (1 - risen) + risen)
        if self.fraction < settings.warmup:
            return settings.learning_rate * max(self.fraction / settings.warmup, 0.02)
        position = (self.fraction - settings.warmup) / (1 - settings.warmup)
        return settings.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * position)) / 2)

    def save(self) -> None:
        """Writes the checkpoint (first process only), to a temporary name first."""
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "scaler": self._scaler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "settings": asdict(self.settings),
            "inputs": self._inputs,
            "interval": asdict(self._interval),
        }
        temporary = self._checkpoint.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(self._checkpoint)

    def _load(self) -> None:
        state = _read_checkpoint(self._checkpoint, self.device)
        free = ("steps", "minutes", "log_every", "checkpoint_minutes")
        # Runs from before a setting existed were trained with its default; older ones than the inputs do not tell them.
        stored = {each.name: state["settings"].get(each.name, each.default) for each in fields(Settings)}
        asked = {name: value for name, value in asdict(self.settings).items() if name not in free}
        stored, asked = {**stored, **state.get("inputs", {})}, {**asked, **self._inputs}
        for name, value in asked.items():
            if name in stored and stored[name] != value:
                raise InputError(
                    f"{self._checkpoint} was trained with {name} {stored[name]}, asked for is {value}: "
                    "give the same settings or another output folder"
                )
        self._load_model(state)
        self.average.load_state_dict(state["average"])
        self._scaler.load_state_dict(state["scaler"])
        self.step, self.seconds = state["step"], state["seconds"]
        self._interval = _Interval(**state.get("interval", {}))

    def _load_model(self, state: dict[str, Any]) -> None:
        """The weights and what the optimizer knows of them, which must be this model's."""
        wrong = state_dict_differences(self.model, state["model"])
        if not wrong:
            self.model.load_state_dict(state["model"])
            try:
                self.optimizer.load_state_dict(state["optimizer"])
            except ValueError:
                wrong = ["other parameters of it were trained"]
        if wrong:
            raise InputError(
                f"{self._checkpoint} is of a run of another model: {wrong[0]}; "
                "give the same model and arguments or another output folder"
            )

    def _advance(self, data: Iterator[Batch]) -> tuple[dict[str, Tensor], int]:
        """One optimizer step: its losses, in the mean over its batches, and how many images it saw."""
        settings = self.settings
        # The samplers inside the model draw from torch's generator: a seed per step makes a resumed run the same.
        torch.manual_seed((settings.seed * 1_000_003 + self.step) * 4096 + self.rank)
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        samples = 0
        for _ in range(settings.accumulate):
            images, targets = next(data)
            for name, value in self._backward(images, targets).items():
                sums[name] = sums[name] + value if name in sums else value
            samples += len(images)
        self._scaler.unscale_(self.optimizer)
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.step += 1
        self.average.update(self.model, self.step)
        return sums, samples

    def _backward(self, images: Images, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Adds a batch's gradients; its share in the losses of the step."""
        settings = self.settings
        on_device = self._moved(images) if isinstance(images, Tensor) else [self._moved(image) for image in images]
        wanted = [{name: self._moved(value) for name, value in target.items()} for target in targets]
        kind = torch.float16 if settings.precision == "float16" else torch.bfloat16
        with torch.autocast(self.device.type, dtype=kind, enabled=settings.precision != "float32"):
            losses: dict[str, Tensor] = self._called(on_device, wanted)
            total = torch.stack([value.float() for value in losses.values()]).sum()
        self._scaler.scale(total / settings.accumulate).backward()
        return {name: value.detach() / settings.accumulate for name, value in {**losses, "total": total}.items()}

    def _agreed(self, seconds: float, stopped: bool) -> tuple[float, bool]:
        """The first process's clock and wish to stop, so that all stop at the same step."""
        if not distributed.is_initialized():
            return seconds, stopped
        first = torch.tensor([seconds, float(stopped)], dtype=torch.float64, device=self.device)
        distributed.broadcast(first, 0)
        return float(first[0]), bool(first[1])

    def _moved(self, value: Tensor) -> Tensor:
        """On the model's device; from pinned memory the copy goes on beside the next one."""
        return value.to(self.device, non_blocking=True)

    def _log(self, on_progress: Callable[[Progress], None] | None) -> dict[str, float]:
        """Ends the interval with a line of the log (first process only); gives this process's mean losses."""
        ended, self._interval = self._interval, _Interval()
        means = ended.means()
        if self.rank:
            return means
        line = Progress(
            step=self.step,
            fraction=self.fraction,
            seconds=self.seconds,
            samples_per_second=self.processes * ended.samples / max(ended.seconds, 1e-9),
            learning_rate=self.learning_rate(),
            losses=means,
        )
        with (self.directory / "log.jsonl").open("a") as file:
            file.write(json.dumps(asdict(line)) + "\n")
        if on_progress is not None:
            on_progress(line)
        return means

    def _drop_later_lines(self) -> None:
        """Takes lines of steps that the checkpoint does not hold out of the log: they are done, and logged, again."""
        path = self.directory / "log.jsonl"
        if self.rank or not path.exists():
            return
        text = path.read_text()
        kept = "".join(f"{line}\n" for line in text.splitlines() if _step_of(line) <= self.step)
        if kept != text:
            write_bytes(path, kept.encode())


def _step_of(line: str) -> float:
    """The step of a line of the log; one that was cut short belongs to none."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        return math.inf


class _HeldInterrupt:
    """Holds Ctrl-C back while a step is under way: no checkpoint may hold half of one. A second Ctrl-C is not held."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> _HeldInterrupt:
        # Only the main thread may set handlers, and only there Ctrl-C arrives.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._hold)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _optimizer(model: nn.Module, settings: Settings, trunk_prefix: str) -> torch.optim.Optimizer:
    groups = _groups(model, settings, trunk_prefix)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum)
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups)
    return torch.optim.AdamW(groups, betas=(0.9, 0.99))


def _groups(model: nn.Module, settings: Settings, trunk_prefix: str) -> list[dict[str, Any]]:
    """Parameter groups: trunk or new layers, with weight decay or without."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trunk = bool(trunk_prefix) and name.startswith(trunk_prefix)
            decays = parameter.dim() > 1 or settings.optimizer != "adamw"
            groups.setdefault((trunk, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": settings.weight_decay if decays else 0.0,
            "share": settings.trunk_rate if trunk else 1.0,
            "lr": settings.learning_rate,
        }
        for (trunk, decays), parameters in groups.items()
    ]


def read_average(path: str | Path) -> dict[str, Tensor]:
    """The averaged weights in the checkpoint of a run.

    Raises:
        InputError: no such file, or not the checkpoint of a run.
    """
    average: dict[str, Tensor] = _read_checkpoint(path, torch.device("cpu"))["average"]
    return average


def _read_checkpoint(path: str | Path, device: torch.device) -> dict[str, Any]:
    what = f"{path} is not the checkpoint.pt of a training run"
    damage = (OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise InputError(f"{what}: {error.strerror}") from error
    except (*damage, pickle.UnpicklingError) as error:  # what PyTorch's reader says of a file that it cannot follow
        raise InputError(f"{what}: damaged, cut short or of another kind") from error
    if not isinstance(state, dict) or not {"model", "average", "settings"} <= state.keys():
        raise InputError(f"{what}: its weights or settings are missing")
    return state


def start_distributed(device: torch.device) -> tuple[int, int]:
    """Joins the process group torchrun set up; returns rank and number of processes (0 and 1 without torchrun).

    Args:
        device: where this process trains, chosen before: NCCL takes the current GPU, and only GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return distributed.get_rank(), distributed.get_world_size()


def end_distributed() -> None:
    """Leaves the process group, where there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def raise_memory_thresholds() -> None:
    """Keeps glibc from giving large blocks back to the kernel after every step, which costs a CPU run much time."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library: it has its own rules
    # glibc refuses a larger mmap threshold than 32 MiB; with no blocks mapped at all, none is given back either.
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**25)
    mallopt(mmap_max, 0)
