"""Each rule in which detectron2 differs from torchvision, against a plain computation of that rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pyposeext import ops
from pyposeext.errors import InputError
from pyposeext.layers.resnet import Bottleneck
from pyposeext.models import convert_state_dict, create_model
from pyposeext.models.mask_rcnn.assembly import pooler
from pyposeext.models.mask_rcnn.box_heads import BoxPredictor
from pyposeext.models.mask_rcnn.checkpoints_detectron2 import COCO_IDS, convert_detectron2
from pyposeext.models.mask_rcnn.conventions import DETECTRON2, TORCHVISION
from pyposeext.models.mask_rcnn.keypoints import select_keypoint_rois
from pyposeext.models.mask_rcnn.masks import MaskPredictor, mask_targets
from pyposeext.models.mask_rcnn.roi_heads import Samples, _box_losses
from pyposeext.models.mask_rcnn.transform import ImageTransform
from pyposeext.models.registry import model_entry
from tests.models.detectron2_layout import (
    detector_names,
    keypoint_names,
    layer,
    mask_names,
    predictor_names,
    pyramid_names,
    single_map_names,
    stage_names,
)
from tests.models.reduced import MaskModel, sample_images, sample_targets

KEYPOINTS, MASKS = "keypoint_rcnn_resnet50_fpn_detectron2", "mask_rcnn_resnet50_fpn_detectron2"
MASKS_C4 = "mask_rcnn_resnet50_c4_detectron2"
SMALL = {"min_size": 96, "max_size": 128, "frozen_norm": False, "proposals": (30, 15), "detections_per_image": 4}
MEAN_BGR = torch.tensor([103.530, 116.280, 123.675])


def transform_of(**sizes):
    return ImageTransform(
        **sizes,
        mean=DETECTRON2.mean,
        std=DETECTRON2.std,
        resizing=DETECTRON2.resizing,
        keypoint_offset=DETECTRON2.keypoint_offset,
    )


@pytest.mark.parametrize(
    ("name", "names"),
    [
        (KEYPOINTS, pyramid_names(1) | keypoint_names()),
        (MASKS, pyramid_names(80) | mask_names(256, 4)),
        ("mask_rcnn_resnet101_fpn_detectron2", pyramid_names(80, (3, 4, 23, 3)) | mask_names(256, 4)),
        (MASKS_C4, single_map_names()),
    ],
)
def test_published_layouts_load_strictly(name, names):
    # One element for each tensor: only names and shapes matter here.
    official = {key: torch.zeros(1).expand(shape) for key, shape in names.items()}
    with torch.device("meta"):
        model = create_model(name)
    model.load_state_dict(convert_state_dict(name, official), strict=True, assign=True)
    assert not any(value.is_meta for value in model.state_dict().values())


def test_other_files_are_refused():
    with pytest.raises(InputError, match=r"has no 'roi_heads\.box_predictor\.cls_score\.bias'"):
        convert_state_dict(MASKS, {"backbone.body.conv1.weight": torch.zeros(1)})
    official = {"roi_heads.box_predictor.cls_score.bias": torch.zeros(81), "backbone.res9.weight": torch.zeros(1)}
    with pytest.raises(InputError, match=r"got the key 'backbone\.res9\.weight'"):
        convert_state_dict(MASKS, official)


def test_published_files():
    files = {
        checkpoint.name: checkpoint.source
        for name in (KEYPOINTS, MASKS, MASKS_C4, "mask_rcnn_resnet101_fpn_detectron2")
        for checkpoint in model_entry(name).checkpoints
    }
    assert files["keypoint_rcnn_R_50_FPN_3x"] == (
        "https://dl.fbaipublicfiles.com/detectron2/COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x/137849621/"
        "model_final_a6e10b.pkl"
    )
    assert {"mask_rcnn_R_50_FPN_3x", "mask_rcnn_R_101_FPN_3x", "mask_rcnn_R_50_C4_1x"} <= set(files)


def test_classes_are_moved_to_the_numbers_of_coco():
    assert len(COCO_IDS) == 80
    assert (COCO_IDS[0], COCO_IDS[11], COCO_IDS[-1]) == (1, 13, 90)
    torch.manual_seed(0)
    official = {
        key: torch.randn(shape) * 0.1
        for key, shape in (predictor_names(32, 80) | layer("roi_heads.mask_head.predictor", 80, 256, 1, 1)).items()
    }
    converted = convert_detectron2(official)
    predictor = BoxPredictor(32, 91)
    prefix = "roi_heads.box_predictor."
    predictor.load_state_dict({key[len(prefix) :]: converted[key] for key in converted if key.startswith(prefix)})
    features = torch.randn(7, 32)
    logits, deltas = predictor(features)
    # Detectron2's FastRCNNOutputLayers: classes 0..79, then background; four deltas for each class.
    expected = F.linear(features, official[f"{prefix}cls_score.weight"], official[f"{prefix}cls_score.bias"])
    expected_deltas = F.linear(features, official[f"{prefix}bbox_pred.weight"], official[f"{prefix}bbox_pred.bias"])
    probabilities = logits.softmax(dim=1)
    torch.testing.assert_close(probabilities[:, list(COCO_IDS)], expected.softmax(dim=1)[:, :80])
    torch.testing.assert_close(probabilities[:, 0], expected.softmax(dim=1)[:, 80])
    assert (probabilities[:, [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]] == 0).all()
    torch.testing.assert_close(deltas.view(7, 91, 4)[:, list(COCO_IDS)], expected_deltas.view(7, 80, 4))

    masks = MaskPredictor(8, 91)
    last = {key: converted[f"roi_heads.mask_predictor.mask_fcn_logits.{key}"] for key in ("weight", "bias")}
    masks.mask_fcn_logits.load_state_dict(last)
    hidden = torch.randn(2, 256, 3, 3)
    weight, bias = (official[f"roi_heads.mask_head.predictor.{key}"] for key in ("weight", "bias"))
    torch.testing.assert_close(masks.mask_fcn_logits(hidden)[:, list(COCO_IDS)], F.conv2d(hidden, weight, bias))


def test_other_numbers_of_classes_keep_their_order():
    official = {key: torch.randn(shape) for key, shape in predictor_names(4, 3).items()}
    converted = convert_detectron2(official)
    weight = official["roi_heads.box_predictor.cls_score.weight"]
    assert torch.equal(converted["roi_heads.box_predictor.cls_score.weight"], weight[[3, 0, 1, 2]])
    agnostic = {**official, "roi_heads.box_predictor.bbox_pred.bias": torch.randn(4)}
    bias = convert_detectron2(agnostic)["roi_heads.box_predictor.bbox_pred.bias"]
    assert torch.equal(bias, agnostic["roi_heads.box_predictor.bbox_pred.bias"])


def test_stem_and_first_block_see_what_detectron2_shows_them():
    torch.manual_seed(0)
    names = detector_names("backbone.bottom_up.", 3, 256) | stage_names("backbone.bottom_up.", 3, 4)
    names |= stage_names("backbone.bottom_up.", 2, 3) | {"roi_heads.box_predictor.cls_score.bias": (2,)}
    official = {key: torch.randn(shape) * 0.05 for key, shape in names.items() if "rpn" not in key}
    official = {key: value.abs() + 0.5 if "running_var" in key else value for key, value in official.items()}
    model = create_model(KEYPOINTS, min_size=64)
    own = {key: value for key, value in convert_detectron2(official).items() if key.startswith("backbone.body.")}
    _, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected
    image = (torch.rand(3, 64, 64) * 255).round() / 255

    def conv(input, name, stride=1, padding=0):
        output = F.conv2d(input, official[f"{name}.weight"], stride=stride, padding=padding)
        mean, var, weight, bias = (
            official[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(output, mean, var, weight, bias, eps=1e-5)

    bgr = image.flip(0) * 255 - MEAN_BGR[:, None, None]
    expected = F.max_pool2d(F.relu(conv(bgr[None], "backbone.bottom_up.stem.conv1", 2, 3)), 3, 2, 1)
    for stage, blocks in ((2, 3), (3, 4)):
        for block in range(blocks):
            name = f"backbone.bottom_up.res{stage}.{block}"
            stride = 2 if stage == 3 and block == 0 else 1
            hidden = F.relu(conv(expected, f"{name}.conv1", stride))
            hidden = conv(F.relu(conv(hidden, f"{name}.conv2", 1, 1)), f"{name}.conv3")
            shortcut = conv(expected, f"{name}.shortcut", stride) if block == 0 else expected
            expected = F.relu(hidden + shortcut)
    with torch.inference_mode():
        batch, _ = model.transform([image], None, training=False)
        found = model.backbone.body(batch.tensor)[1]
    torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)


# Images.


@pytest.mark.parametrize(
    ("size", "expected"),
    # By hand: shorter side to 800, then the longer to at most 1333, halves upward.
    [((427, 640), (800, 1199)), ((500, 375), (1067, 800)), ((300, 1000), (400, 1333)), ((1000, 300), (1333, 400))],
)
def test_sizes_are_rounded(size, expected):
    assert transform_of(min_size=(800,), max_size=1333).resized(size, 800) == expected


def test_images_are_resized_as_pillow_does():
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    generator = np.random.default_rng(0)
    for size, new in (((83, 61), (131, 96)), ((200, 300), (64, 96))):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        shown = image_module.fromarray(pixels).resize(new[::-1], image_module.BILINEAR)
        expected = torch.from_numpy(np.array(shown)).permute(2, 0, 1).float()
        transform = transform_of(min_size=(min(new),), max_size=1000)
        batch, _ = transform([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255], None, training=False)
        assert batch.sizes == [new]
        found = batch.tensor[0, :, : new[0], : new[1]] + MEAN_BGR.flip(0)[:, None, None]
        error = (found - expected).abs()
        assert error.max() < 1.01
        assert (error > 0.01).float().mean() < 0.01


def test_mask_targets_are_resized_by_the_nearest_centre():
    transform = transform_of(min_size=(3,), max_size=100)
    masks = torch.tensor([[[1, 0, 0, 0, 0]] * 5], dtype=torch.uint8)
    target = {"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.ones(1, dtype=torch.int64), "masks": masks}
    _, moved = transform([torch.rand(3, 5, 5)], [target], training=True)
    # Centres 0.5, 1.5, 2.5 of three pixels fall on 0.83, 2.5, 4.17 of five: their columns 0, 2, 4.
    assert moved[0]["masks"].tolist() == [[[1, 0, 0]] * 3]
    assert moved[0]["masks"].dtype == torch.uint8


def test_batches_without_a_pyramid_are_not_padded_to_multiples():
    with torch.device("meta"):
        single, pyramid = create_model(MASKS_C4), create_model(MASKS)
    assert single.transform.divisor == 1
    assert pyramid.transform.divisor == 32


# Proposals and boxes.


def test_anchors_are_not_rounded_and_stand_at_fixed_strides():
    with torch.device("meta"):
        single, pyramid = create_model(MASKS_C4), create_model(MASKS)
    maps = [(25, 34), (13, 17), (7, 9), (4, 5), (2, 3)]
    found = pyramid.rpn.anchors((100, 136), maps, torch.device("cpu"))
    for size, stride, level, (height, width) in zip(
        (32, 64, 128, 256, 512), (4, 8, 16, 32, 64), found, maps, strict=True
    ):
        assert len(level) == 3 * height * width
        for y, x, anchor in ((0, 0, 1), (1, 2, 0), (height - 1, width - 1, 2)):
            ratio = (0.5, 1.0, 2.0)[anchor]
            w = math.sqrt(size * size / ratio)
            h = ratio * w
            expected = [x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2]
            torch.testing.assert_close(level[(y * width + x) * 3 + anchor], torch.tensor(expected))
    (only,) = single.rpn.anchors((100, 136), [(7, 9)], torch.device("cpu"))
    assert len(only) == 15 * 7 * 9
    # Sizes in the outer order, ratios in the inner.
    sides = only[:15, 2:] - only[:15, :2]
    torch.testing.assert_close(
        sides[:, 0] * sides[:, 1], torch.tensor([32.0, 64, 128, 256, 512]).repeat_interleave(3) ** 2
    )
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1, 2]).repeat(5))


def test_rois_are_pooled_from_detectron2s_level_half_a_pixel_earlier():
    maps = [torch.full((1, 1, 512 // 2**level, 512 // 2**level), float(level)) for level in range(2, 6)]
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2, generator=generator) * 100
    side = torch.exp(torch.rand(200, 2, generator=generator) * 5 + 1)
    boxes = torch.cat([corner, corner + side], dim=1)
    exact = torch.tensor([[0.0, 0, 112, 112], [0, 0, 224, 224], [0, 0, 448, 448], [0, 0, 111.99, 112]])
    boxes = torch.cat([boxes, exact])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    levels = (4 + torch.log2(areas.sqrt() / 224 + 1e-8)).floor().clamp(2, 5)
    # The first cell lies inside the map even where the box does not.
    pooled = pooler(7, DETECTRON2)(maps, [boxes])
    assert torch.equal(pooled[:, 0, 0, 0].round(), levels)

    ramp = torch.arange(128.0).expand(1, 1, 128, 128)
    ramps = [ramp, *maps[1:]]
    box = torch.tensor([[8.0, 8, 43, 43]])
    centres = (8 + (torch.arange(7) + 0.5) * 5) / 4
    torch.testing.assert_close(pooler(7, DETECTRON2)(ramps, [box])[0, 0, 3], centres - 0.5)
    torch.testing.assert_close(pooler(7, TORCHVISION)(ramps, [box])[0, 0, 3], centres)
    # Cells of 3.5 pixels of the map take four samples along each side.
    spike = torch.zeros(1, 1, 128, 128)
    spike[0, 0, :, 10] = 1
    samples = -0.5 + (torch.arange(28) + 0.5) * 3.5 / 4
    expected = (1 - (samples - 10).abs()).clamp(min=0).view(7, 4).mean(dim=1)
    pooled = pooler(7, DETECTRON2)([spike, *maps[1:]], [torch.tensor([[0.0, 0, 98, 98]])])
    torch.testing.assert_close(pooled[0, 0, 3], expected)


def test_proposal_losses_are_absolute_and_divided_by_the_full_count():
    with torch.device("meta"):
        rpn = create_model(KEYPOINTS).rpn
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 10], [50, 50, 60, 60]])
    target = {"boxes": torch.tensor([[1.0, 0, 11, 10]]), "labels": torch.ones(1, dtype=torch.int64)}
    logits, deltas = torch.zeros(1, 3), torch.zeros(1, 3, 4)
    losses = rpn._losses(anchors, logits, deltas, [target])
    # The first anchor is positive (overlap 9/11), the last negative; the second (10/20) counts for nothing.
    assert losses["loss_objectness"].item() == pytest.approx(2 * math.log(2) / 256)
    assert losses["loss_rpn_box_reg"].item() == pytest.approx(0.1 / 256)


@pytest.mark.parametrize(("name", "beta"), [(MASKS, 0.0), (KEYPOINTS, 0.5)])
def test_box_regression_loss(name, beta):
    with torch.device("meta"):
        settings = create_model(name).roi_heads.settings
    assert settings.box_beta == beta
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 20]])
    sample = Samples(boxes, torch.tensor([1, 0]), torch.tensor([0, -1]))
    target = {"boxes": torch.tensor([[0.2, 0.9, 10.2, 10.9]])}
    losses = _box_losses(torch.zeros(2, 2), torch.zeros(2, 8), [sample], [target], settings.box_beta)
    # Deltas of 10 * 0.02 and 10 * 0.09; two RoIs share the sum.
    each = [error if beta == 0 or error >= beta else 0.5 * error**2 / beta for error in (0.2, 0.9)]
    expected = sum(each) if beta == 0 else 0.5 * 0.2**2 / beta + 0.9 - 0.5 * beta
    assert losses["loss_box_reg"].item() == pytest.approx(expected / 2, rel=1e-5)


# Keypoints and masks.


def test_a_side_just_below_224_stays_on_the_finer_level():
    maps = [torch.full((1, 1, 512 // 2**level, 512 // 2**level), float(level)) for level in range(2, 6)]
    # By 3e-7: less than torchvision forgives, more than detectron2 does.
    box = torch.tensor([[0.0, 0, 223.99994, 223.99994]])
    assert pooler(7, DETECTRON2)(maps, [box])[0, 0, 0, 0].round() == 3
    assert pooler(7, TORCHVISION)(maps, [box])[0, 0, 0, 0].round() == 4


def test_keypoints_lie_in_the_middle_of_their_pixels():
    with torch.device("meta"):
        transform = create_model(KEYPOINTS, min_size=40).transform
    joint = torch.tensor([[[3.0, 7, 2]]])
    target = {"boxes": torch.tensor([[0.0, 0, 20, 20]]), "labels": torch.ones(1, dtype=torch.int64), "keypoints": joint}
    batch, moved = transform([torch.rand(3, 20, 20)], [target], training=True)
    assert moved[0]["keypoints"].tolist() == [[[7.0, 15, 2]]]
    assert transform.restore([{"keypoints": moved[0]["keypoints"]}], batch)[0]["keypoints"].tolist() == joint.tolist()


def test_keypoint_rois_show_a_visible_joint():
    with torch.device("meta"):
        assert create_model(KEYPOINTS).roi_heads.settings.keypoint_rois_visible
    proposals = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 5, 5], [0, 0, 10, 10]])
    matches = torch.tensor([0, 0, 0, 1])
    keypoints = torch.tensor([[[10.0, 10, 1], [25, 5, 0]], [[5, 5, 0], [50, 50, 2]]])
    boxes, people = select_keypoint_rois(proposals, matches, {"keypoints": keypoints}, None, visible=True)
    assert boxes.tolist() == proposals[:1].tolist()
    assert people.tolist() == [0]


def test_mask_targets_are_whole():
    masks = (torch.rand(2, 40, 50, generator=torch.Generator().manual_seed(0)) > 0.5).to(torch.uint8)
    box, match = torch.tensor([[4.0, 6, 32, 34]]), torch.tensor([1])
    # A cell for each pixel: half a pixel earlier, RoIAlign hits their centres.
    assert torch.equal(mask_targets(masks, box, match, 28, "detectron2")[0], masks[1, 6:34, 4:32].float())
    # Two by two pixels to a cell: the mean of four, at least a half.
    mean = F.avg_pool2d(masks[1:, 6:34, 4:32].float(), 2)
    assert torch.equal(mask_targets(masks, box, match, 14, "detectron2"), (mean >= 0.5).float())


def test_scores_and_masks_of_a_whole_model():
    torch.manual_seed(0)
    model = create_model(MASKS, num_joints=17, num_classes=2, score_threshold=0.0, **SMALL)
    # Or the activations of a random trunk are so large that not one detection is left, and masks are 0 or 1.
    for block in model.modules():
        if isinstance(block, Bottleneck):
            torch.nn.init.constant_(block.bn3.weight, 0.02)
    torch.nn.init.constant_(model.backbone.body.bn1.weight, 0.02)
    assert model.mask_rule == "detectron2"
    with torch.inference_mode():
        soft = model(sample_images(), heatmaps=True)
        cells = model(sample_images(), masks="cells")
        binary = model(sample_images(), masks="binary")
    for found, inside, whole in zip(soft, cells, binary, strict=True):
        assert len(found["boxes"]) > 0
        assert inside["masks"].std() > 0.01
        size = found["masks"].shape[2:]
        expected = ops.paste_masks(inside["masks"], found["boxes"], size, None, "detectron2")
        assert torch.equal(found["masks"][:, 0], expected)
        assert torch.equal(whole["masks"], expected >= 0.5)
        logits = found["keypoint_heatmaps"].double()
        highest = logits.flatten(2).softmax(dim=2).amax(dim=2)
        assert (found["keypoint_scores"] > 0).all()
        assert (found["keypoint_scores"] < 3 * highest).all()


def test_a_whole_model_trains():
    torch.manual_seed(0)
    model = create_model(KEYPOINTS, masks=True, **SMALL).train()
    targets = MaskModel.targets()
    assert targets[0].keys() >= sample_targets()[0].keys()
    losses = model(sample_images(), targets)
    sum(losses.values()).backward()
    assert {"loss_mask", "loss_keypoint"} <= set(losses)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
