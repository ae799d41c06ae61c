"""The loss of heatmaps against Gaussian targets that are never stored."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pyposeext.ops._library import empty_with_layout, is_channels_last
from pyposeext.ops.gaussian_heatmaps import Background, Mode, Outside, gaussian_heatmaps, keeps_outside
from pyposeext.ops.gaussian_heatmaps import reference as heatmaps_reference

Reduction = Literal["none", "mean", "sum"]


def gaussian_mse_loss(
    prediction: Tensor,
    keypoints: Tensor,
    weights: Tensor | None = None,
    sigma: float = 2.0,
    mode: Mode = "msra",
    *,
    amplitude: float = 1.0,
    cutoff: float = 0.0,
    background: Background = "none",
    outside: Outside = "ignore",
    reduction: Reduction = "mean",
) -> Tensor:
    """Half of the mean squared error of each heatmap against its Gaussian target, times the joint's squared weight.

    loss[b, k] = 0.5 * mean over the pixels of (w * prediction - w * target)^2 with the targets and the weights w that
    `gaussian_heatmaps` gives, which are not stored. Its mean over b and k is HRNet's loss (Sun et al. 2019,
    JointsMSELoss): samples of weight 0 count in the mean, and a weight of 1.5 counts as 2.25.

    Args:
        prediction: [B, K, H, W] (K + 1 with a background, whose weight is 1), float32, float64, float16 or bfloat16,
            any strides; channels_last and contiguous maps are read without a copy, and so is every other layout.
        keypoints, weights, sigma, mode, amplitude, cutoff, background, outside: as in `gaussian_heatmaps`.
        reduction: "none": [B, K], the losses. From them come the hard-keypoint loss (the mean of the 8 largest of a
            sample) and others: twice the mean is F.mse_loss; H * W times the sum is half of the sum of squares (Flowing
            ConvNets' gradient), and over B that is Caffe's Euclidean loss (LSTM Pose Machines). "mean", "sum": of the
            losses; 0 where there are none.

    Returns:
        [B, K] or a scalar, in float32 (float64 for float64), summed in that dtype and in fixed parts: the same bits for
        any number of threads. Within 1e-5 of float64, relatively. A map of weight 0 is not looked at: its loss and its
        gradient are 0 even where it holds NaN.

    Raises:
        RuntimeError: a wrong rank, shape, dtype, device or option.

    Differentiable, as often as wished, with respect to `prediction` alone; the gradient has its dtype and layout.
    Second derivatives build the target, the first do not.
    """
    return torch.ops.pyposeext.gaussian_mse_loss(
        prediction,
        keypoints,
        weights,
        sigma,
        mode,
        amplitude,
        cutoff,
        background,
        keeps_outside("gaussian_mse_loss", outside),
        reduction,
    )


@torch.library.register_fake("pyposeext::gaussian_mse_loss")
def _fake(prediction, *options):  # type: ignore[no-untyped-def]
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    return prediction.new_empty(prediction.shape[:2] if options[-1] == "none" else (), dtype=dtype)


@torch.library.register_fake("pyposeext::gaussian_mse_loss_backward")
def _fake_backward(gradient, prediction, *options):  # type: ignore[no-untyped-def]
    return empty_with_layout(prediction, prediction.shape, is_channels_last(prediction))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    prediction, keypoints, weights, *ctx.options = inputs
    ctx.save_for_backward(prediction, keypoints, weights)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    prediction, keypoints, weights = ctx.saved_tensors
    of_prediction = torch.ops.pyposeext.gaussian_mse_loss_backward(
        gradient, prediction, keypoints, weights, *ctx.options
    )
    return (of_prediction, *(None,) * 9)


def _setup_double(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, prediction, keypoints, weights, *ctx.options = inputs
    ctx.save_for_backward(gradient, prediction, keypoints, weights)


def _double_backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    # backward = gradient * factor * (prediction - target), linear in both.
    gradient, prediction, keypoints, weights = ctx.saved_tensors
    sigma, mode, amplitude, cutoff, background, keep_outside, reduction = ctx.options
    target, weight = _target(
        prediction, keypoints, weights, sigma, mode, amplitude, cutoff, background, "keep" if keep_outside else "ignore"
    )
    factor = weight**2 / max(target.shape[2] * target.shape[3], 1)
    if reduction == "mean":
        factor = factor / max(factor.numel(), 1)
    read = factor[..., None, None] != 0  # a map of weight 0 is not looked at, as in the kernel
    difference = torch.where(read, prediction.to(factor.dtype) - target, 0.0)
    exact = torch.where(read, direction.to(factor.dtype), 0.0)
    of_gradient = (exact * difference).sum(dim=(2, 3)) * factor
    of_prediction = (exact * (gradient * factor)[..., None, None]).to(prediction.dtype)
    return of_gradient if reduction == "none" else of_gradient.sum(), of_prediction, *(None,) * 9


torch.library.register_autograd("pyposeext::gaussian_mse_loss", _backward, setup_context=_setup)
torch.library.register_autograd("pyposeext::gaussian_mse_loss_backward", _double_backward, setup_context=_setup_double)


def _target(
    prediction: Tensor,
    keypoints: Tensor,
    weights: Tensor | None,
    sigma: float,
    mode: Mode,
    amplitude: float,
    cutoff: float,
    background: Background,
    outside: Outside,
    build: Any = gaussian_heatmaps,
) -> tuple[Tensor, Tensor]:
    """The target, and the weight of each of its channels."""
    target, weight = build(
        keypoints,
        weights,
        (prediction.shape[2], prediction.shape[3]),
        sigma,
        mode,
        amplitude=amplitude,
        cutoff=cutoff,
        background=background,
        outside=outside,
        dtype=torch.float64 if prediction.dtype == torch.float64 else torch.float32,
    )
    if background != "none":
        one = weight.new_ones(weight.shape[0], 1)
        weight = torch.cat([one, weight] if background == "first" else [weight, one], dim=1)
    return target, weight


def reference(
    prediction: Tensor,
    keypoints: Tensor,
    weights: Tensor | None = None,
    sigma: float = 2.0,
    mode: Mode = "msra",
    *,
    amplitude: float = 1.0,
    cutoff: float = 0.0,
    background: Background = "none",
    outside: Outside = "ignore",
    reduction: Reduction = "mean",
) -> Tensor:
    """The specification in plain PyTorch: as `gaussian_mse_loss`, by way of the target."""
    target, weight = _target(
        prediction, keypoints, weights, sigma, mode, amplitude, cutoff, background, outside, heatmaps_reference
    )
    read = (weight != 0)[..., None, None]
    difference = torch.where(read, weight[..., None, None] * (prediction.to(target.dtype) - target), 0.0)
    loss = 0.5 * (difference**2).sum(dim=(2, 3)) / max(target.shape[2] * target.shape[3], 1)
    if reduction == "none":
        return loss
    return loss.sum() / max(loss.numel(), 1) if reduction == "mean" else loss.sum()
