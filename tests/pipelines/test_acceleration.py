"""What is accelerated gives the same people."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from pyposeext.errors import InputError
from pyposeext.layers.normalization import ConvNorm
from pyposeext.models import create_model
from pyposeext.models.top_down import TopDownPose
from pyposeext.pipelines.acceleration import CompiledPart, accelerated, padded_count
from pyposeext.skeletons import COCO17

CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    trunk = nn.Sequential(ConvNorm(3, 16, 3, 2), ConvNorm(16, 32, 3, 2))
    for norm in (module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
    return TopDownPose(trunk, nn.Conv2d(32, 17, 1), COCO17, (64, 64)).eval()


@torch.inference_mode()
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_heatmaps_stay(model, precision, tolerance):
    crops = torch.randn(3, 3, 64, 64)
    before = model(crops)
    fast = accelerated(model, CPU, precision)
    assert next(fast.parameters()).dtype == getattr(torch, precision)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    torch.testing.assert_close(fast(crops.to(getattr(torch, precision))).float(), before, atol=tolerance, rtol=0.02)
    # The model itself is as it was.
    assert torch.equal(model(crops), before)


def test_a_detector_sees_the_same_features():
    torch.manual_seed(0)
    model = create_model("keypoint_rcnn_efficientnet_lite0_fpn")
    image = torch.rand(1, 3, 96, 64)
    with torch.inference_mode():
        pairs = list(zip(model.backbone(image), accelerated(model, CPU).backbone(image), strict=True))
    for before, after in pairs:
        torch.testing.assert_close(after, before, atol=1e-5 * float(before.abs().max()), rtol=0)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler here")
@torch.inference_mode()
def test_a_compiled_model_gives_the_same_joints(model):
    crops = torch.randn(2, 3, 64, 64)
    fast = accelerated(model, CPU, compiled=True)
    for flip in (False, True):
        for found, expected in zip(fast.estimate(crops, flip=flip), model.estimate(crops, flip=flip), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_results_of_a_compiled_part_are_its_callers(monkeypatch):
    """A CUDA graph writes every result to the same place."""
    place = torch.zeros(3)

    def graph(network, **_):
        class Graph(nn.Module):
            def forward(self, input):
                return place.copy_(network(input))

        return Graph()

    monkeypatch.setattr(torch, "compile", graph)
    part = CompiledPart(nn.Identity(), "reduce-overhead")
    first, second = part(torch.ones(3)), part(2 * torch.ones(3))
    assert (first.tolist(), second.tolist()) == ([1, 1, 1], [2, 2, 2])


def test_wrong_precision(model):
    with pytest.raises(InputError, match="precision must be one of float32, bfloat16, float16, got 'int8'"):
        accelerated(model, CPU, "int8")
    with pytest.raises(InputError, match="precision float16 needs a GPU"):
        accelerated(model, CPU, "float16")


def test_padded_counts():
    assert [padded_count(count, 48) for count in (0, 1, 2, 3, 5, 33, 48)] == [1, 1, 2, 4, 8, 48, 48]
    # PyTorch compiles 8 sizes of a function.
    assert len({padded_count(count, 300) for count in range(1, 301)}) == 7
