"""Every registered model at a size that a test can afford, and what the common tests need to know of its kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from pyposeext.layers.resnet import BasicBlock, Bottleneck
from pyposeext.models import create_model


@dataclass(frozen=True)
class Reduced:
    """A model's kind, its builder's arguments, and a learning rate with the number of steps in which it overfits.

    `like` names a model of the same code at another depth or with other constants, which stands for this one in the
    tests that train, export and save.
    """

    kind: Any
    arguments: dict[str, Any]
    learning_rate: float
    steps: int
    like: str | None = None


def sample_images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 96, 80, generator=generator), torch.rand(3, 70, 110, generator=generator)]


def sample_targets(num_joints=17):
    """One person in the first image and nobody in the second."""
    generator = torch.Generator().manual_seed(2)
    box = torch.tensor([[12.0, 10, 60, 86]])
    points = (
        box[:, None, :2] + torch.rand(1, num_joints, 2, generator=generator) * 0.9 * (box[:, 2:] - box[:, :2])[:, None]
    )
    keypoints = torch.cat([points, torch.full((1, num_joints, 1), 2.0)], dim=-1)
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "keypoints": torch.zeros(0, num_joints, 3),
    }
    return [{"boxes": box, "labels": torch.ones(1, dtype=torch.int64), "keypoints": keypoints}, empty]


def quieten_residual_branches(model):
    """Lets them weigh little, as in a trained network: random ones blow up every value and every rounding error."""
    for block in model.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            nn.init.constant_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight, 0.1)


class RegionModel:
    """R-CNNs: images of any size to detections."""

    losses = ("loss_box_reg", "loss_classifier", "loss_keypoint", "loss_objectness", "loss_rpn_box_reg")
    falling = ("loss_keypoint", "loss_classifier", "loss_objectness")
    # Under autocast, in the mean over the maps, in their standard deviations.
    half_error: ClassVar = {torch.bfloat16: 0.03, torch.float16: 0.004}

    @staticmethod
    def inputs():
        return sample_images()

    @staticmethod
    def targets():
        return sample_targets()

    @staticmethod
    def outputs(model):
        """Everything that the model says of the inputs, as tensors."""
        return [found[key] for found in model(sample_images()) for key in sorted(found)]

    @staticmethod
    def maps(model):
        """What does not depend on a choice, and so can be compared between precisions and layouts."""
        boxes = [torch.tensor([[3.0, 4, 50, 90]]), torch.tensor([[20.0, 8, 70, 60]])]
        found = model.poses_in_boxes(sample_images(), boxes, heatmaps=True)
        return torch.cat([image["keypoint_heatmaps"] for image in found])

    @staticmethod
    def settle(model):
        """Gives the outputs a sensible size, where random weights do not."""
        quieten_residual_branches(model)

    @staticmethod
    def trunk(model):
        """The module that sees the images."""
        return model.backbone

    @staticmethod
    def parts(model):
        """What can be exported: modules, example inputs, others to try, and which sizes vary."""
        heads = model.roi_heads
        channels = model.backbone.fpn.out_channels
        image = torch.rand(1, 3, 96, 96)
        rois = {0: torch.export.Dim("rois", min=1, max=4096)}
        yield model.backbone, image, image, None
        for part, size in (
            (nn.Sequential(heads.box_head, heads.box_predictor), 7),
            (nn.Sequential(heads.keypoint_head, heads.keypoint_predictor), 14),
        ):
            yield part, torch.rand(3, channels, size, size), torch.rand(5, channels, size, size), (rois,)

    @staticmethod
    def settings(model):
        """What a weight file must bring back."""
        return model.transform, model.roi_heads.settings


class MaskModel(RegionModel):
    """R-CNNs with a mask branch and no keypoint branch."""

    losses = ("loss_box_reg", "loss_classifier", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
    falling = ("loss_mask", "loss_classifier", "loss_objectness")

    @staticmethod
    def targets():
        first, second = sample_targets()
        masks = torch.zeros(1, 96, 80, dtype=torch.uint8)
        masks[0, 20:70, 20:50] = 1
        return [{**first, "masks": masks}, {**second, "masks": torch.zeros(0, 70, 110, dtype=torch.bool)}]

    @staticmethod
    def maps(model):
        batch, _ = model.transform(sample_images(), None, False, memory_format=model._memory_format())
        boxes = [torch.tensor([[3.0, 4, 50, 90]]), torch.tensor([[20.0, 8, 70, 60]])]
        labels = [torch.ones(1, dtype=torch.int64)] * 2
        logits = []
        hook = model.roi_heads.mask_predictor.register_forward_hook(lambda _, inputs, output: logits.append(output))
        model.roi_heads.masks(model.backbone(batch.tensor)[:4], boxes, labels)
        hook.remove()
        return logits[0]

    @staticmethod
    def parts(model):
        heads = model.roi_heads
        image = torch.rand(1, 3, 96, 96)
        rois = {0: torch.export.Dim("rois", min=1, max=4096)}
        yield model.backbone, image, image, None
        if heads.mask_pool is None:
            parts = ((heads.box_head, heads.box_predictor), (heads.box_head, heads.mask_predictor))
            channels, sizes = 1024, (14, 14)
        else:
            parts = ((heads.box_head, heads.box_predictor), (heads.mask_head, heads.mask_predictor))
            channels, sizes = 256, (7, 14)
        for part, size in zip(parts, sizes, strict=True):
            example, other = torch.rand(3, channels, size, size), torch.rand(5, channels, size, size)
            yield nn.Sequential(*part), example, other, (rois,)


class TopDownModel:
    """One person in a crop: crops to heatmaps."""

    losses = ("loss_heatmap",)
    falling = ("loss_heatmap",)
    half_error: ClassVar = {torch.bfloat16: 0.1, torch.float16: 0.01}

    @staticmethod
    def inputs():
        """Crops in the layout that `TopDownPose.crops` gives them."""
        crops = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 4 - 2
        return crops.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def targets(num_joints=17):
        """All joints of the first crop, and a few of the second."""
        generator = torch.Generator().manual_seed(2)
        keypoints = torch.rand(2, num_joints, 3, generator=generator) * 60
        keypoints[0, :, 2], keypoints[1, :, 2] = 2, 0
        keypoints[1, ::3, 2] = 1
        weights = torch.linspace(0.5, 1.5, num_joints)
        return [{"keypoints": keypoints[0], "weights": weights}, {"keypoints": keypoints[1]}]

    @classmethod
    def outputs(cls, model):
        return [model(cls.inputs()), *model.estimate(cls.inputs())]

    @classmethod
    def maps(cls, model):
        return model(cls.inputs())

    @classmethod
    def settle(cls, model):
        quieten_residual_branches(model)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.cat([cls.inputs().roll(8 * shift, 3) for shift in range(4)]), cls.targets() * 4)
        for norm in norms:
            norm.momentum = 0.1
        model.eval()

    @staticmethod
    def trunk(model):
        return model.trunk

    @staticmethod
    def parts(model):
        crops = {0: torch.export.Dim("crops", min=1, max=4096)}
        yield nn.Sequential(model.trunk, model.head), torch.rand(2, 3, 64, 32), torch.rand(3, 3, 64, 32), (crops,)

    @staticmethod
    def settings(model):
        return model.input_size, model.sigma, model.margin, model.hard_joints, model.decoding, model.skeleton


_SMALL_REGIONS = {
    "min_size": 96,
    "max_size": 128,
    "frozen_norm": False,
    "proposals": (30, 15),
    "detections_per_image": 4,
    "keypoint_rois_per_person": 1,
}
_SMALL_MASKS = {
    "num_classes": 2,
    **{key: value for key, value in _SMALL_REGIONS.items() if key != "keypoint_rois_per_person"},
}
# Here every proposal passes through the last stage of the trunk.
_SMALL_C4 = {**_SMALL_MASKS, "candidates": (60, 30), "proposals": (6, 4)}
_SMALL_CROPS = {"input_size": (64, 64), "sigma": 1.0}

_KEYPOINT_50, _MASK_18, _MASK_C4 = "keypoint_rcnn_resnet50_fpn", "mask_rcnn_resnet18_fpn", "mask_rcnn_resnet50_c4"

# With batch norms over two small images, losses bounce, the deepest trunks' most.
REDUCED = {
    "hrnet_w16": Reduced(TopDownModel, _SMALL_CROPS, 1e-4, 5),
    "hrnet_w18_small": Reduced(TopDownModel, _SMALL_CROPS, 3e-4, 7),
    "hrnet_w32": Reduced(TopDownModel, _SMALL_CROPS, 1e-4, 5),
    "hrnet_w48": Reduced(TopDownModel, _SMALL_CROPS, 1e-4, 5),
    "keypoint_rcnn_efficientnet_lite0_fpn": Reduced(RegionModel, _SMALL_REGIONS, 1e-3, 5),
    "keypoint_rcnn_resnet18_fpn": Reduced(RegionModel, _SMALL_REGIONS, 1e-4, 8),
    "keypoint_rcnn_resnet50_fpn": Reduced(RegionModel, _SMALL_REGIONS, 1e-4, 5),
    "keypoint_rcnn_resnet101_fpn": Reduced(RegionModel, _SMALL_REGIONS, 2e-5, 8, _KEYPOINT_50),
    "keypoint_rcnn_resnet50_fpn_detectron2": Reduced(RegionModel, _SMALL_REGIONS, 1e-4, 5, _KEYPOINT_50),
    "keypoint_rcnn_resnet101_fpn_detectron2": Reduced(RegionModel, _SMALL_REGIONS, 2e-5, 8, _KEYPOINT_50),
    "mask_rcnn_resnet18_fpn": Reduced(MaskModel, _SMALL_MASKS, 1e-4, 5),
    "mask_rcnn_resnet50_fpn": Reduced(MaskModel, _SMALL_MASKS, 1e-4, 5, _MASK_18),
    "mask_rcnn_resnet101_fpn": Reduced(MaskModel, _SMALL_MASKS, 2e-5, 8, _MASK_18),
    "mask_rcnn_resnet50_fpn_detectron2": Reduced(MaskModel, _SMALL_MASKS, 1e-4, 5, _MASK_18),
    "mask_rcnn_resnet101_fpn_detectron2": Reduced(MaskModel, _SMALL_MASKS, 2e-5, 8, _MASK_18),
    "mask_rcnn_resnet50_fpn_v2": Reduced(MaskModel, _SMALL_MASKS, 1e-4, 5),
    "mask_rcnn_resnet50_c4": Reduced(MaskModel, _SMALL_C4, 1e-4, 4),
    "mask_rcnn_resnet101_c4": Reduced(MaskModel, _SMALL_C4, 1e-4, 4, _MASK_C4),
    "mask_rcnn_resnet50_c4_detectron2": Reduced(MaskModel, _SMALL_C4, 1e-4, 4, _MASK_C4),
    "mask_rcnn_resnet101_c4_detectron2": Reduced(MaskModel, _SMALL_C4, 1e-4, 4, _MASK_C4),
    "simple_baseline_resnet18": Reduced(TopDownModel, _SMALL_CROPS, 1e-4, 5),
    "simple_baseline_resnet50": Reduced(TopDownModel, _SMALL_CROPS, 1e-4, 5),
    "simple_baseline_resnet101": Reduced(TopDownModel, _SMALL_CROPS, 1e-4, 5),
}


def names_of(kind):
    """The models of that kind."""
    return [name for name, reduced in REDUCED.items() if reduced.kind is kind]


def distinct_names():
    """The models that stand for themselves."""
    return [name for name, reduced in REDUCED.items() if reduced.like is None]


def reduced_model(name, **arguments):
    torch.manual_seed(0)
    return create_model(name, **{**REDUCED[name].arguments, **arguments})


def settled_model(name):
    """In evaluation mode, with outputs that are worth comparing."""
    model = reduced_model(name)
    REDUCED[name].kind.settle(model)
    return model
