"""Names and shapes of the tensors in detectron2's R-CNN files, from its class definitions."""

from __future__ import annotations


def norm_names(name, channels):
    return {f"{name}.norm.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def stage_names(prefix, stage, blocks):
    names = {}
    width, channels = 64 * 2 ** (stage - 2), 256 * 2 ** (stage - 2)
    for block in range(blocks):
        before = (64 if stage == 2 else channels // 2) if block == 0 else channels
        name = f"{prefix}res{stage}.{block}"
        shapes = {"conv1": (width, before, 1, 1), "conv2": (width, width, 3, 3), "conv3": (channels, width, 1, 1)}
        if block == 0:
            shapes["shortcut"] = (channels, before, 1, 1)
        for conv, shape in shapes.items():
            names |= {f"{name}.{conv}.weight": shape, **norm_names(f"{name}.{conv}", shape[0])}
    return names


def layer(name, *shape, bias=None):
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0] if bias is None else bias,)}


def detector_names(prefix, anchors, channels):
    head = "proposal_generator.rpn_head"
    return {
        f"{prefix}stem.conv1.weight": (64, 3, 7, 7),
        **norm_names(f"{prefix}stem.conv1", 64),
        **layer(f"{head}.conv", channels, channels, 3, 3),
        **layer(f"{head}.objectness_logits", anchors, channels, 1, 1),
        **layer(f"{head}.anchor_deltas", 4 * anchors, channels, 1, 1),
        "pixel_mean": (3, 1, 1),
        "pixel_std": (3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": (anchors, 4),
    }


def predictor_names(features, classes):
    return {
        **layer("roi_heads.box_predictor.cls_score", classes + 1, features),
        **layer("roi_heads.box_predictor.bbox_pred", 4 * classes, features),
    }


def pyramid_names(classes, blocks=(3, 4, 6, 3)):
    names = detector_names("backbone.bottom_up.", 3, 256) | predictor_names(1024, classes)
    for stage, count in zip(range(2, 6), blocks, strict=True):
        names |= stage_names("backbone.bottom_up.", stage, count)
        names |= layer(f"backbone.fpn_lateral{stage}", 256, 256 * 2 ** (stage - 2), 1, 1)
        names |= layer(f"backbone.fpn_output{stage}", 256, 256, 3, 3)
    return names | layer("roi_heads.box_head.fc1", 1024, 12544) | layer("roi_heads.box_head.fc2", 1024, 1024)


def mask_names(in_channels, convolutions, classes=80):
    names = layer("roi_heads.mask_head.deconv", in_channels, 256, 2, 2, bias=256)
    for index in range(convolutions):
        names |= layer(f"roi_heads.mask_head.mask_fcn{index + 1}", 256, 256, 3, 3)
    return names | layer("roi_heads.mask_head.predictor", classes, 256, 1, 1)


def keypoint_names():
    names = layer("roi_heads.keypoint_head.score_lowres", 512, 17, 4, 4, bias=17)
    for index in range(8):
        names |= layer(f"roi_heads.keypoint_head.conv_fcn{index + 1}", 512, 256 if index == 0 else 512, 3, 3)
    return names


def single_map_names():
    names = detector_names("backbone.", 15, 1024) | predictor_names(2048, 80) | mask_names(2048, 0)
    for stage, count in zip((2, 3, 4), (3, 4, 6), strict=True):
        names |= stage_names("backbone.", stage, count)
    return names | stage_names("roi_heads.", 5, 3)
