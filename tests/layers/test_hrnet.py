from __future__ import annotations

import copy
import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyposeext.errors import InputError
from pyposeext.layers.hrnet import ExchangeModule, HRNet, Transition

SMALL_V1 = {"width": 16, "modules": (1, 1, 1), "blocks": 2, "stem_blocks": 1, "stem_width": 32}
SMALL_V2 = {"width": 18, "modules": (1, 3, 2), "blocks": 2, "stem_blocks": 2}


def meta_trunk(**arguments):
    """Without memory, to count."""
    with torch.device("meta"):
        return HRNet(**arguments)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def randomised(trunk):
    """Weights of an ordinary size, and norms that do something."""
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return trunk.eval()


@pytest.mark.parametrize(("width", "buffers"), [(32, 54_628), (48, 79_876)])
def test_keys_and_buffers_of_the_published_widths(width, buffers):
    trunk = meta_trunk(width=width)
    assert len(trunk.state_dict()) == 1754 - 2  # the published network's but for its last layer's weight and bias
    kinds = Counter(type(module) for module in trunk.modules())
    assert (kinds[nn.Conv2d], kinds[nn.BatchNorm2d]) == (293 - 1, 292)
    assert sum(buffer.numel() for buffer in trunk.buffers()) == buffers
    assert all(module.bias is None for module in trunk.modules() if isinstance(module, nn.Conv2d))
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)}


def test_parameters_by_part():
    trunk = meta_trunk()
    counts = {name: parameters(part) for name, part in trunk.named_children()}
    assert counts == {
        "conv1": 64 * 27,
        "bn1": 128,
        "conv2": 64 * 576,
        "bn2": 128,
        "layer1": 286_208,
        "transition1": 221_376,
        "stage2": 390_848,
        "transition2": 73_984,
        "stage3": 6_821_632,
        "transition3": 295_424,
        "stage4": 20_407_232,
    }


CONV_NORM = r"(0\.weight|1\.(weight|bias|running_mean|running_var|num_batches_tracked))"
BLOCK = r"(conv\d\.weight|bn\d\.(weight|bias|running_mean|running_var|num_batches_tracked))"
PATTERNS = (
    BLOCK,
    rf"layer1\.[0-3]\.{BLOCK}",
    rf"layer1\.0\.downsample\.{CONV_NORM}",
    rf"transition1\.0\.{CONV_NORM}",
    rf"transition(1\.1|2\.2|3\.3)\.0\.{CONV_NORM}",
    rf"stage2\.0\.branches\.[01]\.[0-3]\.{BLOCK}",
    rf"stage3\.[0-3]\.branches\.[0-2]\.[0-3]\.{BLOCK}",
    rf"stage4\.[0-2]\.branches\.[0-3]\.[0-3]\.{BLOCK}",
)


def exchange_names():
    """All names of exchanges: towards the finer by a 1x1 convolution, towards the coarser by one per halving."""
    rest = ["0.weight", *(f"1.{name}" for name in nn.BatchNorm2d(1).state_dict())]
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        for module in range(modules):
            targets = 1 if (stage, module) == (4, 2) else stage
            for target in range(targets):
                for source in range(stage):
                    prefix = f"stage{stage}.{module}.fuse_layers.{target}.{source}"
                    if source > target:
                        yield from (f"{prefix}.{name}" for name in rest)
                    for step in range(target - source):
                        yield from (f"{prefix}.{step}.{name}" for name in rest)


def test_names_are_the_published_ones():
    names = list(meta_trunk().state_dict())
    exchanges = set(exchange_names())
    assert {name for name in names if "fuse_layers" in name} == exchanges
    for name in set(names) - exchanges:
        assert any(re.fullmatch(pattern, name) for pattern in PATTERNS), name
    for pattern in PATTERNS:
        assert any(re.fullmatch(pattern, name) for name in names), pattern
    assert names[:2] == ["conv1.weight", "bn1.weight"]
    assert "stage4.2.fuse_layers.0.3.0.weight" in names
    assert "stage4.2.fuse_layers.1.0.0.0.weight" not in names
    assert "stage4.1.fuse_layers.3.0.2.0.weight" in names
    assert meta_trunk().state_dict()["stage4.1.fuse_layers.3.0.1.0.weight"].shape == (32, 32, 3, 3)
    assert meta_trunk().state_dict()["stage4.1.fuse_layers.3.0.2.0.weight"].shape == (256, 32, 3, 3)


def test_initialisation():
    trunk = HRNet(**SMALL_V1)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            assert 0.00095 < module.weight.std() < 0.00105
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_multiscale_output_adds_the_exchange_towards_the_coarser_branches():
    plain, full = meta_trunk(), meta_trunk(multiscale_output=True)
    more = set(full.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) < set(full.state_dict())
    assert {re.match(r"stage4\.2\.fuse_layers\.[123]\.", name) is not None for name in more} == {True}
    assert (plain.channels, plain.strides) == ((32,), (4,))
    assert (full.channels, full.strides) == ((32, 64, 128, 256), (4, 8, 16, 32))


@pytest.mark.parametrize(
    ("arguments", "millions"),
    # As the authors publish their ImageNet classifiers, head included.
    [(SMALL_V1, 13.2), (SMALL_V2, 15.6), ({"width": 18}, 21.3), ({"width": 32}, 41.2), ({"width": 48}, 77.5)],
)
def test_classifiers_have_the_published_sizes(arguments, millions):
    trunk = meta_trunk(**arguments, multiscale_output=True)

    def convolution(inputs, outputs, kernel, bias):
        return inputs * outputs * kernel**2 + bias * outputs + 2 * outputs

    total = parameters(trunk)
    for channels, inner in zip(trunk.channels, (32, 64, 128, 256), strict=True):  # a bottleneck with a shortcut each
        total += convolution(channels, inner, 1, False) + convolution(inner, inner, 3, False)
        total += convolution(inner, 4 * inner, 1, False) + convolution(channels, 4 * inner, 1, False)
    for channels in (128, 256, 512):
        total += convolution(channels, 2 * channels, 3, True)
    total += convolution(1024, 2048, 1, True) + 2048 * 1000 + 1000
    assert round(total / 1e6, 1) == millions


def plain_forward(weights, input, modules, blocks, stem_blocks, outputs):
    """HRNet from a state dict alone, written from the paper and the authors' names."""

    def norm(value, name):
        statistics = (weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(value, *statistics)

    def convolution(value, conv, bn, stride=1):
        weight = weights[f"{conv}.weight"]
        return norm(F.conv2d(value, weight, None, stride, weight.shape[-1] // 2), bn)

    def block(value, name):
        output = value
        count = 3 if f"{name}.conv3.weight" in weights else 2
        for index in range(1, count + 1):
            output = convolution(output, f"{name}.conv{index}", f"{name}.bn{index}")
            output = torch.relu(output) if index < count else output
        if f"{name}.downsample.0.weight" in weights:
            value = convolution(value, f"{name}.downsample.0", f"{name}.downsample.1")
        return torch.relu(output + value)

    def exchange(values, prefix, target):
        total = torch.zeros(())
        for source, value in enumerate(values):
            name = f"{prefix}.fuse_layers.{target}.{source}"
            if source > target:
                value = convolution(value, f"{name}.0", f"{name}.1")  # noqa: PLW2901
                for axis in (2, 3):
                    value = value.repeat_interleave(2 ** (source - target), dim=axis)  # noqa: PLW2901
            for step in range(target - source):
                value = convolution(value, f"{name}.{step}.0", f"{name}.{step}.1", 2)  # noqa: PLW2901
                value = torch.relu(value) if step < target - source - 1 else value  # noqa: PLW2901
            total = total + value
        return torch.relu(total)

    output = torch.relu(convolution(input, "conv1", "bn1", 2))
    output = torch.relu(convolution(output, "conv2", "bn2", 2))
    for index in range(stem_blocks):
        output = block(output, f"layer1.{index}")
    values = [
        torch.relu(convolution(output, "transition1.0.0", "transition1.0.1")),
        torch.relu(convolution(output, "transition1.1.0.0", "transition1.1.0.1", 2)),
    ]
    for stage, count in enumerate(modules, 2):
        if stage > 2:
            name = f"transition{stage - 1}.{stage - 1}.0"
            values.append(torch.relu(convolution(values[-1], f"{name}.0", f"{name}.1", 2)))
        for module in range(count):
            prefix = f"stage{stage}.{module}"
            for branch in range(stage):
                for index in range(blocks):
                    values[branch] = block(values[branch], f"{prefix}.branches.{branch}.{index}")
            last = stage == len(modules) + 1 and module == count - 1
            values = [exchange(values, prefix, target) for target in range(outputs if last else stage)]
    return values


@pytest.mark.parametrize(
    ("arguments", "outputs"),
    [(SMALL_V1, 1), ({**SMALL_V2, "width": 6, "multiscale_output": True}, 4), ({"width": 8}, 1), ({"width": 32}, 1)],
)
def test_forward_equals_a_plain_one_from_the_state_dict(arguments, outputs):
    torch.manual_seed(0)
    trunk = randomised(HRNet(**arguments))
    image = torch.randn(2, 3, 64, 96)
    counts = {key: arguments.get(key, default) for key, default in (("modules", (1, 4, 3)), ("blocks", 4))}
    with torch.inference_mode():
        found = trunk(image)
        expected = plain_forward(
            trunk.state_dict(), image, **counts, stem_blocks=arguments.get("stem_blocks", 4), outputs=outputs
        )
    assert len(found) == len(expected) == outputs
    for own, other in zip(found, expected, strict=True):
        assert own.shape == other.shape
        assert other.std() > 0.01
        torch.testing.assert_close(own, other, atol=1e-5 * other.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("size", [(256, 192), (384, 288), (256, 256)])
def test_branches_have_the_published_sizes(size):
    trunk = meta_trunk(multiscale_output=True)
    with torch.device("meta"):
        maps = trunk(torch.empty(1, 3, *size))
    height, width = size
    expected = [(1, 32 * 2**i, height // (4 * 2**i), width // (4 * 2**i)) for i in range(4)]
    assert [tuple(map.shape) for map in maps] == expected


def test_exchange_of_two_branches_by_hand():
    module = randomised(ExchangeModule((2, 3), 1, True, nn.BatchNorm2d))
    for branch in module.branches:
        nn.init.zeros_(branch[0].bn2.weight)
        nn.init.zeros_(branch[0].bn2.bias)  # the blocks then are ReLUs
    fine, coarse = torch.rand(1, 2, 4, 4), torch.rand(1, 3, 2, 2)
    (_, up), (down, _) = module.fuse_layers
    with torch.inference_mode():
        for norm in (up[1], down[0][1]):
            norm.running_mean.zero_()
            norm.bias.zero_()
            norm.running_var.fill_(1 - 1e-5)
            norm.weight.fill_(1)
        found = module([fine, coarse])
        raised = F.conv2d(coarse, up[0].weight)
        # Nearest: pixel (y, x) reads (y // 2, x // 2).
        raised = torch.stack([raised[..., y // 2, :] for y in range(4)], dim=2)
        raised = torch.stack([raised[..., x // 2] for x in range(4)], dim=3)
        lowered = F.conv2d(fine, down[0][0].weight, stride=2, padding=1)
    torch.testing.assert_close(found[0], torch.relu(fine + raised))
    torch.testing.assert_close(found[1], torch.relu(lowered + coarse))


def test_branches_are_left_alone_by_the_sum():
    """Every output reads the branches, so none may be overwritten by the sum of another."""
    torch.manual_seed(0)
    module = randomised(ExchangeModule((4, 8, 16), 1, True, nn.BatchNorm2d))
    maps = [torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4), torch.randn(1, 16, 2, 2)]
    kept = [map.clone() for map in maps]
    with torch.inference_mode():
        found = module(maps)
        assert all(torch.equal(map, copy) for map, copy in zip(maps, kept, strict=True))
        branches = [blocks(map) for blocks, map in zip(module.branches, maps, strict=True)]
        for target in (2, 1, 0):  # in the other order
            terms = [layer(map.clone()) for layer, map in zip(module.fuse_layers[target], branches, strict=True)]
            torch.testing.assert_close(found[target], torch.relu(terms[0] + terms[1] + terms[2]))


def test_transitions_pass_equal_branches_through():
    transition = Transition((8, 16), (8, 16, 32), nn.BatchNorm2d).eval()
    maps = [torch.randn(1, 8, 8, 8), torch.randn(1, 16, 4, 4)]
    with torch.inference_mode():
        first, second, third = transition(maps)
        expected = torch.relu(transition[2][0][1](transition[2][0][0](maps[1])))
    assert first is maps[0]
    assert second is maps[1]
    assert third.shape == (1, 32, 2, 2)
    torch.testing.assert_close(third, expected)


def inflated(module, frames):
    """A copy with convolutions over `frames` frames, whose kernels are the mean over time."""
    if isinstance(module, nn.Conv2d):
        kernel = frames if module.kernel_size[0] == 3 else 1
        stride, padding = (1, *module.stride), (kernel // 2, *module.padding)
        conv = nn.Conv3d(
            module.in_channels, module.out_channels, (kernel, *module.kernel_size), stride, padding, bias=False
        )
        conv.weight.data = module.weight.data[:, :, None].repeat(1, 1, kernel, 1, 1) / kernel
        return conv
    if isinstance(module, nn.BatchNorm2d):
        norm = nn.BatchNorm3d(module.num_features, module.eps, module.momentum)
        norm.load_state_dict(module.state_dict())
        return norm
    if isinstance(module, nn.Upsample):
        return nn.Upsample(scale_factor=(1, module.scale_factor, module.scale_factor), mode="nearest")
    copied = copy.copy(module)
    copied._modules = {name: inflated(child, frames) for name, child in module._modules.items() if child is not None}
    copied._modules.update({name: None for name, child in module._modules.items() if child is None})
    return copied


def test_replacing_its_modules_inflates_it():
    torch.manual_seed(0)
    trunk = randomised(HRNet(8, (1, 1), blocks=1, stem_blocks=1, stem_width=8, multiscale_output=True))
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        maps = trunk(image)
        clips = inflated(trunk, 3).eval()(image[:, :, None].repeat(1, 1, 31, 1, 1))
    for map, clip in zip(maps, clips, strict=True):
        assert clip.shape == (1, map.shape[1], 31, *map.shape[2:])
        # The same frame over and over gives the same everywhere, far from the first and the last.
        torch.testing.assert_close(clip[:, :, 15], map, atol=1e-4, rtol=1e-4)


def test_wrong_sizes():
    for name in ("width", "blocks", "stem_blocks", "stem_width"):
        with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
            HRNet(**{name: 0})
    for modules in ((), (1, 0)):
        with pytest.raises(InputError, match=r"modules must be a positive number for each stage .* got \("):
            HRNet(modules=modules)
