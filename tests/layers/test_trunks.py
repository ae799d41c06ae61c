from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from pyposeext.errors import InputError
from pyposeext.layers.efficientnet_lite import EfficientNetLite0, convert_efficientnet_lite0
from pyposeext.layers.fpn import FeaturePyramid, LightFeaturePyramid
from pyposeext.layers.normalization import FrozenBatchNorm2d
from pyposeext.layers.resnet import ResNet, resnet_stage


@pytest.mark.parametrize(
    ("depth", "channels", "parameters"),
    # torchvision's published counts without the classifier.
    [
        (18, (64, 128, 256, 512), 11_689_512 - 513_000),
        (34, (64, 128, 256, 512), 21_797_672 - 513_000),
        (50, (256, 512, 1024, 2048), 25_557_032 - 2_049_000),
        (101, (256, 512, 1024, 2048), 44_549_160 - 2_049_000),
    ],
)
def test_resnet_shapes_and_size(depth, channels, parameters):
    trunk = ResNet(depth)
    assert sum(parameter.numel() for parameter in trunk.parameters()) == parameters
    with torch.inference_mode():
        features = trunk.eval()(torch.randn(1, 3, 64, 96))
    shapes = [(1, count, 64 // stride, 96 // stride) for count, stride in zip(channels, trunk.strides, strict=True)]
    assert [tuple(feature.shape) for feature in features] == shapes
    assert trunk.channels == channels


def test_resnet_with_frozen_norms_counts_its_buffers():
    trunk = ResNet(50, partial(FrozenBatchNorm2d, eps=0.0))
    assert sum(tensor.numel() for tensor in trunk.state_dict().values()) == 23_561_152
    assert {module.eps for module in trunk.modules() if isinstance(module, FrozenBatchNorm2d)} == {0.0}


@pytest.mark.parametrize(
    ("stages", "trains"), [(0, set()), (3, {"layer2", "layer3", "layer4"}), (4, {f"layer{i}" for i in range(1, 5)})]
)
def test_resnet_freezes_stages(stages, trains):
    trunk = ResNet(18, trainable_stages=stages)
    assert {name.split(".")[0] for name, p in trunk.named_parameters() if p.requires_grad} == trains


def test_resnet_with_the_stride_on_the_first_convolution():
    torch.manual_seed(0)
    late = ResNet(50).eval()
    early = ResNet(50, stride_in_1x1=True).eval()
    early.load_state_dict(late.state_dict())
    for trunk, strides in ((late, ((1, 1), (2, 2))), (early, ((2, 2), (1, 1)))):
        for stage in (trunk.layer2, trunk.layer3, trunk.layer4):
            assert (stage[0].conv1.stride, stage[0].conv2.stride) == strides
            assert (stage[1].conv1.stride, stage[1].conv2.stride) == ((1, 1), (1, 1))
        assert (trunk.layer1[0].conv1.stride, trunk.layer1[0].conv2.stride) == ((1, 1), (1, 1))
    with torch.inference_mode():
        image = torch.randn(1, 3, 64, 64)
        found, expected = early(image), late(image)
    assert torch.equal(found[0], expected[0])
    assert [map.shape for map in found] == [map.shape for map in expected]
    assert not torch.allclose(found[1], expected[1])


def test_resnet_up_to_its_third_stage_and_the_fourth_alone():
    torch.manual_seed(0)
    whole = ResNet(18).eval()
    trunk = ResNet(18, with_layer4=False).eval()
    stage = resnet_stage(18, 4, nn.BatchNorm2d).eval()
    trunk.load_state_dict({key: value for key, value in whole.state_dict().items() if not key.startswith("layer4")})
    stage.load_state_dict(whole.layer4.state_dict())
    with torch.inference_mode():
        image = torch.randn(1, 3, 64, 64)
        found, expected = trunk(image), whole(image)
        assert len(found) == 3
        assert torch.equal(stage(found[-1]), expected[-1])
    frozen = ResNet(18, trainable_stages=2, with_layer4=False)
    assert {name.split(".")[0] for name, p in frozen.named_parameters() if p.requires_grad} == {"layer3"}


def test_resnet_refuses_what_it_is_not():
    with pytest.raises(InputError, match="depth must be one of 18, 34, 50, 101, got 20"):
        ResNet(20)
    with pytest.raises(InputError, match=r"trainable_stages must be in 0\.\.5, got 6"):
        ResNet(18, trainable_stages=6)


def published_lite0_keys():
    """Names and shapes of the package's file, from its key layout."""
    own = EfficientNetLite0().state_dict()
    norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
    published = {}
    for key, value in own.items():
        parts = key.split(".")
        if parts[0] == "stem":
            name = f"_conv_stem.{parts[2]}" if parts[1] == "conv" else f"_bn0.{parts[2]}"
        else:
            unit = f"_{parts[2]}_conv" if parts[3] == "conv" else norms[parts[2]]
            name = f"_blocks.{parts[1]}.{unit}.{parts[4]}"
        published[name] = value
    classifier = {"_conv_head.weight": torch.zeros(1280, 320, 1, 1), "_bn1.weight": torch.zeros(1280)}
    return {**published, **classifier, "_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}


def test_lite0_shapes_and_size():
    trunk = EfficientNetLite0()
    # 4,652,008 parameters are published for the whole network.
    head = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert sum(parameter.numel() for parameter in trunk.parameters()) == 4_652_008 - head
    with torch.inference_mode():
        features = trunk.eval()(torch.randn(2, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [(2, 24, 16, 24), (2, 40, 8, 12), (2, 112, 4, 6), (2, 320, 2, 3)]


def test_lite0_takes_the_published_weights_strictly():
    published = published_lite0_keys()
    assert "_blocks.0._bn1.running_var" in published
    assert "_blocks.15._expand_conv.weight" in published
    trunk = EfficientNetLite0()
    trunk.load_state_dict(convert_efficientnet_lite0(published), strict=True)
    with pytest.raises(InputError, match=r"got the key 'layer1\.0\.conv1\.weight'"):
        convert_efficientnet_lite0({"layer1.0.conv1.weight": torch.zeros(1)})


def test_lite0_freezes_blocks_and_statistics():
    trunk = EfficientNetLite0(frozen_norm=True, frozen_blocks=3).train()
    frozen = {name for name, parameter in trunk.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[1] for name in frozen if name.startswith("blocks")} == {"0", "1", "2"}
    assert any(name.startswith("stem") for name in frozen)
    before = {name: buffer.clone() for name, buffer in trunk.named_buffers()}
    trunk(torch.randn(2, 3, 32, 32))[-1].sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in trunk.named_buffers())
    assert trunk.blocks[3].expand.norm.weight.grad is not None
    thawed = EfficientNetLite0().train()
    thawed(torch.randn(2, 3, 32, 32))
    assert thawed.stem.norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("build", "channels"),
    [(FeaturePyramid, 256), (LightFeaturePyramid, 96), (partial(FeaturePyramid, norm=nn.BatchNorm2d), 256)],
)
def test_pyramid_shapes_at_odd_sizes(build, channels):
    sizes = [(27, 43), (14, 22), (7, 11), (4, 6)]
    counts = (24, 40, 112, 320)
    pyramid = build(counts).eval()
    with torch.inference_mode():
        outputs = pyramid([torch.randn(1, count, *size) for count, size in zip(counts, sizes, strict=True)])
    assert [tuple(output.shape) for output in outputs] == [(1, channels, *size) for size in [*sizes, (2, 3)]]
    assert torch.equal(outputs[4], outputs[3][:, :, ::2, ::2])


def test_standard_pyramid_counts():
    counts = (256, 512, 1024, 2048)
    assert sum(p.numel() for p in FeaturePyramid(counts).parameters()) == 3_344_384
    version2 = FeaturePyramid(counts, norm=nn.BatchNorm2d)
    assert sum(p.numel() for p in version2.parameters()) == 3_350_536 - 8 * 2 * 256 - 8
    assert sum(t.numel() for t in version2.state_dict().values()) == 3_350_536
