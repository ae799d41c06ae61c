"""Sampling, ignored regions, empty batches and wrong targets."""

from __future__ import annotations

import math

import pytest
import torch

from pyposeext.errors import InputError
from pyposeext.models import create_model
from pyposeext.models.mask_rcnn.rpn import ignored
from tests.models.reduced import reduced_model, sample_images, sample_targets

LIGHT = "keypoint_rcnn_efficientnet_lite0_fpn"


@pytest.fixture(scope="module")
def model():
    return reduced_model(LIGHT)


@pytest.fixture
def training(model):
    yield model.train()
    model.eval()


def test_images_without_people_train(training):
    empty = sample_targets()[1]
    losses = training(sample_images(), [empty, empty])
    sum(losses.values()).backward()
    assert losses["loss_keypoint"].item() == losses["loss_box_reg"].item() == losses["loss_rpn_box_reg"].item() == 0
    assert losses["loss_objectness"] > 0
    assert all(torch.isfinite(buffer).all() for buffer in training.buffers())


def test_images_with_boxes_alone_train(training):
    target = sample_targets()[0]
    del target["keypoints"]
    losses = training(sample_images(), [target, sample_targets()[1]])
    assert losses["loss_keypoint"].item() == 0
    assert losses["loss_box_reg"] > 0


def test_ignored_regions_give_no_negatives():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [6, 0, 16, 10], [50, 50, 60, 60]])
    target = {"ignore": torch.tensor([[0.0, 0, 10, 30], [200, 200, 300, 300]])}
    assert ignored(boxes, target).tolist() == [True, False, False, False]
    assert ignored(boxes, {}).tolist() == [False] * 4


def test_a_wholly_ignored_image_without_people_has_no_loss(training):
    empty = {**sample_targets()[1], "ignore": torch.tensor([[-500.0, -500, 900, 900]])}
    losses = training(sample_images(), [empty, empty])
    assert sum(losses.values()).item() == 0
    sum(losses.values()).backward()


def test_order_of_random_draws(training, monkeypatch):
    drawn = []
    original = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda count, **options: drawn.append(count) or original(count, **options))
    training(sample_images(), sample_targets())
    # For each image: positives and negatives of the anchors; then the same of the proposals; then the keypoint RoIs.
    assert len(drawn) == 9
    assert drawn[2] == 0
    # Nobody is in the second image: all its anchors are negative, three at each position of P3..P6 of 128x128 pixels.
    assert drawn[3] == 3 * (16**2 + 8**2 + 4**2 + 2**2)
    assert drawn[6] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.tensor([[5.0, 5, 5, 9]])}, r"target 0: boxes must be finite .* but box 0 is \(5, 5, 5, 9\)"),
        ({"boxes": torch.tensor([[5.0, float("nan"), 8, 9]])}, r"target 0: boxes must be finite .* \(5, nan, 8, 9\)"),
        ({"boxes": torch.zeros(1, 5)}, r"target 0: boxes must be \[n, 4\], got \[1, 5\]"),
        ({"labels": torch.zeros(1, dtype=torch.int64)}, r"target 0: labels must be in 1\.\.1, got 0 for box 0"),
        ({"labels": torch.ones(2, dtype=torch.int64)}, r"target 0: labels must be \[1\], got \[2\]"),
        ({"labels": torch.ones(1)}, "target 0: labels must be int64, got torch.float32"),
        ({"keypoints": torch.zeros(1, 14, 3)}, r"target 0: keypoints must be \[1, 17, 3\], got \[1, 14, 3\]"),
        ({"keypoints": torch.full((1, 17, 3), math.inf)}, "target 0: keypoints must be finite, but those of box 0"),
        ({"keypoint_weights": torch.ones(1, 16)}, r"target 0: keypoint_weights must be \[1, 17\], got \[1, 16\]"),
        ({"ignore": torch.ones(4)}, r"target 0: ignore must be \[n, 4\], got \[4\]"),
    ],
)
def test_wrong_targets_are_named(training, change, message):
    first, second = sample_targets()
    with pytest.raises(InputError, match=message):
        training(sample_images(), [{**first, **change}, second])


def test_missing_targets_are_named(training):
    with pytest.raises(InputError, match="one dict for each of the 2 images in training, got none"):
        training(sample_images())
    with pytest.raises(InputError, match="for each of the 2 images in training, got 1"):
        training(sample_images(), sample_targets()[:1])
    with pytest.raises(InputError, match="target 1 must hold 'labels', got boxes"):
        training(sample_images(), [sample_targets()[0], {"boxes": torch.zeros(0, 4)}])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images must hold at least one image, got none"),
        ([torch.rand(3, 8, 8), torch.rand(1, 8, 8)], r"image 1 must be \[3, h, w\] and not empty, got \[1, 8, 8\]"),
        ([torch.rand(3, 0, 8)], r"image 0 must be \[3, h, w\] and not empty"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], r"image 0 must be floating point with values in 0\.\.1"),
        (torch.rand(3, 8, 8), r"images must be a list of \[3, h, w\] or one \[N, 3, h, w\], got \[3, 8, 8\]"),
    ],
)
def test_wrong_images_are_named(model, images, message):
    with pytest.raises(InputError, match=message):
        model(images)


def test_wrong_boxes_are_named(model):
    with pytest.raises(InputError, match="for each of the 2 images, got 1"):
        model.poses_in_boxes(sample_images(), [torch.zeros(0, 4)])
    with pytest.raises(InputError, match="boxes of image 1 must be finite"):
        model.poses_in_boxes(sample_images(), [torch.zeros(0, 4), torch.tensor([[9.0, 9, 3, 3]])])


def test_no_detections_at_all():
    model = reduced_model(LIGHT, score_threshold=1.0)
    with torch.inference_mode():
        found = model([torch.rand(3, 1, 1), torch.rand(3, 40, 200)], heatmaps=True)
    shapes = {key: tuple(value.shape) for key, value in found[0].items()}
    assert shapes == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
        "keypoints": (0, 17, 3),
        "keypoint_scores": (0, 17),
        "keypoint_heatmaps": (0, 17, 56, 56),
    }


def test_builders_refuse_wrong_arguments():
    for arguments, message in (
        ({"head_norm": "layer"}, "head_norm must be 'batch' or 'group', got 'layer'"),
        ({"min_size": 0}, "min_size must be one or several positive numbers"),
        ({"proposals": (5,)}, "proposals must be two positive counts"),
        ({"num_joints": 0}, "num_joints must be at least 1, got 0"),
        ({"frozen_blocks": 17}, r"frozen_blocks must be in 0\.\.16, got 17"),
    ):
        with pytest.raises(InputError, match=message):
            create_model(LIGHT, **arguments)
