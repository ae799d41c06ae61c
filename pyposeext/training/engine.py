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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pyposeext.errors import InputError
from pyposeext.training.average import MovingAverage
from pyposeext.training.data import Batch


@dataclass(frozen=True)
class Settings:
    """How to train. Exactly one of `steps` and `minutes` says when it ends.

    Attributes:
        steps: optimizer steps.
        minutes: wall time of training; a resumed run goes on with what was left.
        learning_rate: the top of the one-cycle schedule, for new layers.
        trunk_rate: the trunk's learning rate, as a share of that.
        weight_decay: AdamW's, on weights of two dimensions or more.
        warmup: share of the run over which the learning rate rises.
        clip: the largest gradient norm.
        average_decay: of the exponential moving average of the weights.
        precision: of the forward pass; float16 needs a GPU.
        seed: decides data, initialisation of new layers and sampling.
        log_every: steps between lines of the log.
        checkpoint_minutes: time between checkpoints.
    """

    steps: int | None = None
    minutes: float | None = None
    learning_rate: float = 1e-3
    trunk_rate: float = 0.3
    weight_decay: float = 0.02
    warmup: float = 0.05
    clip: float = 5.0
    average_decay: float = 0.998
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0
    log_every: int = 20
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise InputError(f"exactly one of steps and minutes must be given, got {self.steps} and {self.minutes}")
        for name in ("steps", "minutes", "learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be positive, got {value}")


@dataclass(frozen=True)
class Progress:
    """One line of the log: where training stands, all processes together. `losses` are means since the last line."""

    step: int
    fraction: float
    seconds: float
    samples_per_second: float
    learning_rate: float
    losses: dict[str, float]


class Trainer:
    """Trains a model whose forward pass gives a dictionary of losses.

    The model is called as ``model(images, targets)`` with a list of float32 [3, H, W] and a list of target
    dictionaries. Under torchrun every process has its own batches and gradients are averaged (DistributedDataParallel).
    """

    def __init__(self, model: nn.Module, settings: Settings, directory: str | Path, trunk_prefix: str = "") -> None:
        """Prepares a run in `directory`, or goes on with the one found there.

        Args:
            model: on the device it is to be trained on.
            settings: must equal those of the run found in `directory`, except for its length and intervals.
            directory: gets ``log.jsonl`` and ``checkpoint.pt``.
            trunk_prefix: parameters whose names start with it get `settings.trunk_rate`.
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
        self.optimizer = torch.optim.AdamW(_groups(model, settings, trunk_prefix), betas=(0.9, 0.99))
        self.average = MovingAverage(model, settings.average_decay)
        self.step = 0
        self.seconds = 0.0
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

    def fit(self, data: Iterator[Batch], on_progress: Callable[[Progress], None] | None = None) -> None:
        """Trains to the end of the run.

        Args:
            data: batches from number `self.step` on.
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
        sums: dict[str, Tensor] = {}
        counted = samples = 0
        last = mark = checkpoint = time.monotonic()
        while self.fraction < 1.0:
            images, targets = next(data)
            losses = self._advance(images, targets)
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.detach()
            counted, samples = counted + 1, samples + len(images)
            now = time.monotonic()
            (self.seconds, stopped), last = self._agreed(self.seconds + now - last, interrupt.asked), now
            if self.step % self.settings.log_every == 0 or self.fraction >= 1.0:
                means = {name: float(value) / counted for name, value in sums.items()}
                line = Progress(
                    step=self.step,
                    fraction=self.fraction,
                    seconds=self.seconds,
                    samples_per_second=self.processes * samples / max(now - mark, 1e-9),
                    learning_rate=self.learning_rate(),
                    losses=means,
                )
                self._log(line, on_progress)
                sums, counted, samples, mark = {}, 0, 0, now
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
        """One cycle: a straight rise over the warm-up, then half a cosine down to a hundredth."""
        settings = self.settings
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
        }
        temporary = self._checkpoint.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(self._checkpoint)

    def _load(self) -> None:
        state = _read_checkpoint(self._checkpoint, self.device)
        free = ("steps", "minutes", "log_every", "checkpoint_minutes")
        for name, value in asdict(self.settings).items():
            if name not in free and state["settings"].get(name) != value:
                raise InputError(
                    f"{self._checkpoint} was trained with {name} {state['settings'].get(name)}, asked for is {value}: "
                    "give the same settings or another output folder"
                )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self._scaler.load_state_dict(state["scaler"])
        self.step, self.seconds = state["step"], state["seconds"]

    def _advance(self, images: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One optimizer step."""
        # The samplers inside the model draw from torch's generator: a seed per step makes a resumed run the same.
        torch.manual_seed((self.settings.seed * 1_000_003 + self.step) * 4096 + self.rank)
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        on_device = [image.to(self.device, non_blocking=True) for image in images]
        wanted = [{name: value.to(self.device) for name, value in target.items()} for target in targets]
        kind = torch.float16 if self.settings.precision == "float16" else torch.bfloat16
        with torch.autocast(self.device.type, dtype=kind, enabled=self.settings.precision != "float32"):
            losses: dict[str, Tensor] = self._called(on_device, wanted)
            total = torch.stack([value.float() for value in losses.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(total).backward()
        self._scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.step += 1
        self.average.update(self.model, self.step)
        return {**losses, "total": total}

    def _agreed(self, seconds: float, stopped: bool) -> tuple[float, bool]:
        """The first process's clock and wish to stop, so that all stop at the same step."""
        if not distributed.is_initialized():
            return seconds, stopped
        first = torch.tensor([seconds, float(stopped)], dtype=torch.float64, device=self.device)
        distributed.broadcast(first, 0)
        return float(first[0]), bool(first[1])

    def _log(self, line: Progress, on_progress: Callable[[Progress], None] | None) -> None:
        if self.rank:
            return
        with (self.directory / "log.jsonl").open("a") as file:
            file.write(json.dumps(asdict(line)) + "\n")
        if on_progress is not None:
            on_progress(line)


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


def _groups(model: nn.Module, settings: Settings, trunk_prefix: str) -> list[dict[str, Any]]:
    """Parameter groups: trunk or new layers, with weight decay (two dimensions or more) or without."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trunk = bool(trunk_prefix) and name.startswith(trunk_prefix)
            groups.setdefault((trunk, parameter.dim() > 1), []).append(parameter)
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
