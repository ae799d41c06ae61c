"""What every registered model must do, at a reduced size."""

from __future__ import annotations

import functools

import pytest
import torch

from pyposeext.models import create_model, list_models
from pyposeext.models.weights import save_model
from tests.models.reduced import (
    REDUCED,
    MaskModel,
    RegionModel,
    TopDownModel,
    distinct_names,
    names_of,
    reduced_model,
    sample_images,
    settled_model,
)

every_distinct_model = pytest.mark.parametrize("name", distinct_names())
every_mask_model = pytest.mark.parametrize("name", names_of(MaskModel))
every_region_model = pytest.mark.parametrize("name", names_of(RegionModel))
every_top_down_model = pytest.mark.parametrize("name", names_of(TopDownModel))


@functools.cache
def shared_model(name):
    """For tests that change nothing. Called outside inference mode, or its tensors could not be exported."""
    return settled_model(name)


def test_every_model_has_a_reduced_size():
    assert sorted(REDUCED) == list_models()


@every_region_model
def test_detections_have_the_promised_shapes(name):
    model = shared_model(name)
    with torch.inference_mode():
        detections = model(sample_images(), heatmaps=True)
    assert len(detections) == 2
    for found, (height, width) in zip(detections, [(96, 80), (70, 110)], strict=True):
        count = len(found["boxes"])
        assert count > 0
        assert found["keypoints"].shape == (count, 17, 3)
        assert found["keypoint_scores"].shape == (count, 17)
        assert found["keypoint_heatmaps"].shape == (count, 17, 56, 56)
        assert found["labels"].tolist() == [1] * count
        assert (found["scores"].diff() <= 0).all()
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()
        assert found["boxes"].dtype == found["scores"].dtype == torch.float32


@every_region_model
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


@every_mask_model
def test_masks_of_detections(name):
    model = shared_model(name)
    with torch.inference_mode():
        detections = model(sample_images())
        boxes = model.detect_boxes(sample_images())
    assert len(model.skeleton) == 0
    for found, alone, (height, width) in zip(detections, boxes, [(96, 80), (70, 110)], strict=True):
        assert sorted(found) == ["boxes", "labels", "masks", "scores"]
        assert len(found["boxes"]) > 0
        assert found["masks"].shape == (len(found["boxes"]), 1, height, width)
        assert ((found["masks"] >= 0) & (found["masks"] <= 1)).all()
        assert found["labels"].tolist() == [1] * len(found["boxes"])
        assert all(torch.equal(alone[key], found[key]) for key in ("boxes", "labels", "scores"))


@every_top_down_model
def test_heatmaps_of_crops_and_of_none(name):
    model = shared_model(name)
    crops = TopDownModel.inputs()
    with torch.inference_mode():
        heatmaps = model(crops)
        listed = model(list(crops))
        wide = model(torch.rand(1, 3, 32, 96))
        none = model(crops[:0])
        keypoints, scores = model.estimate(crops)
        no_keypoints, no_scores = model.estimate(crops[:0], torch.zeros(0, 2, 3))
    assert heatmaps.shape == (2, 17, 16, 16)
    torch.testing.assert_close(heatmaps, listed, atol=1e-6, rtol=1e-4)
    assert wide.shape == (1, 17, 8, 24)
    assert none.shape == (0, 17, 16, 16)
    assert (keypoints.shape, scores.shape) == ((2, 17, 2), (2, 17))
    assert (no_keypoints.shape, no_scores.shape) == ((0, 17, 2), (0, 17))
    assert ((keypoints >= 0) & (keypoints < 64)).all()


@every_distinct_model
def test_training_reaches_every_parameter_and_overfits(name):
    reduced = REDUCED[name]
    model = reduced_model(name).train()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), lr=reduced.learning_rate)
    history = []
    for _ in range(reduced.steps):
        torch.manual_seed(0)
        losses = model(reduced.kind.inputs(), reduced.kind.targets())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert not [key for key, parameter in trained.items() if parameter.grad is None]
        assert all(torch.isfinite(parameter.grad).all() for parameter in trained.values())
        optimizer.step()
        history.append({key: value.item() for key, value in losses.items()})
    assert sorted(history[0]) == sorted(reduced.kind.losses)
    for key in reduced.kind.falling:
        assert history[-1][key] < history[0][key]
    assert sum(history[-1].values()) < 0.8 * sum(history[0].values())


HALF = [(name, torch.bfloat16) for name in distinct_names()]
# Without float16 arithmetic in the CPU, torch emulates it: the light models stand for the rest.
HALF += [("keypoint_rcnn_efficientnet_lite0_fpn", torch.float16), ("hrnet_w18_small", torch.float16)]


@pytest.mark.parametrize(("name", "dtype"), HALF)
def test_autocast_stays_near_float32(name, dtype):
    model, kind = shared_model(name), REDUCED[name].kind
    with torch.inference_mode():
        full = kind.maps(model)
        with torch.autocast("cpu", dtype):
            half = kind.maps(model)
            outputs = kind.outputs(model)
    assert (full - half.float()).square().mean().sqrt() < kind.half_error[dtype] * full.std()
    assert all(torch.isfinite(output).all() for output in outputs)


@every_distinct_model
def test_tensor_parts_export(name):
    for part, example, other, dynamic in REDUCED[name].kind.parts(shared_model(name)):
        exported = torch.export.export(part, (example,), dynamic_shapes=dynamic).module()
        torch.testing.assert_close(part(other), exported(other), atol=1e-4, rtol=1e-4)


@every_distinct_model
def test_saved_weights_rebuild_the_model(name, tmp_path):
    model, kind = shared_model(name), REDUCED[name].kind
    save_model(tmp_path / "model.safetensors", model, licence="none")
    again = create_model(name, tmp_path / "model.safetensors")
    assert kind.settings(again) == kind.settings(model)
    with torch.inference_mode():
        for own, other in zip(kind.outputs(model), kind.outputs(again), strict=True):
            assert torch.equal(own, other)


@every_distinct_model
def test_seeded_training_is_deterministic(name):
    model, kind = reduced_model(name).train(), REDUCED[name].kind
    runs = []
    for _ in range(2):
        torch.manual_seed(4)
        runs.append(model(kind.inputs(), kind.targets()))
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


@every_distinct_model
def test_channels_last_gives_the_same(name):
    model, kind = settled_model(name), REDUCED[name].kind
    with torch.inference_mode():
        expected = kind.maps(model)
        model.to(memory_format=torch.channels_last)
        seen = []
        kind.trunk(model).register_forward_hook(lambda _, inputs, outputs: seen.extend([inputs[0], *outputs]))
        found = kind.maps(model)
    assert len(seen) > 1
    assert all(map.is_contiguous(memory_format=torch.channels_last) for map in seen)
    torch.testing.assert_close(found, expected, atol=1e-3 * expected.abs().max().item(), rtol=1e-3)
