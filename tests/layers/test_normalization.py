from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyposeext.layers.normalization import ConvNorm, FrozenBatchNorm2d, group_norm


def randomised(norm):
    for name in ("weight", "bias", "running_mean"):
        getattr(norm, name).data.normal_()
    norm.running_var.data.uniform_(0.2, 3)
    return norm


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3])
def test_frozen_norm_is_batch_norm_in_evaluation(eps):
    batch = randomised(nn.BatchNorm2d(6, eps=eps)).eval()
    frozen = FrozenBatchNorm2d(6, eps=eps)
    frozen.load_state_dict(batch.state_dict(), strict=True)
    assert list(frozen.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    assert not list(frozen.parameters())
    input = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(frozen(input), batch(input))


def test_frozen_norm_survives_half_with_tiny_variances():
    frozen = FrozenBatchNorm2d(2, eps=0.0)
    frozen.running_var.fill_(1e-9)
    frozen.weight.fill_(1e-5)
    output = frozen.half()(torch.ones(1, 2, 2, 2, dtype=torch.float16))
    assert frozen.running_var.dtype == torch.float32
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.float(), torch.full((1, 2, 2, 2), 1e-5 / 1e-9**0.5), rtol=1e-3, atol=0)


def test_conv_norm_folds_to_the_same_numbers_and_gradients():
    unit = ConvNorm(4, 6, 3, 2, activation="relu6", frozen_norm=True)
    randomised(unit.norm)
    plain = nn.Sequential(copy.deepcopy(unit.conv), copy.deepcopy(unit.norm).eval(), nn.ReLU6())
    input = torch.randn(2, 4, 9, 7)
    statistics = unit.norm.running_mean.clone()
    folded, expected = unit.train()(input), plain(input)
    torch.testing.assert_close(folded, expected, atol=1e-5, rtol=1e-5)
    folded.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(unit.conv.weight.grad, plain[0].weight.grad, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(unit.norm.weight.grad, plain[1].weight.grad, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(unit.norm.bias.grad, plain[1].bias.grad, atol=1e-3, rtol=1e-4)
    assert torch.equal(unit.norm.running_mean, statistics)


def test_conv_norm_updates_its_statistics_unless_frozen():
    unit = ConvNorm(3, 8, norm=nn.BatchNorm2d).train()
    unit(torch.randn(4, 3, 6, 6))
    assert unit.norm.running_mean.abs().sum() > 0
    assert unit.norm.num_batches_tracked == 1


@pytest.mark.parametrize(("channels", "groups"), [(96, 6), (176, 11), (24, 3)])
def test_group_norm_has_groups_of_sixteen_or_eight(channels, groups):
    assert group_norm(channels).num_groups == groups
    assert ConvNorm(3, channels, norm=group_norm).train()(torch.randn(1, 3, 2, 2)).shape == (1, channels, 2, 2)
