"""Average precision and recall as COCO defines them, for boxes, masks and keypoints, computed by faster-coco-eval."""

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
from pyposeext.io.rle import Segmentation, encode_segmentation, mask_area
from pyposeext.metrics.coco_checks import COCO_JOINTS, check_result, checked_truth, read_truth

Kind = Literal["boxes", "masks", "keypoints"]

_DETECTION = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_NAMES: dict[str, tuple[str, ...]] = {
    "boxes": _DETECTION,
    "masks": _DETECTION,
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"),
}


# What COCO calls each kind, and where a line of a results file holds it.
_LIBRARY_NAMES = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}
RESULT_KEYS = {"boxes": "bbox", "masks": "segmentation", "keypoints": "keypoints"}


class CocoEvaluation:
    """Detections against a COCO ground truth. Images without any detection count as well.

    Args:
        truth: the JSON file, or its content.
        kind: "boxes", "masks" or "keypoints".
        category_id: evaluate this category alone; None for all of them.
        sigmas: OKS constants; () for COCO's.

    Raises:
        InputError: a truth that lacks what the kind is measured with; the sentence names the image or annotation.
    """

    def __init__(
        self,
        truth: str | Path | dict[str, Any],
        kind: Kind = "keypoints",
        category_id: int | None = None,
        sigmas: Sequence[float] = (),
    ) -> None:
        if kind not in _NAMES:
            raise InputError(f"kind must be 'boxes', 'masks' or 'keypoints', got {kind!r}")
        self._kind, self._category_id, self._sigmas = kind, category_id, tuple(sigmas)
        self._truth = checked_truth(read_truth(truth), kind, category_id, len(self._sigmas))
        self._images = {image["id"]: image for image in self._truth["images"]}
        self._results: list[dict[str, Any]] = []

    def update(
        self,
        image_id: int,
        scores: ArrayLike,
        boxes: ArrayLike = (),
        keypoints: ArrayLike = (),
        masks: Sequence[Segmentation] = (),
        category_id: int | Sequence[int] = 1,
    ) -> None:
        """Adds the detections of one image.

        Args:
            image_id: one of the ground truth's.
            scores: [N].
            boxes: [N, 4], x1, y1, x2, y2, where boxes are evaluated.
            keypoints: [N, K, 2 or more], x and y first, where keypoints are evaluated.
            masks: N in any of COCO's encodings, where masks are evaluated.
            category_id: of all N, or one for each.
        """
        values: Any = {"boxes": boxes, "masks": masks, "keypoints": keypoints}[self._kind]
        self.add_results(result_rows(self._kind, image_id, scores, values, category_id))

    def add_results(self, results: Iterable[dict[str, Any]]) -> None:
        """Adds entries of a COCO result file; what they hold beside the kind that is evaluated is left out.

        Raises:
            InputError: one that cannot be measured, named by its number from 0; then none is added.
        """
        key = RESULT_KEYS[self._kind]
        rows = []
        for number, row in enumerate(results):
            check_result(number, row, key, self._images, len(self._sigmas))
            # A mask's result may bring a box along, whose area would pass for the mask's in COCO's own code.
            rows.append({name: row[name] for name in ("image_id", "category_id", "score", key)})
            if self._kind == "masks":
                image = self._images[row["image_id"]]
                try:
                    encoded = encode_segmentation(row["segmentation"], image["height"], image["width"])
                except InputError as error:
                    raise InputError(f"result {number}: {error}") from error
                rows[-1].update(segmentation=encoded, area=mask_area(encoded))
        self._results += rows

    def merge(self, other: CocoEvaluation) -> None:
        """Adds the detections of another object on the same ground truth."""
        if other._kind != self._kind or other._images.keys() != self._images.keys():
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
            if annotation["image_id"] in truths_of:
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
            truth = COCO(self._library_truth())
            found = truth.loadRes([dict(row) for row in self._results])
            evaluation = COCOeval_faster(
                truth,
                found,
                _LIBRARY_NAMES[self._kind],
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

    def _library_truth(self) -> dict[str, Any]:
        """A copy of the truth, which the library may write to."""
        content: dict[str, Any] = json.loads(json.dumps(self._truth))
        joints = len(self._sigmas) or COCO_JOINTS
        if self._kind == "keypoints":
            for annotation in content["annotations"]:
                # Who has no joints labelled, or none that are counted, would stop the library or be passed over.
                points = annotation["keypoints"] = annotation.get("keypoints") or [0] * 3 * joints
                annotation.setdefault("num_keypoints", sum(visibility > 0 for visibility in points[2::3]))
        return content


def result_rows(
    kind: Kind,
    image_id: int,
    scores: ArrayLike,
    values: Any,
    category_id: int | Sequence[int] = 1,
    joint_scores: ArrayLike | None = None,
) -> list[dict[str, Any]]:
    """The detections of one image as entries of a COCO results file.

    Args:
        kind: what `values` are.
        image_id: the image's.
        scores: [N].
        values: boxes [N, 4] (x1, y1, x2, y2), N masks in any of COCO's encodings, or keypoints [N, K, 2 or more].
        category_id: of all N, or one for each.
        joint_scores: [N, K], written as the third number of each joint, which COCO does not look at; None writes 1.
    """
    score = np.asarray(scores, dtype=np.float64)
    if len(values) != len(score):
        raise InputError(f"{kind} and scores must have one row per person, got {len(values)} and {len(score)}")
    categories = np.broadcast_to(category_id, len(score)).tolist()
    rows = []
    for index, value in enumerate(values):
        row: dict[str, Any] = {
            "image_id": image_id,
            "category_id": int(categories[index]),
            "score": float(score[index]),
        }
        if kind == "boxes":
            x1, y1, x2, y2 = np.asarray(value, dtype=np.float64).tolist()
            row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        elif kind == "masks":
            row["segmentation"] = value
        else:
            points = np.ones((len(value), 3))
            points[:, :2] = np.asarray(value, dtype=np.float64)[:, :2]
            if joint_scores is not None:
                points[:, 2] = np.asarray(joint_scores, dtype=np.float64)[index]
            row["keypoints"] = points.ravel().tolist()
        rows.append(row)
    return rows


def _silent(*_: object) -> None:
    """Takes the place of the library's printing."""
