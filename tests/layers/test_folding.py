"""Folding changes the modules, not the numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyposeext.layers.efficientnet_lite import EfficientNetLite0
from pyposeext.layers.folding import fold_norms
from pyposeext.layers.fpn import FeaturePyramid
from pyposeext.layers.normalization import FrozenBatchNorm2d, group_norm
from pyposeext.layers.resnet import ResNet

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def norms_in(model):
    return sum(isinstance(module, NORMS) for module in model.modules())


@pytest.mark.parametrize(
    "build",
    [
        lambda: ResNet(18),
        lambda: ResNet(50, FrozenBatchNorm2d),
        EfficientNetLite0,
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8)),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)),
    ],
)
@torch.no_grad()
def test_outputs_stay(build):
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        if isinstance(module, NORMS):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            if module.weight is not None:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.uniform_(-0.3, 0.3)
    model.eval()
    image = torch.randn(2, 3, 64, 64)
    before = model(image)
    count = norms_in(model)
    assert fold_norms(model) == count > 0
    assert norms_in(model) == 0
    after = model(image)
    for one, other in zip(_list(before), _list(after), strict=True):
        torch.testing.assert_close(other, one, atol=2e-5 * float(one.abs().max()), rtol=0)


def test_norms_of_the_pyramid_and_those_that_do_not_follow_a_convolution():
    pyramid = FeaturePyramid((8, 8), 8, nn.BatchNorm2d).eval()
    assert fold_norms(pyramid) == 4
    lone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.BatchNorm2d(8)).eval()
    assert fold_norms(lone) == 0
    grouped = nn.Sequential(nn.Conv2d(3, 16, 1), group_norm(16)).eval()
    assert fold_norms(grouped) == 0


def test_training_models_are_refused():
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        fold_norms(ResNet(18).train())


def _list(value):
    return value if isinstance(value, (list, tuple)) else [value]
