"""Average precision and recall as COCO defines them, for boxes and keypoints, computed by faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from pyposeext.errors import InputError

Kind = Literal["boxes", "keypoints"]

_NAMES: dict[str, tuple[str, ...]] = {
    "boxes": ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"),
}


class CocoEvaluation:
    """Detections against a COCO ground truth. Images without any detection count as well.

    Args:
        truth: the JSON file, or its content.
        kind: "boxes" or "keypoints".
        category_id: evaluate this category alone; None for all of them.
        sigmas: OKS constants; () for COCO's.
    """

    def __init__(
        self,
        truth: str | Path | dict[str, Any],
        kind: Kind = "keypoints",
        category_id: int | None = None,
        sigmas: Sequence[float] = (),
    ) -> None:
        if kind not in _NAMES:
            raise InputError(f"kind must be 'boxes' or 'keypoints', got {kind!r}")
        self._truth: dict[str, Any] = truth if isinstance(truth, dict) else json.loads(Path(truth).read_text())
        self._kind, self._category_id, self._sigmas = kind, category_id, tuple(sigmas)
        self._images = {image["id"] for image in self._truth["images"]}
        self._results: list[dict[str, Any]] = []

    def update(
        self, image_id: int, scores: ArrayLike, boxes: ArrayLike = (), keypoints: ArrayLike = (), category_id: int = 1
    ) -> None:
        """Adds the detections of one image.

        Args:
            image_id: one of the ground truth's.
            scores: [N].
            boxes: [N, 4], x1, y1, x2, y2, where boxes are evaluated.
            keypoints: [N, K, 2 or more], x and y first, where keypoints are evaluated.
            category_id: of all N.
        """
        score = np.asarray(scores, dtype=np.float64)
        value = np.asarray(boxes if self._kind == "boxes" else keypoints, dtype=np.float64)
        if len(value) != len(score):
            raise InputError(f"{self._kind} and scores must have one row per person, got {len(value)} and {len(score)}")
        rows = []
        for index in range(len(score)):
            row: dict[str, Any] = {"image_id": image_id, "category_id": category_id, "score": float(score[index])}
            if self._kind == "boxes":
                x1, y1, x2, y2 = value[index].tolist()
                row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            else:
                row["keypoints"] = [number for x, y in value[index, :, :2].tolist() for number in (x, y, 1.0)]
            rows.append(row)
        self.add_results(rows)

    def add_results(self, results: Iterable[dict[str, Any]]) -> None:
        """Adds entries of a COCO result file."""
        rows = list(results)
        for row in rows:
            if row["image_id"] not in self._images:
                raise InputError(f"image_id must be one of the ground truth's, got {row['image_id']}")
        self._results += rows

    def merge(self, other: CocoEvaluation) -> None:
        """Adds the detections of another object on the same ground truth."""
        if other._kind != self._kind or other._images != self._images:
            raise InputError("other must evaluate the same kind on the same images")
        self._results += other._results

    def resampled(self, image_ids: Sequence[int]) -> CocoEvaluation:
        """The same detections on the images listed, a repeated one counting again: what a bootstrap draws."""
        images = {image["id"]: image for image in self._truth["images"]}
        rows_of: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
        truths_of: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
        for row in self._results:
            rows_of[row["image_id"]].append(row)
        for annotation in self._truth["annotations"]:
            truths_of[annotation["image_id"]].append(annotation)
        truth: dict[str, Any] = {"images": [], "annotations": [], "categories": self._truth["categories"]}
        results = []
        for number, image_id in enumerate(image_ids, start=1):
            truth["images"].append({**images[image_id], "id": number})
            for annotation in truths_of[image_id]:
                truth["annotations"].append({**annotation, "image_id": number, "id": len(truth["annotations"]) + 1})
            results += [{**row, "image_id": number} for row in rows_of[image_id]]
        drawn = CocoEvaluation(truth, self._kind, self._category_id, self._sigmas)
        drawn.add_results(results)
        return drawn

    def compute(self) -> dict[str, float]:
        """COCO's figures under COCO's names, 0..1; -1 where there is nothing to measure."""
        from faster_coco_eval import COCO, COCOeval_faster

        # The library prints; a metric is silent.
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(json.loads(json.dumps(self._truth)))
            found = truth.loadRes([dict(row) for row in self._results])
            evaluation = COCOeval_faster(
                truth,
                found,
                "bbox" if self._kind == "boxes" else "keypoints",
                kpt_oks_sigmas=list(self._sigmas) or None,
                print_function=_silent,
            )
            if self._category_id is not None:
                evaluation.params.catIds = [self._category_id]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        names = _NAMES[self._kind]
        return {name: float(value) for name, value in zip(names, evaluation.stats[: len(names)], strict=True)}


def _silent(*_: object) -> None:
    """Takes the place of the library's printing."""
