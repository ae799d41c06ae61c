from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyposeext.errors import InputError
from pyposeext.models import convert_state_dict, create_model
from pyposeext.models.registry import model_entry
from pyposeext.models.simple_baseline import DeconvolutionHead
from pyposeext.models.weights import convert_checkpoint, state_dict_differences
from pyposeext.skeletons import COCO17, MPII16


def meta_model(name, **arguments):
    """Without memory, to count."""
    with torch.device("meta"):
        return create_model(name, **arguments)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def published_names(model):
    """A model's state dict as the authors' code would name it."""
    return {name.split(".", 1)[1]: value for name, value in model.state_dict().items()}


def test_parameters_by_arithmetic():
    trunk = 23_508_032  # torchvision's ResNet-50 without its classifier
    deconvolutions = (2048 * 256 * 16 + 2 * 256) + 2 * (256 * 256 * 16 + 2 * 256)
    total = trunk + deconvolutions + 256 * 17 + 17
    assert total == 33_999_697
    model = meta_model("simple_baseline_resnet50")
    assert parameters(model.trunk) == trunk
    assert parameters(model) == total
    assert parameters(meta_model("simple_baseline_resnet50", num_joints=16)) == total - 257


@pytest.mark.parametrize(
    ("name", "millions", "gigas"),
    [("simple_baseline_resnet50", 34.0, (8.9, 20.0)), ("simple_baseline_resnet101", 53.0, (12.4, 27.9))],
)
def test_published_sizes(name, millions, gigas):
    """Multiply-adds / 2^30, where a deconvolution is counted by its outputs, four times what it takes.

    ResNet-101's published figures are met, ResNet-50's are one percent lower than what its layers add up to.
    """
    model = meta_model(name)
    assert round(parameters(model) / 1e6, 1) == millions
    total = 0

    def count(conv, inputs, output):
        nonlocal total
        total += output.numel() * conv.in_channels * math.prod(conv.kernel_size)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    for size, published in zip([(256, 192), (384, 288)], gigas, strict=True):
        total = 0
        with torch.device("meta"):
            assert model(torch.empty(1, 3, *size)).shape == (1, 17, size[0] // 4, size[1] // 4)
        assert total / 2**30 == pytest.approx(published, rel=0.012 if name.endswith("50") else 0.003)


def test_head_by_its_definition():
    torch.manual_seed(0)
    head = DeconvolutionHead(6, 5, channels=4).eval()
    names = {name.rsplit(".", 1)[0] for name in head.state_dict()}
    assert names == {*(f"deconv_layers.{index}" for index in (0, 1, 3, 4, 6, 7)), "final_layer"}
    for module in head.modules():
        if isinstance(module, nn.ConvTranspose2d):
            assert module.bias is None
            assert (module.kernel_size, module.stride) == ((4, 4), (2, 2))
            assert module.weight.std() < 0.002
            nn.init.normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    assert (head.final_layer.bias == 0).all()
    features = torch.randn(2, 6, 3, 2)
    output = features
    weights = head.state_dict()
    with torch.inference_mode():
        for index in (0, 3, 6):
            # A deconvolution is the convolution of the map with zeros between its pixels, with the kernel turned round.
            spread = output.new_zeros(2, output.shape[1], 2 * output.shape[2] - 1, 2 * output.shape[3] - 1)
            spread[:, :, ::2, ::2] = output
            kernel = weights[f"deconv_layers.{index}.weight"].flip(2, 3).transpose(0, 1)
            output = F.conv2d(spread, kernel, padding=2)
            norm = {key: weights[f"deconv_layers.{index + 1}.{key}"][:, None, None] for key in ("weight", "bias")}
            mean, variance = (
                weights[f"deconv_layers.{index + 1}.running_{key}"][:, None, None] for key in ("mean", "var")
            )
            output = torch.relu((output - mean) / (variance + 1e-5).sqrt() * norm["weight"] + norm["bias"])
        expected = torch.einsum("bchw,kc->bkhw", output, weights["final_layer.weight"][:, :, 0, 0])
        found = head([torch.zeros(1), features])
    assert found.shape == (2, 5, 24, 16)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_published_names_convert_strictly(depth):
    model = meta_model(f"simple_baseline_resnet{depth}")
    published = published_names(model)
    firsts = {name.split(".")[0] for name in published}
    assert firsts == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "deconv_layers", "final_layer"}
    assert published["deconv_layers.0.weight"].shape[1:] == (256, 4, 4)
    converted = convert_state_dict(f"simple_baseline_resnet{depth}", published)
    assert state_dict_differences(model, converted) == []


def test_converted_weights_give_the_same_heatmaps(tmp_path):
    torch.manual_seed(0)
    name = "simple_baseline_resnet18"
    model = create_model(name, num_joints=16, input_size=(64, 64))
    torch.save({f"module.{key}": value for key, value in published_names(model).items()}, tmp_path / "file.pth.tar")
    output = tmp_path / "file.safetensors"
    arguments = {"num_joints": 16, "input_size": (64, 64)}
    convert_checkpoint(tmp_path / "file.pth.tar", name, output, arguments=arguments)
    crops = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(create_model(name, output)(crops), model(crops))


def test_other_networks_are_refused():
    published = published_names(meta_model("simple_baseline_resnet18"))
    expected = "must be of a ResNet pose network of Simple Baselines' code, but has"
    with pytest.raises(InputError, match=rf"{expected} no 'layer1\.0\.conv1\.weight'"):
        convert_state_dict("simple_baseline_resnet50", {"conv1.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=rf"{expected} 'fc\.weight'"):
        convert_state_dict("simple_baseline_resnet50", {**published, "fc.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"does not fit simple_baseline_resnet50: trunk\.layer1\.0\.conv3"):
        convert_state_dict("simple_baseline_resnet50", published)
    with pytest.raises(InputError, match="num_joints must be at least 1, got 0"):
        create_model("simple_baseline_resnet18", num_joints=0)


def test_torchvisions_classifier_gives_the_trunk():
    torch.manual_seed(0)
    model = create_model("simple_baseline_resnet18")
    classifier = {name: torch.rand_like(value.float()) for name, value in model.trunk.state_dict().items()}
    classifier.update({"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)})
    assert model.load_trunk(classifier) == []
    assert torch.equal(model.trunk.layer4[1].bn2.running_var, classifier["layer4.1.bn2.running_var"])


def test_published_files_are_known():
    for depth in (50, 101):
        name = f"simple_baseline_resnet{depth}"
        files = model_entry(name).checkpoints
        assert [file.name for file in files] == [
            f"pose_resnet_{depth}_{size}" for size in ("256x192", "384x288", "256x256", "384x384")
        ]
        for file in files:
            model = meta_model(name, **file.arguments)
            height, width = model.input_size
            assert file.name.endswith(f"{height}x{width}")
            assert model.skeleton is (MPII16 if height == width else COCO17)
            assert model.sigma == height / 128
            assert (file.sha256, file.direct) == ("", False)
            assert file.licence.startswith("MIT")
    assert model_entry("simple_baseline_resnet18").checkpoints == ()
