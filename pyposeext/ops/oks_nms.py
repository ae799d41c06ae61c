"""Greedy non-maximum suppression of poses by object keypoint similarity, as before COCO's evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyposeext.ops import _library  # noqa: F401  (registers the ops)


def oks_nms(
    keypoints: Tensor,
    scores: Tensor,
    areas: Tensor,
    oks_threshold: float,
    sigmas: Tensor | Sequence[float],
    indices: Tensor | None = None,
    visibility: str = "none",
    visibility_threshold: float = 0.2,
) -> Tensor:
    """The poses that no better one resembles by more than the threshold.

    The similarity of a kept pose g and a candidate d is the mean over the joints of
    exp(-((x_g - x_d)^2 + (y_g - y_d)^2) / (2 sigma)^2 / ((area_g + area_d) / 2 + 2.2e-16) / 2), as in HRNet's
    ``lib/nms/nms.py`` (Sun et al. 2019).

    Args:
        keypoints: [N, K, 3], x, y and score, any float dtype and strides; half precision is compared in float32.
        scores: [N], any float dtype. Equal scores keep their order.
        areas: [N] in square pixels. HRNet takes those of its boxes enlarged by 1.25; a true area is far stricter.
        oks_threshold: a pose is dropped where its similarity to a kept one is above this; HRNet uses 0.9.
        sigmas: [K], falloff constants such as COCO's 0.026 for the nose. A tensor on the device of `keypoints` saves
            a transfer, and a CUDA graph needs one.
        indices: int64 [N]; poses of different images or classes never suppress each other.
        visibility: "none": every joint counts. "hrnet": the joints that the candidate sees, which is what HRNet's
            released code computes. "mmpose": the joints that both see, as in MMPose. Without any joint the similarity
            is 0.
        visibility_threshold: a joint is seen where its score is above this.

    Returns:
        int64 indices of the kept poses by falling score. A pose with a NaN in a joint that counts, or in its area,
        resembles nothing. Where the mean of two areas is negative the similarity of each joint is 1.

    Raises:
        RuntimeError: a wrong shape, dtype, device or visibility; a threshold that is NaN.

    On a GPU the number of rows is read back, which waits for the stream; `oks_nms_padded` does not. Not differentiable.
    """
    sigmas = _as_tensor(sigmas, keypoints)
    return torch.ops.pyposeext.oks_nms(
        keypoints, scores, areas, oks_threshold, sigmas, indices, visibility, visibility_threshold
    )


def oks_nms_padded(
    keypoints: Tensor,
    scores: Tensor,
    areas: Tensor,
    oks_threshold: float,
    sigmas: Tensor | Sequence[float],
    indices: Tensor | None = None,
    visibility: str = "none",
    visibility_threshold: float = 0.2,
) -> tuple[Tensor, Tensor]:
    """`oks_nms` without reading anything back from a GPU.

    Returns:
        int64 [N], the kept indices by falling score and then -1; and their number, int64 [].
    """
    sigmas = _as_tensor(sigmas, keypoints)
    return torch.ops.pyposeext.oks_nms_padded(
        keypoints, scores, areas, oks_threshold, sigmas, indices, visibility, visibility_threshold
    )


def _as_tensor(sigmas: Tensor | Sequence[float], like: Tensor) -> Tensor:
    if isinstance(sigmas, Tensor):
        return sigmas
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.tensor(sigmas, dtype=dtype, device=like.device)


@torch.library.register_fake("pyposeext::oks_nms")
def _fake(  # type: ignore[no-untyped-def]
    keypoints, scores, areas, oks_threshold, sigmas, indices, visibility, visibility_threshold
):
    return keypoints.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.register_fake("pyposeext::oks_nms_padded")
def _fake_padded(  # type: ignore[no-untyped-def]
    keypoints, scores, areas, oks_threshold, sigmas, indices, visibility, visibility_threshold
):
    return keypoints.new_empty(keypoints.shape[0], dtype=torch.int64), keypoints.new_empty((), dtype=torch.int64)


def reference(
    keypoints: Tensor,
    scores: Tensor,
    areas: Tensor,
    oks_threshold: float,
    sigmas: Tensor | Sequence[float],
    indices: Tensor | None = None,
    visibility: str = "none",
    visibility_threshold: float = 0.2,
) -> Tensor:
    """The specification in plain PyTorch: `oks_nms`."""
    dtype = torch.float64 if keypoints.dtype == torch.float64 else torch.float32
    order = torch.sort(scores, stable=True, descending=True).indices
    poses, area, group = keypoints[order].to(dtype), areas[order].to(dtype), None if indices is None else indices[order]
    variance = (_as_tensor(sigmas, poses).to(dtype) * 2) ** 2
    seen = keypoints[order][..., 2].double() > visibility_threshold
    alive = torch.ones(len(poses), dtype=torch.bool, device=poses.device)
    for i in range(len(poses)):
        if not alive[i]:
            continue
        offset = poses[i, :, :2] - poses[i + 1 :, :, :2]
        mean_area = (area[i] + area[i + 1 :]) / 2 + 2.220446049250313e-16
        exponent = (offset[..., 0] ** 2 + offset[..., 1] ** 2) / variance / mean_area[:, None] / 2
        similarity = torch.exp(-exponent.clamp(min=0))
        counted = torch.ones_like(seen[i + 1 :]) if visibility == "none" else seen[i + 1 :]
        if visibility == "mmpose":
            counted = counted & seen[i]
        total = torch.where(counted, similarity, torch.zeros_like(similarity)).sum(1)
        number = counted.sum(1)
        mean = torch.where(number > 0, total / number, torch.zeros_like(total))
        suppressed = mean.double() > oks_threshold
        alive[i + 1 :] &= ~(suppressed if group is None else suppressed & (group[i + 1 :] == group[i]))
    return order[alive]
