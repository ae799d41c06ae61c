"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro

from pyposeext.pipelines.settings import DrawingSettings, EstimatorSettings

if TYPE_CHECKING:
    from pyposeext.pipelines.estimator import Estimator

Arguments = TypeVar("Arguments")
ProgressKind = Literal["bar", "json", "none"]
OutputOption = tyro.conf.arg(aliases=["-o"], metavar="DIR")
FormatsOption = tyro.conf.arg(aliases=["--save"])


@dataclass(frozen=True)
class ModelOptions:
    """Which model runs, and where.

    Attributes:
        model: a model's name, or a weight file, which names its model.
        weights: a weight file, or the name of shipped or fetched weights.
        detector: what finds the boxes of people: a model of boxes with shipped weights, NAME:WEIGHTS, a weight file, a
            file of detections (.json) or an ONNX graph (.onnx). None: the model itself, or "default" for a top-down
            model.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ...
        threads: CPU threads; None leaves PyTorch's choice.
    """

    model: str = "default"
    weights: str | None = None
    detector: str | None = None
    device: str = "auto"
    threads: int | None = None

    def load(self, settings: EstimatorSettings) -> Estimator:
        """The estimator these options describe."""
        from pyposeext.pipelines.loading import load

        return load(
            self.model,
            self.device,
            weights=self.weights,
            threads=self.threads,
            settings=settings,
            detector=self.detector,
        )


@dataclass(frozen=True)
class CommonOptions:
    """Options of every verb that finds people.

    Attributes:
        start: seconds after the first frame at which to begin.
        max_frames: how many frames at most.
        progress: a bar, JSON lines or nothing, on standard error.
        run: the model.
        estimator: how people are found in an image.
        drawing: what overlays show.
    """

    start: float = 0.0
    max_frames: int | None = None
    progress: ProgressKind = "bar"
    run: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    estimator: EstimatorSettings = field(default_factory=EstimatorSettings)
    drawing: DrawingSettings = field(default_factory=DrawingSettings)


def parse(kind: type[Arguments], verb: str, arguments: Sequence[str], default: Arguments | None = None) -> Arguments:
    """The arguments of a verb; tyro prints help and wrong usage, and exits with 0 or 2."""
    if default is None:
        return tyro.cli(kind, prog=f"pyposeext {verb}", args=list(arguments))
    return tyro.cli(kind, prog=f"pyposeext {verb}", args=list(arguments), default=default)


def missing_path() -> Path:
    """Stands for a required path in a default instance."""
    missing: Path = tyro.MISSING
    return missing
