"""What every registered model must do, at a reduced size."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from pyposeext.models import create_model, list_models
from pyposeext.models.weights import save_model
from tests.models.reduced import REDUCED, reduced_model, sample_images, sample_targets

every_model = pytest.mark.parametrize("name", list_models())


@functools.cache
def shared_model(name):
    """For tests that change nothing. Called outside inference mode, or its tensors could not be exported."""
    return reduced_model(name)


def test_every_model_has_a_reduced_size():
    assert sorted(REDUCED) == list_models()


@every_model
def test_detections_have_the_promised_shapes(name):
    model = shared_model(name)
    with torch.inference_mode():
        detections = model(sample_images(), heatmaps=True)
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
def test_training_reaches_every_parameter_and_overfits(name):
    model = reduced_model(name).train()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    _, learning_rate, steps = REDUCED[name]
    optimizer = torch.optim.Adam(trained.values(), lr=learning_rate)
    history = []
    for _ in range(steps):
        torch.manual_seed(0)
        losses = model(sample_images(), sample_targets())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert not [key for key, parameter in trained.items() if parameter.grad is None]
        assert all(torch.isfinite(parameter.grad).all() for parameter in trained.values())
        optimizer.step()
        history.append({key: value.item() for key, value in losses.items()})
    names = ["loss_box_reg", "loss_classifier", "loss_keypoint", "loss_objectness", "loss_rpn_box_reg"]
    assert sorted(history[0]) == names
    for key in ("loss_keypoint", "loss_classifier", "loss_objectness"):
        assert history[-1][key] < history[0][key]
    assert sum(history[-1].values()) < 0.8 * sum(history[0].values())


HALF = [(name, torch.bfloat16, 0.1) for name in list_models()]
# Without float16 arithmetic in the CPU, torch emulates it: the light model stands for the rest.
HALF.append(("keypoint_rcnn_efficientnet_lite0_fpn", torch.float16, 0.02))


@pytest.mark.parametrize(("name", "dtype", "tolerance"), HALF)
def test_autocast_stays_near_float32(name, dtype, tolerance):
    model = shared_model(name)
    boxes = [torch.tensor([[3.0, 4, 50, 90]]), torch.tensor([[20.0, 8, 70, 60]])]
    with torch.inference_mode():
        full = model.poses_in_boxes(sample_images(), boxes, heatmaps=True)
        with torch.autocast("cpu", dtype):
            half = model.poses_in_boxes(sample_images(), boxes, heatmaps=True)
            detections = model(sample_images())
    for own, other in zip(full, half, strict=True):
        error = (own["keypoint_heatmaps"] - other["keypoint_heatmaps"].float()).abs().max()
        assert error < tolerance * own["keypoint_heatmaps"].std()
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
