"""`pyposeext eval`: how good a model, or a file of results, is by COCO's measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pyposeext.cli.data_entries import open_coco
from pyposeext.cli.options import OutputOption, ProgressKind, parse
from pyposeext.cli.progress import show_progress
from pyposeext.errors import InputError

if TYPE_CHECKING:
    from pyposeext.pipelines.evaluation import Evaluation

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class EvalArguments:
    """Measure a model on labelled images, or a file of results, as COCO does: AP and AR of boxes, masks and keypoints.

    With --model and --data a model runs on every image. An R-CNN sees whole images. A top-down model sees the people in
    the boxes of the truth (those with labelled joints), or of a detector, by HRNet's protocol: people rescored by their
    joints, suppressed by OKS, at most 20 an image. With --results and --truth a file in COCO's results layout is
    measured.

    Attributes:
        model: a model's name, or a weight file, which names its model.
        weights: a weight file, or the name of shipped weights.
        data: ANNOTATIONS.json:IMAGES, a file in COCO's layout and its folder of images.
        boxes: where a top-down model's boxes are from; "detector" where one is given, else "truth".
        detector: "default", a model of boxes, NAME:WEIGHTS, a weight file, a file of detections (.json) or an ONNX
            graph (.onnx).
        flip_test: of a top-down model: average with the mirrored crop.
        decoding: of a top-down model's heatmaps; "model" is what the model was made with.
        oks_threshold: of two people more alike than this a top-down model's weaker goes.
        results: a file in COCO's results layout.
        truth: its ANNOTATIONS.json.
        kind: what of it is measured.
        output: folder for metrics.json, and of a model boxes.json, segm.json and keypoints.json in COCO's results
            layout.
        as_json: print a JSON object instead of a table.
        device: auto, cpu, cuda, cuda:1, ...
        threads: CPU threads; None leaves PyTorch's choice.
        progress: a bar, JSON lines or nothing, on standard error.
    """

    model: str | None = None
    weights: str | None = None
    data: str | None = None
    boxes: Literal["truth", "detector"] | None = None
    detector: str | None = None
    flip_test: bool = True
    decoding: Literal["model", "none", "quarter", "dark"] = "model"
    oks_threshold: float = 0.9
    results: Path | None = None
    truth: Path | None = None
    kind: Literal["boxes", "masks", "keypoints"] = "keypoints"
    output: Annotated[Path | None, OutputOption] = None
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    device: str = "auto"
    threads: int | None = None
    progress: ProgressKind = "bar"


def main(arguments: Sequence[str]) -> int:
    """The exit code, always 0."""
    options = parse(EvalArguments, "eval", arguments)
    of_model, of_file = (options.model, options.data), (options.results, options.truth)
    if all(of_file) and not any(of_model):
        description, figures = _measure_file(options)
    elif all(of_model) and not any(of_file):
        description, figures = _measure_model(options)
    else:
        raise InputError("eval needs --model and --data, or --results and --truth")
    record = {**description, "metrics": figures}
    if options.output is not None:
        from pyposeext.io.atomic import write_bytes

        write_bytes(options.output / "metrics.json", (json.dumps(record, indent=2) + "\n").encode())
    if options.as_json:
        print(json.dumps(record, indent=2))
    else:
        _print_table(figures)
    return 0


def _measure_file(options: EvalArguments) -> tuple[dict[str, Any], Figures]:
    from pyposeext.datasets import CocoKeypoints
    from pyposeext.io.coco import load_json
    from pyposeext.metrics import CocoEvaluation

    assert options.results is not None
    assert options.truth is not None
    truth = CocoKeypoints(options.truth)
    rows = load_json(options.results)
    if not isinstance(rows, list):
        raise InputError(f"results {options.results} must be a list in COCO's results layout, got another JSON value")
    evaluation = CocoEvaluation(truth.content, options.kind, sigmas=truth.skeleton.sigmas)
    evaluation.add_results(rows)
    description = {"results": str(options.results), "truth": str(options.truth), "images": len(truth)}
    return description, {options.kind: evaluation.compute()}


def _measure_model(options: EvalArguments) -> tuple[dict[str, Any], Figures]:
    import torch

    from pyposeext.io.atomic import check_writable
    from pyposeext.io.weights import file_sha256
    from pyposeext.models import create_model
    from pyposeext.models.top_down import TopDownPose
    from pyposeext.pipelines.loading import find_device
    from pyposeext.pipelines.sources import model_and_weights

    assert options.model is not None
    assert options.data is not None
    if options.boxes == "truth" and options.detector is not None:
        raise InputError("boxes must be from the truth or from a detector, got both")
    if options.output is not None:
        check_writable(options.output)
    device = find_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    name, file = model_and_weights(options.model, options.weights)
    model = create_model(name, weights=file)
    if not isinstance(model, TopDownPose) and (options.boxes or options.detector):
        raise InputError(f"boxes and detector are for top-down models, and {name} finds its boxes itself")
    evaluation = _run(options, model.to(device), device)
    if options.output is not None:
        evaluation.write(options.output)
    description = {
        "model": getattr(model, "model_name", name),
        "weights": str(file),
        "weights_sha256": file_sha256(file),
        "data": options.data,
        "images": len(evaluation.dataset),
        "boxes": evaluation.boxes,
    }
    return description, evaluation.compute()


def _run(options: EvalArguments, model: Any, device: Any) -> Evaluation:
    from pyposeext.pipelines.detectors import resolve_detector
    from pyposeext.pipelines.evaluation import evaluate
    from pyposeext.pipelines.settings import EstimatorSettings
    from pyposeext.pipelines.video import Progress

    assert options.data is not None
    dataset = open_coco(options.data)
    detector = None
    if options.detector is not None or options.boxes == "detector":
        detector = resolve_detector(options.detector or "default", device)
    settings = EstimatorSettings(
        flip_test=options.flip_test, decoding=options.decoding, oks_threshold=options.oks_threshold
    )
    with show_progress(options.progress, dataset.name) as show:

        def on_image(index: int) -> None:
            show(Progress(index + 1, 0.0, (index + 1) / len(dataset)))

        return evaluate(model, dataset, detector, settings, on_image)


def _print_table(figures: Figures) -> None:
    """A row for each figure, a column for each kind."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("")
    for kind in figures:
        table.add_column(kind, justify="right")
    names = list(dict.fromkeys(name for values in figures.values() for name in values))
    for name in names:
        table.add_row(name, *(f"{values[name]:.4f}" if name in values else "" for values in figures.values()))
    Console().print(table)
