"""The mask branch: targets, loss, decoding, pasting, and how it stands beside the other branches."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pyposeext import ops
from pyposeext.errors import InputError
from pyposeext.models import create_model
from pyposeext.models.mask_rcnn.masks import (
    MaskHead,
    MaskPredictor,
    mask_loss,
    mask_probabilities,
    mask_targets,
    masks_in_image,
)
from pyposeext.models.mask_rcnn.transform import ImageTransform
from tests.models.reduced import MaskModel, sample_images, sample_targets

NAME = "mask_rcnn_resnet18_fpn"
SMALL = {"min_size": 96, "max_size": 128, "frozen_norm": False, "proposals": (30, 15), "detections_per_image": 4}


@pytest.fixture(scope="module")
def everything():
    """Boxes, masks and joints in one model."""
    torch.manual_seed(0)
    return create_model(NAME, num_classes=3, num_joints=17, score_threshold=0.0, **SMALL)


@pytest.fixture
def training(everything):
    yield everything.train()
    everything.eval()


def test_targets_are_the_share_of_each_cell():
    # Without the half pixel, a cell of two pixels is sampled at their corners: the mean of 3 x 3 with weights 1, 2, 1.
    masks = (torch.rand(2, 40, 50, generator=torch.Generator().manual_seed(0)) > 0.5).to(torch.uint8)
    targets = mask_targets(masks, torch.tensor([[4.0, 6, 32, 34]]), torch.tensor([1]), 14)
    line = torch.tensor([1.0, 2, 1])
    kernel = (line[:, None] * line)[None, None] / 16
    expected = F.conv2d(masks[1:, None, 6:35, 4:33].float(), kernel, stride=2)[0]
    torch.testing.assert_close(targets, expected)


def test_targets_of_a_half_covered_box():
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, :, :32] = True
    targets = mask_targets(masks, torch.tensor([[4.0, 4, 60, 60]]), torch.tensor([0]), 28)
    assert targets.shape == (1, 28, 28)
    assert (targets[0, :, :13] == 1).all()
    assert (targets[0, :, 15:] == 0).all()
    assert mask_targets(masks, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 28).shape == (0, 28, 28)


def test_loss_takes_the_channel_of_the_true_class():
    logits = torch.zeros(2, 3, 4, 4, requires_grad=True)
    targets = torch.rand(2, 4, 4)
    loss = mask_loss(logits, torch.tensor([2, 1]), targets)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert (logits.grad.flatten(2).abs().sum(dim=2) > 0).tolist() == [[False, False, True], [False, True, False]]
    torch.testing.assert_close(logits.grad[0, 2], (0.5 - targets[0]) / 32)
    shared = mask_loss(torch.full((2, 1, 4, 4), 3.0), torch.tensor([2, 1]), torch.ones(2, 4, 4))
    assert shared.item() == pytest.approx(math.log1p(math.exp(-3)))


def test_loss_without_rois_is_zero_and_has_a_gradient():
    logits = torch.zeros(0, 3, 28, 28, requires_grad=True)
    loss = mask_loss(logits * 1.0, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 28, 28))
    loss.backward()
    assert loss.item() == 0


def test_probabilities_of_the_detected_class():
    logits = torch.randn(2, 3, 4, 4)
    found = mask_probabilities(logits, torch.tensor([2, 1]))
    assert torch.equal(found, torch.stack([logits[0, 2], logits[1, 1]]).sigmoid())
    assert torch.equal(mask_probabilities(logits[:, :1], torch.tensor([2, 1])), logits[:, 0].sigmoid())


def test_head_and_predictor_without_rois():
    assert MaskPredictor(256, 5)(MaskHead()(torch.zeros(0, 256, 14, 14))).shape == (0, 5, 28, 28)


def test_pasted_ones_fill_an_integer_box_softly_at_the_rim():
    cells, box = torch.ones(1, 28, 28), torch.tensor([[10.0, 20, 66, 76]])
    soft = masks_in_image(cells, box, (100, 90), "soft", "torchvision")
    assert soft.shape == (1, 1, 100, 90)
    assert (soft[0, 0, 21:75, 11:65] > 0.9999).all()
    # With its border of one zero, the mask of 30 cells covers the 61 pixels from 8 to 68.
    rim = (torch.arange(8, 13) - 8 + 0.5) * 30 / 61 - 0.5
    torch.testing.assert_close(soft[0, 0, 48, 8:13], rim.clamp(0, 1), atol=1e-5, rtol=0)
    assert (soft[0, 0, :18] == 0).all()
    assert (soft[0, 0, :, 69:] == 0).all()


def test_forms_of_masks(everything):
    with torch.inference_mode():
        found = {form: everything(sample_images(), masks=form) for form in ("soft", "binary", "rle", "cells")}
    for index, (height, width) in enumerate([(96, 80), (70, 110)]):
        soft, binary, rle, cells = (found[form][index]["masks"] for form in ("soft", "binary", "rle", "cells"))
        boxes = found["soft"][index]["boxes"]
        assert len(boxes) == 4
        assert soft.shape == (4, 1, height, width)
        assert torch.equal(soft[:, 0], ops.paste_masks(cells, boxes, (height, width), None))
        assert torch.equal(binary, soft[:, 0] >= 0.5)
        assert [mask["size"] for mask in rle] == [[height, width]] * 4
        assert rle == ops.paste_masks_rle(cells, boxes, (height, width))
        assert cells.shape == (4, 28, 28)
        assert ((cells >= 0) & (cells <= 1)).all()
        assert set(found["soft"][index]) == {"boxes", "labels", "scores", "keypoints", "keypoint_scores", "masks"}
    with pytest.raises(InputError, match="masks must be 'soft', 'binary', 'rle' or 'cells', got 'polygons'"):
        everything(sample_images(), masks="polygons")


def test_the_box_branch_alone_gives_the_same_boxes(everything):
    with torch.inference_mode():
        alone, found = everything.detect_boxes(sample_images()), everything(sample_images())
    for boxes, whole in zip(alone, found, strict=True):
        assert set(boxes) == {"boxes", "labels", "scores"}
        assert all(torch.equal(boxes[key], whole[key]) for key in boxes)


def test_masks_are_those_of_the_returned_boxes(everything):
    images = sample_images()
    with torch.inference_mode():
        found = everything(images, masks="cells")
        batch, _ = everything.transform(images, None, training=False)
        features = everything.backbone(batch.tensor)[:4]
        scales = [
            torch.tensor(size).flip(0) / torch.tensor(old).flip(0)
            for size, old in zip(batch.sizes, batch.original_sizes, strict=True)
        ]
        boxes = [image["boxes"] * scale.repeat(2) for image, scale in zip(found, scales, strict=True)]
        heads = everything.roi_heads
        logits = heads.mask_predictor(heads.mask_head(heads.mask_pool(features, boxes)))
    labels = torch.cat([image["labels"] for image in found])
    expected = torch.stack([maps[label] for maps, label in zip(logits, labels, strict=True)]).sigmoid()
    torch.testing.assert_close(torch.cat([image["masks"] for image in found]), expected, atol=1e-4, rtol=1e-4)


def test_no_detections():
    torch.manual_seed(0)
    model = create_model(NAME, num_joints=17, **{**SMALL, "score_threshold": 1.0})
    shapes = {"soft": (0, 1, 40, 200), "binary": (0, 40, 200), "cells": (0, 28, 28)}
    with torch.inference_mode():
        for form, shape in shapes.items():
            found = model([torch.rand(3, 40, 200)], masks=form)[0]
            assert tuple(found["masks"].shape) == shape
            assert found["keypoints"].shape == (0, 17, 3)
        assert model([torch.rand(3, 40, 200)], masks="rle")[0]["masks"] == []


def test_training_losses_of_the_mask_branch_against_a_plain_computation(training, monkeypatch):
    heads = training.roi_heads
    seen = {}
    original = heads.losses

    def losses(features, proposals, targets):
        samples = []
        sample = heads._sample
        monkeypatch.setattr(heads, "_sample", lambda *inputs: samples.append(sample(*inputs)) or samples[-1])
        found = original(features, proposals, targets)
        seen.update(features=features, samples=samples, targets=targets)
        return found

    monkeypatch.setattr(heads, "losses", losses)
    targets = MaskModel.targets()
    found = training(sample_images(), targets)["loss_mask"]
    # Only the first image shows somebody.
    sample, target = seen["samples"][0], seen["targets"][0]
    rows = [row for row in range(len(sample.labels)) if sample.labels[row] > 0]
    assert len(rows) > 0
    boxes = sample.boxes[rows]
    logits = heads.mask_predictor(heads.mask_head(heads.mask_pool(seen["features"], [boxes, boxes[:0]])))
    rois = torch.cat([torch.zeros(len(rows), 1), boxes], dim=1)
    wanted = ops.roi_align(target["masks"][None].float(), rois, 28)[:, 0]
    # Of a sigmoid's argument x, with the target t: log(1 + exp(x)) - t * x. The person is class 1.
    each = [(F.softplus(maps[1]) - want * maps[1]).mean() for maps, want in zip(logits, wanted, strict=True)]
    torch.testing.assert_close(found, torch.stack(each).mean(), atol=1e-5, rtol=1e-4)


def test_images_without_masks_or_joints_train_the_rest(training):
    first, second = MaskModel.targets()
    without = {key: value for key, value in first.items() if key != "masks"}
    losses = training(sample_images(), [without, second])
    assert losses["loss_mask"].item() == 0
    assert losses["loss_keypoint"] > 0
    sum(losses.values()).backward()
    assert training.roi_heads.mask_predictor.mask_fcn_logits.weight.grad.abs().sum() == 0
    training.zero_grad()
    without = {key: value for key, value in first.items() if key != "keypoints"}
    losses = training(sample_images(), [without, {key: second[key] for key in ("boxes", "labels")}])
    assert losses["loss_keypoint"].item() == 0
    assert losses["loss_mask"] > 0


def test_the_masks_of_one_image_do_not_serve_another(training):
    first = MaskModel.targets()[0]
    third = {**sample_targets()[0], "masks": torch.ones(1, 70, 110, dtype=torch.uint8)}
    third["boxes"] = torch.tensor([[5.0, 5, 90, 60]])
    third["keypoints"] = third["keypoints"] * torch.tensor([1.0, 0.5, 1])
    torch.manual_seed(0)
    both = training(sample_images(), [first, third])["loss_mask"]
    torch.manual_seed(0)
    blank = training(sample_images(), [first, {**third, "masks": third["masks"] * 0}])["loss_mask"]
    assert both.item() != blank.item()


def test_masks_are_resized_to_the_nearest_pixel():
    masks = torch.zeros(1, 40, 60, dtype=torch.uint8)
    masks[0, 10:20, 15:45] = 1
    target = {"boxes": torch.tensor([[15.0, 10, 45, 20]]), "labels": torch.ones(1, dtype=torch.int64), "masks": masks}
    batch, moved = ImageTransform((80,), 200)([torch.rand(3, 40, 60)], [target], training=True)
    assert batch.sizes == [(80, 120)]
    assert moved[0]["masks"].dtype == torch.uint8
    expected = masks.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert torch.equal(moved[0]["masks"], expected)
    assert torch.equal(target["masks"], masks)


def test_targets_that_the_model_has_no_use_for_are_no_error():
    torch.manual_seed(0)
    model = create_model(NAME, num_classes=2, **SMALL).train()
    target = {**sample_targets()[0], "keypoints": torch.zeros(1, 5, 3), "keypoint_weights": torch.zeros(3)}
    losses = model(sample_images()[:1], [target])
    assert losses["loss_mask"].item() == 0
    assert "loss_keypoint" not in losses


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(2, 96, 80, dtype=torch.uint8), r"target 0: masks must be \[1, 96, 80\], got \[2, 96, 80\]"),
        (torch.zeros(1, 80, 96, dtype=torch.uint8), r"target 0: masks must be \[1, 96, 80\], got \[1, 80, 96\]"),
        (torch.zeros(1, 96, 80), "target 0: masks must be uint8 or bool, 0 and 1, got torch.float32"),
        (torch.full((1, 96, 80), 255, dtype=torch.uint8), "target 0: masks must be 0 and 1, got 255"),
    ],
)
def test_wrong_masks_are_named(training, masks, message):
    first, second = MaskModel.targets()
    with pytest.raises(InputError, match=message):
        training(sample_images(), [{**first, "masks": masks}, second])


def test_poses_in_boxes_need_a_keypoint_branch():
    torch.manual_seed(0)
    model = create_model(NAME, num_classes=2, **SMALL)
    with pytest.raises(InputError, match="needs a model with a keypoint branch, but mask_rcnn_resnet18_fpn was built"):
        model.poses_in_boxes(sample_images(), [torch.zeros(0, 4)] * 2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"class_agnostic_boxes": True, "class_agnostic_masks": True, "num_classes": 4},
        {"head_norm": "group", "num_classes": 2},
    ],
)
def test_other_heads_overfit_and_detect(arguments):
    torch.manual_seed(0)
    model = create_model(NAME, score_threshold=0.0, **SMALL, **arguments).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    history = []
    for _ in range(5):
        torch.manual_seed(0)
        losses = model(sample_images(), MaskModel.targets())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
        history.append({key: value.item() for key, value in losses.items()})
    for key in ("loss_mask", "loss_classifier"):
        assert history[-1][key] < history[0][key]
    with torch.inference_mode():
        found = model.eval()(sample_images())
    assert [len(image["masks"]) for image in found] == [len(image["boxes"]) for image in found]


def test_class_agnostic_boxes_are_the_same_for_all_classes():
    torch.manual_seed(0)
    arguments = {**SMALL, "nms_threshold": 1.0, "detections_per_image": 1000, "proposals": (5, 5)}
    model = create_model(NAME, num_classes=4, class_agnostic_boxes=True, score_threshold=0.0, **arguments)
    with torch.inference_mode():
        found = model.detect_boxes(sample_images()[:1])[0]
    by_class = [found["boxes"][found["labels"] == label] for label in (1, 2, 3)]
    assert len(by_class[0]) == 5
    for boxes in by_class[1:]:
        assert {tuple(box) for box in boxes.tolist()} == {tuple(box) for box in by_class[0].tolist()}


def test_masks_share_the_features_of_the_box_head_without_a_pyramid():
    torch.manual_seed(0)
    arguments = {**SMALL, "candidates": (30, 10), "proposals": (4, 3), "score_threshold": 0.0}
    model = create_model("mask_rcnn_resnet50_c4", num_classes=2, **arguments)
    with torch.inference_mode():
        found = model([torch.rand(3, 64, 64)], masks="cells")[0]
        batch, _ = model.transform([torch.rand(3, 64, 64)], None, training=False)
        assert [tuple(map.shape) for map in model.backbone(batch.tensor)] == [(1, 1024, 6, 6)]
    assert found["masks"].shape[1:] == (14, 14)
    model.train()
    calls = []
    model.roi_heads.box_head.register_forward_hook(lambda _, inputs, output: calls.append(output.shape))
    losses = model(sample_images(), MaskModel.targets())
    assert len(calls) == 1
    assert calls[0][1:] == (2048, 7, 7)
    losses["loss_mask"].backward()
    assert model.roi_heads.box_head.layer4[0].conv1.weight.grad.abs().sum() > 0
