"""HRNet for top-down pose: W32 and W48 as published, and two smaller ones.

Sun et al., "Deep High-Resolution Representation Learning for Human Pose Estimation", CVPR 2019, and the authors' code
(github.com/leoxiaobin/deep-high-resolution-net.pytorch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pyposeext.errors import InputError
from pyposeext.layers.hrnet import HRNet
from pyposeext.models.registry import Checkpoint, register_model
from pyposeext.models.top_down import Decoding, HeatmapHead, TopDownPose, joints_of

_MODEL_ZOO = "https://drive.google.com/drive/folders/1hOTihvbyIxsm5ygDpbUuJ7O_tzv4oXjC"


def _checkpoint(width: int, num_joints: int, input_size: tuple[int, int]) -> Checkpoint:
    """A pose network as its authors named it; COCO's and MPII's differ in their input sizes."""
    return Checkpoint(
        name=f"pose_hrnet_w{width}_{input_size[0]}x{input_size[1]}",
        source=_MODEL_ZOO,
        licence="MIT (the authors' repository)",
        arguments={"num_joints": num_joints, "input_size": input_size},
        direct=False,
    )


_W32_FILES = (_checkpoint(32, 17, (256, 192)), _checkpoint(32, 17, (384, 288)), _checkpoint(32, 16, (256, 256)))
_W48_FILES = (_checkpoint(48, 17, (256, 192)), _checkpoint(48, 17, (384, 288)))


def convert_hrnet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A pose network of the authors' code as ours: the last layer is the head and all else the trunk.

    Raises:
        InputError: the names are not those of such a network.
    """
    for name in ("conv2.weight", "stage4.0.fuse_layers.0.1.0.weight", "final_layer.weight", "final_layer.bias"):
        if name not in state_dict:
            raise InputError(f"state_dict must be of an HRNet pose network of its authors' code, but has no {name!r}")
    parts = ("conv", "bn", "layer1", "transition", "stage")
    converted = {}
    for name, value in state_dict.items():
        if name in ("final_layer.weight", "final_layer.bias"):
            converted[name.replace("final_layer", "head.conv")] = value
        elif name.startswith(parts):
            converted[f"trunk.{name}"] = value
        else:
            raise InputError(f"state_dict must be of an HRNet pose network of its authors' code, but has {name!r}")
    return converted


@register_model(convert_hrnet, _W32_FILES)
def hrnet_w32(
    num_joints: int = 17,
    input_size: Sequence[int] = (256, 192),
    skeleton: str | None = None,
    sigma: float | None = None,
    margin: float = 1.25,
    hard_joints: int | None = None,
    decoding: Decoding = "quarter",
) -> TopDownPose:
    """HRNet-W32 for the joints of one person in a crop (Sun et al., CVPR 2019).

    Args:
        num_joints: K; 17 are COCO's, 16 MPII's.
        input_size: (height, width) of the crops, multiples of 32. Published: 256 x 192 and 384 x 288 for COCO, 256 x
            256 for MPII.
        skeleton: the joints' names and pairs, as "posetrack18". None: COCO's for 17 joints, MPII's for 16, PoseTrack
            2017's for 15.
        sigma: of the training targets, in pixels of the heatmap. None: its height / 32, as published.
        margin: by which a person's box is enlarged before it is cut out.
        hard_joints: None, or how many of a crop's joints, those with the largest losses, train.
        decoding: how heatmaps become coordinates: "quarter" as published, "dark", or "none".
    """
    return _pose_network(HRNet(32), **locals())


@register_model(convert_hrnet, _W48_FILES, arguments_of=hrnet_w32)
def hrnet_w48(**arguments: Any) -> TopDownPose:
    """HRNet-W48 (Sun et al., CVPR 2019); the arguments are `hrnet_w32`'s."""
    return _pose_network(HRNet(48), **arguments)


@register_model(convert_hrnet, arguments_of=hrnet_w32)
def hrnet_w16(**arguments: Any) -> TopDownPose:
    """HRNet-W32 at half the width, this package's own, nowhere published; the arguments are `hrnet_w32`'s."""
    return _pose_network(HRNet(16), **arguments)


@register_model(convert_hrnet, arguments_of=hrnet_w32)
def hrnet_w18_small(**arguments: Any) -> TopDownPose:
    """The trunk of HRNet-W18-C-small-v1, an ImageNet classifier of the authors, with a pose head.

    It is far shallower than the others, and 16 channels wide in spite of its name: one bottleneck, and one exchange
    module of two blocks a branch in every stage (github.com/HRNet/HRNet-Image-Classification,
    `cls_hrnet_w18_small_v1`). The arguments are `hrnet_w32`'s.
    """
    trunk = HRNet(16, modules=(1, 1, 1), blocks=2, stem_blocks=1, stem_width=32)
    return _pose_network(trunk, **arguments)


def _pose_network(
    trunk: HRNet, num_joints: int, input_size: Sequence[int], skeleton: str | None, **options: Any
) -> TopDownPose:
    joints = joints_of(num_joints, skeleton)
    head = HeatmapHead(trunk.channels[0], num_joints)
    return TopDownPose(trunk, head, joints, input_size, multiple=trunk.multiple, **options)
