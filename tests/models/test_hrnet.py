from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from pyposeext.errors import InputError
from pyposeext.layers.folding import fold_norms
from pyposeext.layers.hrnet import HRNet
from pyposeext.models import convert_state_dict, create_model, list_models
from pyposeext.models.registry import model_entry
from pyposeext.models.weights import convert_checkpoint, load_checkpoint, state_dict_differences
from pyposeext.skeletons import COCO17, MPII16, POSETRACK17, POSETRACK18
from tests.models.reduced import TopDownModel, settled_model

NAMES = ["hrnet_w16", "hrnet_w18_small", "hrnet_w32", "hrnet_w48"]
SMALLEST = "hrnet_w18_small"


def meta_model(name, **arguments):
    """Without memory, to count."""
    with torch.device("meta"):
        return create_model(name, **arguments)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(model, size):
    """Of all convolutions, for one crop."""
    total = 0

    def count(conv, inputs, output):
        nonlocal total
        total += output.numel() * conv.in_channels // conv.groups * math.prod(conv.kernel_size)

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.device("meta"):
        model(torch.empty(1, 3, *size))
    for hook in hooks:
        hook.remove()
    return total


def published_names(model):
    """A model's state dict as the authors' code would name it."""
    state_dict = {}
    for name, value in model.state_dict().items():
        part, rest = name.split(".", 1)
        state_dict[rest if part == "trunk" else f"final_layer.{rest.split('.')[-1]}"] = value
    return state_dict


def test_names():
    assert set(NAMES) < set(list_models())


@pytest.mark.parametrize(
    ("name", "num_joints", "count"),
    [
        ("hrnet_w32", 17, 28_536_113),
        ("hrnet_w32", 16, 28_536_080),
        ("hrnet_w32", 15, 28_536_047),
        ("hrnet_w48", 17, 63_595_745),
        ("hrnet_w48", 16, 63_595_696),
        ("hrnet_w48", 15, 63_595_647),
    ],
)
def test_parameters(name, num_joints, count):
    model = meta_model(name, num_joints=num_joints)
    assert parameters(model) == count
    assert parameters(model.head) == model.trunk.channels[0] * num_joints + num_joints
    assert len(model.state_dict()) == 1754
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 293
    assert [conv for conv in convs if conv.bias is not None] == [model.head.conv]
    assert model.skeleton is {17: COCO17, 16: MPII16, 15: POSETRACK17}[num_joints]


@pytest.mark.parametrize(
    ("name", "size", "gigas"),
    # In units of 2^30, as the authors publish them.
    [
        ("hrnet_w32", (256, 192), 7.12),
        ("hrnet_w48", (256, 192), 14.61),
        ("hrnet_w32", (384, 288), 16.02),
        ("hrnet_w48", (384, 288), 32.88),
        ("hrnet_w32", (256, 256), 9.49),
        ("hrnet_w48", (256, 256), 19.49),
    ],
)
def test_multiply_adds(name, size, gigas):
    model = meta_model(name, input_size=size, num_joints=16 if size == (256, 256) else 17)
    count = multiply_adds(model, size)
    assert round(count / 2**30, 2) == gigas
    exact = {"hrnet_w32": 7_645_003_776, "hrnet_w48": 15_691_825_152}
    assert size != (256, 192) or count == exact[name]


def test_the_smaller_ones():
    """W16 is W32 at half the width; W18-small-v1 has one module of two blocks a stage and a quarter of the stem."""
    half, small = meta_model("hrnet_w16"), meta_model(SMALLEST)
    assert [name for name, _ in half.named_parameters()] == [
        name for name, _ in meta_model("hrnet_w32").named_parameters()
    ]
    assert half.trunk.channels == small.trunk.channels == (16,)
    assert small.trunk.layer1[0].conv2.weight.shape == (32, 32, 3, 3)
    assert [len(small.trunk.get_submodule(name)) for name in ("layer1", "stage2", "stage3", "stage4")] == [1, 1, 1, 1]
    assert len(small.trunk.stage4[0].branches[3]) == 2
    assert parameters(half) == 7_445_889
    assert parameters(small) == 1_284_961


def test_the_skeleton_may_be_another_of_so_many_joints():
    assert meta_model("hrnet_w32", skeleton="posetrack18").skeleton is POSETRACK18
    assert meta_model("simple_baseline_resnet18", skeleton="posetrack18").skeleton is POSETRACK18
    with pytest.raises(InputError, match="skeleton must be one of 17 joints, got 'mpii16' with 16"):
        meta_model("hrnet_w32", skeleton="mpii16")
    with pytest.raises(InputError, match=r"skeleton must be one of coco17, .*, got 'nobody'"):
        meta_model("hrnet_w32", skeleton="nobody")


@pytest.mark.parametrize("name", [SMALLEST, "simple_baseline_resnet18"])
def test_norms_fold_into_the_convolutions(name):
    model = settled_model(name)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    with torch.inference_mode():
        expected = TopDownModel.maps(model)
        assert fold_norms(model) == norms
        found = TopDownModel.maps(model)
    torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)


def test_arguments_survive_json():
    arguments = {
        "num_joints": 16,
        "input_size": (256, 256),
        "skeleton": None,
        "hard_joints": 8,
        "decoding": "dark",
        "sigma": 1.5,
        "margin": 1.2,
    }
    model = create_model(SMALLEST, **json.loads(json.dumps(arguments)))
    assert json.loads(json.dumps(model.model_arguments)) == {**arguments, "input_size": [256, 256]}
    assert (model.input_size, model.hard_joints, model.decoding) == ((256, 256), 8, "dark")
    assert (model.sigma, model.margin, model.multiple) == (1.5, 1.2, 32)
    with pytest.raises(
        InputError, match=r"model hrnet_w48 takes the arguments num_joints, input_size, .*, got 'depth'"
    ):
        create_model("hrnet_w48", depth=3)
    with pytest.raises(InputError, match=r"input_size must be \(height, width\), multiples of 32, got \(256, 200\)"):
        create_model(SMALLEST, input_size=(256, 200))
    with pytest.raises(InputError, match="num_joints must be at least 1, got 0"):
        create_model(SMALLEST, num_joints=0)


@pytest.mark.parametrize("name", ["hrnet_w32", "hrnet_w48"])
def test_published_names_convert_strictly(name):
    model = meta_model(name)
    published = published_names(model)
    assert len(published) == 1754
    assert {"final_layer.weight", "conv1.weight", "stage4.2.fuse_layers.0.3.0.weight"} < set(published)
    converted = convert_state_dict(name, published)
    assert state_dict_differences(model, converted) == []
    assert list(converted) == list(model.state_dict())
    published.pop("stage3.1.branches.2.3.bn1.running_var")
    with pytest.raises(
        InputError, match=rf"not fit {name}: trunk\.stage3\.1\.branches\.2\.3\.bn1\.running_var is missing$"
    ):
        convert_state_dict(name, published)


def test_converted_weights_give_the_same_heatmaps(tmp_path):
    torch.manual_seed(0)
    model = create_model(SMALLEST, num_joints=16, input_size=(64, 64))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    crops = torch.randn(2, 3, 64, 64)
    published = published_names(model)
    files = {
        "flat": published,
        "parallel": {"epoch": 1, "state_dict": {f"module.{k}": v for k, v in published.items()}},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pth")
        output = tmp_path / f"{name}.safetensors"
        arguments = {"num_joints": 16, "input_size": (64, 64)}
        manifest = convert_checkpoint(tmp_path / f"{name}.pth", SMALLEST, output, arguments=arguments)
        assert manifest["skeleton"] == "mpii16"
        again = create_model(SMALLEST, output)
        with torch.inference_mode():
            assert torch.equal(model(crops), again(crops))
            assert model(crops).std() > 0.1


def test_a_file_brings_its_arguments_by_its_name(tmp_path):
    torch.save(published_names(create_model("hrnet_w32", num_joints=16)), tmp_path / "pose_hrnet_w32_256x256.pth")
    output = tmp_path / "out.safetensors"
    known = {"checkpoint": "pose_hrnet_w32_256x256"}
    manifest = convert_checkpoint(tmp_path / "pose_hrnet_w32_256x256.pth", None, output, "float16", **known)
    assert manifest["model"] == "hrnet_w32"
    assert manifest["licence"].startswith("MIT")
    model = create_model("hrnet_w32", output)
    assert (model.skeleton, model.input_size, model.sigma) == (MPII16, (256, 256), 2)


def test_other_networks_are_refused():
    published = published_names(meta_model(SMALLEST))
    with pytest.raises(InputError, match=r"an HRNet pose network of its authors' code, but has no 'conv2\.weight'"):
        convert_state_dict("hrnet_w32", {"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"but has 'classifier\.weight'"):
        convert_state_dict("hrnet_w32", {**published, "classifier.weight": torch.zeros(1)})
    without_head = {name: value for name, value in published.items() if not name.startswith("final_layer")}
    with pytest.raises(InputError, match=r"but has no 'final_layer\.weight'"):
        convert_state_dict("hrnet_w32", without_head)
    with pytest.raises(InputError, match=r"does not fit hrnet_w16: trunk\.layer1\.1\.conv1\.weight is missing"):
        convert_state_dict("hrnet_w16", published)
    narrow = published_names(meta_model("hrnet_w16"))
    with pytest.raises(
        InputError, match=r"does not fit hrnet_w32: trunk\.transition1\.0\.0\.weight is \[16, 256, 3, 3\]"
    ):
        convert_state_dict("hrnet_w32", narrow)


def test_an_imagenet_classifier_gives_its_trunk(tmp_path):
    """A classifier has the exchange towards all four branches and a head of its own."""
    torch.manual_seed(0)
    classifier = HRNet(16, (1, 1, 1), 2, 1, 32, multiscale_output=True)
    state_dict = {f"module.{name}": torch.rand_like(value.float()) for name, value in classifier.state_dict().items()}
    head = (
        "incre_modules.0.0.conv1.weight",
        "downsamp_modules.0.0.weight",
        "final_layer.0.weight",
        "classifier.weight",
    )
    state_dict.update({f"module.{name}": torch.zeros(1) for name in head})
    torch.save({"state_dict": state_dict}, tmp_path / "classifier.pth")
    model = create_model(SMALLEST)
    before = model.head.conv.weight.clone()
    unused = model.load_trunk(load_checkpoint(tmp_path / "classifier.pth"))
    assert unused
    assert {name.rsplit(".fuse_layers.", 1)[0] for name in unused} == {"stage4.0"}
    assert {name.split(".")[3] for name in unused} == {"1", "2", "3"}
    for name, value in model.trunk.state_dict().items():
        assert torch.equal(value.float(), state_dict[f"module.{name}"]) or name.endswith("num_batches_tracked")
    assert torch.equal(model.head.conv.weight, before)
    with pytest.raises(InputError, match=r"weights do not fit HRNet: layer1\.1\.conv1\.weight is missing"):
        create_model("hrnet_w16").load_trunk(load_checkpoint(tmp_path / "classifier.pth"))


def test_published_files_are_known():
    files = {name: model_entry(name).checkpoints for name in NAMES}
    assert {name: [file.name for file in known] for name, known in files.items()} == {
        "hrnet_w16": [],
        "hrnet_w18_small": [],
        "hrnet_w32": ["pose_hrnet_w32_256x192", "pose_hrnet_w32_384x288", "pose_hrnet_w32_256x256"],
        "hrnet_w48": ["pose_hrnet_w48_256x192", "pose_hrnet_w48_384x288"],
    }
    for name, known in files.items():
        for file in known:
            model = meta_model(name, **file.arguments)
            assert file.name == f"pose_{name}_{model.input_size[0]}x{model.input_size[1]}"
            assert len(model.skeleton) == (16 if file.name.endswith("256x256") else 17)
            assert (file.sha256, file.direct) == ("", False)
            assert file.source.startswith("https://")
            assert file.licence.startswith("MIT")
