"""Joints from a top-down model in the boxes of a detector, batched over people and frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyposeext import ops
from pyposeext.errors import InputError
from pyposeext.pipelines.acceleration import padded_count
from pyposeext.pipelines.detectors import Detections
from pyposeext.pipelines.duplicates import remove_duplicates
from pyposeext.pipelines.estimator import Estimator, finite_people, repaired_joints
from pyposeext.pipelines.inputs import InputImage, checked_boxes, checked_image, checked_scores, frames_and_table
from pyposeext.structures import Poses


@dataclass
class TopDownEstimator(Estimator):
    """A `pyposeext.models.top_down.TopDownPose` behind a detector, as an estimator.

    The score of a joint is the maximum of its heatmap, clamped to 0..1: about 1 where the model is sure, but no
    probability. A person's is the box's times the mean of the joints' above 0.2, as HRNet rescores (0 without such a
    joint), so it is lower than that of an R-CNN; where boxes are given without scores, the box counts 1, and where
    people are tracked, the box alone counts. Of people more alike than `settings.oks_threshold` the best stays.

    For a batch of frames one transfer goes to the device, the frames with a table of boxes, and one comes back, a table
    of joints and scores: cropping, normalising, the flip test, decoding, rescoring and suppression happen there.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._sigmas = torch.tensor(self.skeleton.sigmas, device=self.device)
        self._dtype = next(self.model.parameters()).dtype

    def people_in(self, image: NDArray[np.uint8], boxes: ArrayLike, scores: ArrayLike) -> Poses:
        """The people in detected boxes as COCO's protocol takes them: rescored, suppressed by OKS, best first.

        Their scores are not clamped: they only rank, and those above 1 would all be the same.

        Args:
            image: RGB uint8 [H, W, 3].
            boxes: [N, 4], x1, y1, x2, y2 in pixels; all are taken, whatever their score and number.
            scores: [N], the detector's.

        Raises:
            InputError: an image, boxes or scores that are not so.
        """
        image = checked_image(image)
        checked = checked_boxes(boxes)
        found = Detections(checked, checked_scores(scores, len(checked)))
        with torch.inference_mode():
            return self._suppressed([image], [found])[0]

    def _people(self, inputs: Sequence[InputImage], score_threshold: float, tracked: bool) -> list[Poses]:
        if self.detector is None:
            raise InputError("a top-down model needs boxes: give them with the image, or a detector to `load`")
        maximum = self.settings.maximum_people
        found = [each.best(score_threshold, maximum) for each in self.detector.detect(inputs)]
        people = self._suppressed([each.image for each in inputs], found, rescored=not tracked)
        oks, joint_score = self.settings.duplicate_oks, self.settings.duplicate_joint_score
        unique = [remove_duplicates(poses, oks, joint_score) for poses in people]
        return [replace(poses, scores=poses.scores.clip(0, 1)) for poses in unique]

    def _poses_in(
        self, image: NDArray[np.uint8], boxes: NDArray[np.float32], scores: NDArray[np.float32] | None
    ) -> Poses:
        given = np.ones(len(boxes), dtype=np.float32) if scores is None else scores
        poses, _ = self._estimate([image], [Detections(boxes, given)])[0]
        whole = repaired_joints(poses)
        if whole is poses:
            return replace(poses, scores=poses.scores.clip(0, 1))
        joints = torch.from_numpy(whole.keypoints[..., 2].copy())
        people: Tensor = self.model.person_scores(torch.from_numpy(given.copy()), joints)
        return replace(whole, scores=people.numpy().clip(0, 1))

    def _suppressed(
        self, images: Sequence[NDArray[np.uint8]], found: Sequence[Detections], rescored: bool = True
    ) -> list[Poses]:
        people = []
        for (poses, kept), each in zip(self._estimate(images, found), found, strict=True):
            best = poses[kept] if rescored else replace(poses, scores=each.scores)[kept]
            people.append(best[finite_people(best)])
        return people

    def _estimate(
        self, images: Sequence[NDArray[np.uint8]], found: Sequence[Detections]
    ) -> list[tuple[Poses, NDArray[np.int64]]]:
        """For each image a pose for every box, in their order, and which of them suppression keeps, best first."""
        if len({image.shape for image in images}) > 1:
            return [self._estimate([image], [each])[0] for image, each in zip(images, found, strict=True)]
        peopled = [index for index, each in enumerate(found) if len(each.boxes)]
        results = [(Poses.empty(self.skeleton), np.zeros(0, dtype=np.int64)) for _ in images]
        if not peopled:
            return results
        table = np.concatenate([_table(place, found[index]) for place, index in enumerate(peopled)])
        frames, boxes_there = frames_and_table(self.device, [images[index] for index in peopled], table)
        rows = self._joints(frames, boxes_there).cpu().numpy()
        order = rows[:, -1].astype(np.int64)
        order = order[order >= 0]
        first = 0
        for place, index in enumerate(peopled):
            boxes = found[index].boxes
            part = rows[first : first + len(boxes)]
            kept = order[table[order, -1] == place] - first
            results[index] = (self._poses_of(part, boxes), kept)
            first += len(boxes)
        return results

    def _joints(self, frames: Tensor, table: Tensor) -> Tensor:
        """On the device: frames uint8 [F, H, W, 3] and a table of boxes to a table of people.

        Args:
            table: float64 [N, 6], rows of `_table`.

        Returns:
            float32 [N, 3 K + 2]: x, y and score of each joint, the person's score, and apart from the rows, in the last
            column, the numbers of the rows that suppression keeps, best first, then -1.
        """
        regions, frame_index = self.model.regions(table[:, :4]), table[:, 5].long()
        batch = self.settings.people_per_batch
        parts = [
            self._batch_joints(frames, regions[start : start + batch], frame_index[start : start + batch])
            for start in range(0, len(table), batch)
        ]
        keypoints = torch.cat(parts)
        people = self.model.person_scores(table[:, 4].float(), keypoints[..., 2])
        kept = self._kept(keypoints, people, table[:, :4], regions, frame_index)
        return torch.cat([keypoints.flatten(1), people[:, None], kept[:, None].float()], dim=1)

    def _batch_joints(self, frames: Tensor, regions: Tensor, frame_index: Tensor) -> Tensor:
        """float32 [n, K, 3] of one batch of people."""
        settings, count = self.settings, len(regions)
        if settings.compiled:
            # Few batch sizes, or everything is compiled anew: the last person is looked at once more.
            repeats = padded_count(count, settings.people_per_batch) - count
            regions = torch.cat([regions, regions[-1:].expand(repeats, -1)])
            frame_index = torch.cat([frame_index, frame_index[-1:].expand(repeats)])
        crops, matrices = self.model.crops(frames, regions, frame_index, self._dtype)
        decoding = None if settings.decoding == "model" else settings.decoding
        points, scores = self.model.estimate(crops, matrices, flip=settings.flip_test, decoding=decoding)
        return torch.cat([points.float(), scores.float()[..., None]], dim=-1)[:count]

    def _kept(self, keypoints: Tensor, people: Tensor, boxes: Tensor, regions: Tensor, frame_index: Tensor) -> Tensor:
        """int64 [N]: the rows to keep by falling score, then -1; frames do not meddle with each other."""
        threshold = self.settings.oks_threshold
        kept: Tensor
        if self.skeleton.sigmas:
            areas = regions[:, 2] * regions[:, 3]
            kept, _ = ops.oks_nms_padded(keypoints, people, areas, threshold, self._sigmas, frame_index)
        else:
            kept, _ = ops.nms_padded(boxes, people, threshold, frame_index)
        return kept

    def _poses_of(self, rows: NDArray[np.float32], boxes: NDArray[np.float32]) -> Poses:
        keypoints = rows[:, :-2].reshape(len(rows), len(self.skeleton), 3).copy()
        scores = keypoints[..., 2]
        # A heatmap without numbers has its maximum at minus infinity: clamped, it would look like a number.
        keypoints[..., 2] = np.where(np.isfinite(scores), scores.clip(0, 1), np.nan)
        return Poses(keypoints, boxes, rows[:, -2], self.skeleton)


def _table(place: int, found: Detections) -> NDArray[np.float64]:
    """Rows of the box, its score and its frame's place among those on the device: float64, so that nothing rounds."""
    frame = np.full((len(found.boxes), 1), place)
    return np.concatenate([found.boxes, found.scores[:, None], frame], axis=1, dtype=np.float64)
