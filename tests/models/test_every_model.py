"""What every registered model must do, at a reduced size."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from pyposeext.models import create_model, list_models
from pyposeext.models.weights import save_model
from tests.models.reduced import ARGUMENTS, reduced_model, sample_images, sample_targets

every_model = pytest.mark.parametrize("name", list_models())


@functools.cache
def shared_model(name):
    """For tests that change nothing."""
    return reduced_model(name)


def test_every_model_has_a_reduced_size():
    assert sorted(ARGUMENTS) == list_models()


@every_model
def test_detections_have_the_promised_shapes(name):
    with torch.inference_mode():
        detections = shared_model(name)(sample_images(), heatmaps=True)
    assert len(detections) == 2
    for found, (height, width) in zip(detections, [(96, 80), (70, 110)], strict=True):
        count = len(found["boxes"])
        assert found["keypoints"].shape == (count, 17, 3)
        assert found["keypoint_scores"].shape == (count, 17)
        assert found["keypoint_heatmaps"].shape == (count, 17, 56, 56)
        assert found["labels"].tolist() == [1] * count
        assert (found["scores"].diff() <= 0).all()
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()


@every_model
def test_poses_in_boxes_and_in_none(name):
    model = shared_model(name)
    boxes = [torch.tensor([[3.0, 4, 50, 90], [20, 8, 70, 60]]), torch.zeros(0, 4)]
    with torch.inference_mode():
        found = model.poses_in_boxes(sample_images(), boxes)
        swapped = model.poses_in_boxes(sample_images(), [boxes[0].flip(0), boxes[1]])
        none = model.poses_in_boxes(sample_images(), [boxes[1], boxes[1]])
    assert [tuple(image["keypoints"].shape) for image in found] == [(2, 17, 3), (0, 17, 3)]
    assert [tuple(image["keypoint_scores"].shape) for image in none] == [(0, 17), (0, 17)]
    torch.testing.assert_close(found[0]["keypoint_scores"].flip(0), swapped[0]["keypoint_scores"], atol=1e-4, rtol=1e-4)
    low, high = boxes[0][:, None, :2] - 1, boxes[0][:, None, 2:] + 1
    assert ((found[0]["keypoints"][..., :2] > low) & (found[0]["keypoints"][..., :2] < high)).all()


@every_model
def test_training_reaches_every_parameter_that_trains_and_overfits(name):
    model = reduced_model(name).train()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), lr=5e-4)
    history = []
    for step in range(6):
        torch.manual_seed(step)
        losses = model(sample_images(), sample_targets())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        history.append({key: value.item() for key, value in losses.items()})
        if step == 0:
            assert not [key for key, parameter in trained.items() if parameter.grad is None]
            assert all(torch.isfinite(parameter.grad).all() for parameter in trained.values())
        optimizer.step()
    names = ["loss_box_reg", "loss_classifier", "loss_keypoint", "loss_objectness", "loss_rpn_box_reg"]
    assert sorted(history[0]) == names
    assert history[-1]["loss_keypoint"] < 0.8 * history[0]["loss_keypoint"]
    assert history[-1]["loss_classifier"] < history[0]["loss_classifier"]
    assert history[-1]["loss_objectness"] < history[0]["loss_objectness"]


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_float32(name, dtype):
    model = shared_model(name)
    boxes = [torch.tensor([[3.0, 4, 50, 90]]), torch.tensor([[20.0, 8, 70, 60]])]
    with torch.inference_mode():
        full = model.poses_in_boxes(sample_images(), boxes, heatmaps=True)
        with torch.autocast("cpu", dtype):
            half = model.poses_in_boxes(sample_images(), boxes, heatmaps=True)
            detections = model(sample_images())
    error = (full[0]["keypoint_heatmaps"] - half[0]["keypoint_heatmaps"].float()).abs().max()
    assert error < (0.1 if dtype == torch.bfloat16 else 0.02) * full[0]["keypoint_heatmaps"].std()
    assert all(found["boxes"].dtype == found["scores"].dtype == torch.float32 for found in detections)
    assert all(torch.isfinite(found["keypoints"]).all() for found in detections)


@every_model
def test_tensor_parts_export(name):
    model = shared_model(name)
    image = torch.rand(1, 3, 96, 96)
    exported = torch.export.export(model.backbone, (image,)).module()
    for own, other in zip(model.backbone(image), exported(image), strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)
    heads = model.roi_heads
    channels = model.backbone.fpn.out_channels
    rois = {0: torch.export.Dim("rois", min=1, max=4096)}
    for part, size in (
        (nn.Sequential(heads.box_head, heads.box_predictor), 7),
        (nn.Sequential(heads.keypoint_head, heads.keypoint_predictor), 14),
    ):
        exported = torch.export.export(part, (torch.rand(3, channels, size, size),), dynamic_shapes=(rois,)).module()
        input = torch.rand(5, channels, size, size)
        torch.testing.assert_close(part(input), exported(input), atol=1e-4, rtol=1e-4)


@every_model
def test_saved_weights_rebuild_the_model(name, tmp_path):
    model = shared_model(name)
    save_model(tmp_path / "model.safetensors", model, licence="none")
    again = create_model(name, tmp_path / "model.safetensors")
    assert again.transform == model.transform
    assert again.roi_heads.settings == model.roi_heads.settings
    with torch.inference_mode():
        for own, other in zip(model(sample_images()), again(sample_images()), strict=True):
            assert all(torch.equal(own[key], other[key]) for key in own)


@every_model
def test_seeded_training_is_deterministic(name):
    model = reduced_model(name).train()
    runs = []
    for _ in range(2):
        torch.manual_seed(4)
        runs.append(model(sample_images(), sample_targets()))
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


@every_model
def test_channels_last_gives_the_same(name):
    model = reduced_model(name)
    with torch.inference_mode():
        expected = model.poses_in_boxes(sample_images(), [torch.tensor([[3.0, 4, 50, 90]])] * 2)
        model.to(memory_format=torch.channels_last)
        seen = []
        model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        found = model.poses_in_boxes(sample_images(), [torch.tensor([[3.0, 4, 50, 90]])] * 2)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found[0]["keypoint_scores"], expected[0]["keypoint_scores"], atol=1e-3, rtol=1e-3)
