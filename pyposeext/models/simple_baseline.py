"""Simple Baselines: a ResNet, three deconvolutions and a 1x1 convolution.

Xiao et al., "Simple Baselines for Human Pose Estimation and Tracking", ECCV 2018, section 2, and the authors' code
(github.com/microsoft/human-pose-estimation.pytorch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pyposeext.errors import InputError
from pyposeext.layers.resnet import ResNet
from pyposeext.models.registry import Checkpoint, register_model
from pyposeext.models.top_down import Decoding, TopDownPose, heatmap_layer, joints_of

_MODEL_ZOO = "https://drive.google.com/drive/folders/13_wJ6nC7my1KKouMkQMqyr9r1ZnLnukP"


class DeconvolutionHead(nn.Module):
    """Three deconvolutions that each double the resolution of the coarsest map, and a heatmap for each joint.

    Args:
        in_channels: of the coarsest map.
        num_joints: K.
        channels: of the deconvolutions.
    """

    def __init__(self, in_channels: int, num_joints: int, channels: int = 256) -> None:
        super().__init__()
        # One list of convolutions, norms and activations, whose numbers are those of the published files.
        layers: list[nn.Module] = []
        for index in range(3):
            before = in_channels if index == 0 else channels
            layers += [
                nn.ConvTranspose2d(before, channels, 4, 2, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        self.deconv_layers = nn.Sequential(*layers)
        for module in layers:
            if isinstance(module, nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.001)
        self.final_layer = heatmap_layer(channels, num_joints)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The last of the maps, [B, in_channels, h, w], to heatmaps [B, K, 8 h, 8 w]."""
        return self.final_layer(self.deconv_layers(features[-1]))


def _checkpoints(depth: int, sizes: Mapping[tuple[int, int], int]) -> tuple[Checkpoint, ...]:
    """The authors' files, by their input sizes and numbers of joints."""
    return tuple(
        Checkpoint(
            name=f"pose_resnet_{depth}_{height}x{width}",
            source=_MODEL_ZOO,
            licence="MIT (the authors' repository, which says of the files: for research purpose)",
            arguments={"num_joints": num_joints, "input_size": (height, width)},
            direct=False,
        )
        for (height, width), num_joints in sizes.items()
    )


_FILE_SIZES = {(256, 192): 17, (384, 288): 17, (256, 256): 16, (384, 384): 16}


def convert_simple_baseline(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A pose network of the authors' code as ours: deconvolutions and last layer are the head, all else the trunk.

    Raises:
        InputError: the names are not those of such a network.
    """
    expected = "state_dict must be of a ResNet pose network of Simple Baselines' code"
    for name in ("layer1.0.conv1.weight", "deconv_layers.0.weight", "final_layer.weight", "final_layer.bias"):
        if name not in state_dict:
            raise InputError(f"{expected}, but has no {name!r}")
    converted = {}
    for name, value in state_dict.items():
        if name.startswith(("deconv_layers.", "final_layer.")):
            converted[f"head.{name}"] = value
        elif name.startswith(("conv1.", "bn1.", "layer")):
            converted[f"trunk.{name}"] = value
        else:
            raise InputError(f"{expected}, but has {name!r}")
    return converted


@register_model(convert_simple_baseline, _checkpoints(50, _FILE_SIZES))
def simple_baseline_resnet50(
    num_joints: int = 17,
    input_size: Sequence[int] = (256, 192),
    skeleton: str | None = None,
    sigma: float | None = None,
    margin: float = 1.25,
    hard_joints: int | None = None,
    decoding: Decoding = "quarter",
) -> TopDownPose:
    """Simple Baselines with a ResNet-50 for the joints of one person in a crop (Xiao et al., ECCV 2018).

    The authors start from a ResNet trained on ImageNet; `TopDownPose.load_trunk` takes torchvision's.

    Args:
        num_joints: K; 17 are COCO's, 16 MPII's.
        input_size: (height, width) of the crops, multiples of 32. Published: 256 x 192 and 384 x 288 for COCO, 256 x
            256 and 384 x 384 for MPII.
        skeleton: the joints' names and pairs, as "posetrack18". None: COCO's for 17 joints, MPII's for 16, PoseTrack
            2017's for 15.
        sigma: of the training targets, in pixels of the heatmap. None: its height / 32, as published.
        margin: by which a person's box is enlarged before it is cut out.
        hard_joints: None, or how many of a crop's joints, those with the largest losses, train.
        decoding: how heatmaps become coordinates: "quarter" as published, "dark", or "none".
    """
    return _pose_network(50, **locals())


@register_model(convert_simple_baseline, arguments_of=simple_baseline_resnet50)
def simple_baseline_resnet18(**arguments: Any) -> TopDownPose:
    """Simple Baselines with a ResNet-18, not among the published; the arguments are `simple_baseline_resnet50`'s."""
    return _pose_network(18, **arguments)


@register_model(convert_simple_baseline, _checkpoints(101, _FILE_SIZES), arguments_of=simple_baseline_resnet50)
def simple_baseline_resnet101(**arguments: Any) -> TopDownPose:
    """Simple Baselines with a ResNet-101; the arguments are `simple_baseline_resnet50`'s."""
    return _pose_network(101, **arguments)


def _pose_network(
    depth: int, num_joints: int, input_size: Sequence[int], skeleton: str | None, **options: Any
) -> TopDownPose:
    joints = joints_of(num_joints, skeleton)
    trunk = ResNet(depth)
    head = DeconvolutionHead(trunk.channels[-1], num_joints)
    return TopDownPose(trunk, head, joints, input_size, **options)
