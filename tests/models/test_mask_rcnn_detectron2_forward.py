"""Whole detectron2 models with random weights against the same inference written plainly on the weights' own names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from pyposeext import ops
from pyposeext.models import convert_state_dict, create_model
from pyposeext.models.mask_rcnn.checkpoints_detectron2 import COCO_IDS
from tests.models.detectron2_layout import keypoint_names, mask_names, pyramid_names, single_map_names

SCORE, NMS, DETECTIONS, PROPOSALS = 0.05, 0.5, 12, 40
SIZES = (32, 64, 128, 256, 512)
_SCALES = {"stem.conv1.weight": 0.02, "fpn_": 0.3, "anchor_deltas": 0.1, "cls_score": 3.0, "bbox_pred": 0.5}


def random_weights(names):
    """Of a size that keeps activations, scores and deltas moderate."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in names.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            weights[name] = 0.5 + value.abs()
        elif name.endswith("norm.weight"):
            weights[name] = (0.2 if ".conv3." in name else 1.0) * (1 + 0.1 * value)
        elif name.endswith((".bias", "running_mean")):
            weights[name] = 0.1 * value
        else:
            inputs = value[0].numel() if value.dim() > 1 else 1
            weights[name] = value * math.sqrt(2 / inputs)
    for name in weights:
        scale = next((scale for part, scale in _SCALES.items() if part in name and name.endswith("weight")), 1.0)
        weights[name] *= scale
    return weights


class Plain:
    """Inference on one image as detectron2 describes it."""

    def __init__(self, weights, trunk):
        self.weights = weights
        self.trunk = trunk

    def conv(self, name, input, **options):
        output = F.conv2d(input, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), **options)
        if f"{name}.norm.weight" not in self.weights:
            return output
        mean, var, weight, bias = (
            self.weights[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(output, mean, var, weight, bias, eps=1e-5)

    def linear(self, name, input):
        return F.linear(input, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def stage(self, prefix, input, blocks, stride):
        for block in range(blocks):
            name = f"{prefix}.{block}"
            step = stride if block == 0 else 1
            hidden = F.relu(self.conv(f"{name}.conv1", input, stride=step))
            hidden = F.relu(self.conv(f"{name}.conv2", hidden, padding=1))
            shortcut = self.conv(f"{name}.shortcut", input, stride=step) if block == 0 else input
            input = F.relu(self.conv(f"{name}.conv3", hidden) + shortcut)
        return input

    def stages(self, image, counts, divisor):
        bgr = image.flip(0) * 255 - torch.tensor([103.530, 116.280, 123.675])[:, None, None]
        bottom, right = (-side % divisor for side in image.shape[1:])
        padded = F.pad(bgr, (0, right, 0, bottom))[None]
        hidden = F.relu(self.conv(f"{self.trunk}stem.conv1", padded, stride=2, padding=3))
        hidden = F.max_pool2d(hidden, 3, 2, 1)
        maps = []
        for index, count in enumerate(counts):
            hidden = self.stage(f"{self.trunk}res{index + 2}", hidden, count, 1 if index == 0 else 2)
            maps.append(hidden)
        return maps

    def pyramid(self, maps):
        merged, outputs = None, []
        for level in (5, 4, 3, 2):
            lateral = self.conv(f"backbone.fpn_lateral{level}", maps[level - 2])
            merged = lateral if merged is None else lateral + F.interpolate(merged, scale_factor=2.0, mode="nearest")
            outputs.insert(0, self.conv(f"backbone.fpn_output{level}", merged, padding=1))
        return [*outputs, F.max_pool2d(outputs[-1], 1, 2)]

    def propose(self, maps, strides, sizes, image_size, best):
        head = "proposal_generator.rpn_head"
        boxes, scores = [], []
        for map, stride, level_sizes in zip(maps, strides, sizes, strict=True):
            hidden = F.relu(self.conv(f"{head}.conv", map, padding=1))
            logits = self.conv(f"{head}.objectness_logits", hidden)[0].permute(1, 2, 0).flatten()
            deltas = self.conv(f"{head}.anchor_deltas", hidden)[0]
            deltas = deltas.view(-1, 4, *deltas.shape[1:]).permute(2, 3, 0, 1).reshape(-1, 4)
            anchors = []
            for y in range(map.shape[2]):
                for x in range(map.shape[3]):
                    for size in level_sizes:
                        for ratio in (0.5, 1.0, 2.0):
                            w = math.sqrt(size**2 / ratio)
                            h = ratio * w
                            centre = (x * stride, y * stride)
                            anchors.append((centre[0] - w / 2, centre[1] - h / 2, centre[0] + w / 2, centre[1] + h / 2))
            score, order = logits.sort(descending=True)
            kept = order[:best]
            decoded = clip(decode(deltas[kept], torch.tensor(anchors)[kept], (1, 1, 1, 1)), image_size)
            score = score[:best]
            whole = ((decoded[:, 2:] - decoded[:, :2]) > 0).all(dim=1)
            decoded, score = decoded[whole], score[whole]
            kept = ops.nms(decoded, score, 0.7)
            boxes.append(decoded[kept])
            scores.append(score[kept])
        order = torch.cat(scores).sort(descending=True).indices[:PROPOSALS]
        return torch.cat(boxes)[order]

    def detect(self, features, proposals, image_size, classes):
        probabilities = self.linear("roi_heads.box_predictor.cls_score", features).softmax(dim=1)[:, :classes]
        deltas = self.linear("roi_heads.box_predictor.bbox_pred", features).view(-1, classes, 4)
        found = []
        for label in range(classes):
            boxes = clip(decode(deltas[:, label], proposals, (10, 10, 5, 5)), image_size)
            chosen = torch.where(probabilities[:, label] > SCORE)[0]
            chosen = chosen[ops.nms(boxes[chosen], probabilities[chosen, label], NMS)]
            found += [(float(probabilities[row, label]), label, boxes[row]) for row in chosen]
        found.sort(key=lambda entry: -entry[0])
        scores, labels, boxes = zip(*found[:DETECTIONS], strict=True)
        return torch.tensor(scores), torch.tensor(labels), torch.stack(boxes)


def decode(deltas, boxes, weights):
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + 0.5 * sides
    scaled = deltas / torch.tensor(weights)
    centres = centres + scaled[:, :2] * sides
    sides = sides * scaled[:, 2:].clamp(max=math.log(1000 / 16)).exp()
    return torch.cat([centres - 0.5 * sides, centres + 0.5 * sides], dim=1)


def clip(boxes, size):
    limits = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float32)
    return torch.minimum(boxes.clamp(min=0), limits)


def pooled(maps, boxes, size):
    """RoIAlign with half pixels and as many samples as there are pixels, level by level."""
    result = torch.zeros(len(boxes), maps[0].shape[1], size, size)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    levels = (4 + torch.log2(area.sqrt() / 224 + 1e-8)).floor().clamp(2, 5)
    for level, map in zip((2, 3, 4, 5), maps, strict=False):
        rows = torch.where(levels == level)[0]
        result[rows] = ops.roi_align(map, [boxes[rows]], size, 1 / 2**level, 0, True)
    return result


def assert_same(found, scores, labels, boxes):
    """Detections as expected, in whatever order nearly equal scores have; returns the expected row of each."""
    own = torch.cat([found["boxes"], 1e3 * found["labels"][:, None]], dim=1)
    ids = torch.tensor(COCO_IDS)[labels]
    nearest = torch.cdist(own, torch.cat([boxes, 1e3 * ids[:, None]], dim=1)).argmin(dim=1)
    assert sorted(nearest.tolist()) == list(range(len(boxes)))
    assert torch.equal(found["labels"], ids[nearest])
    torch.testing.assert_close(found["boxes"], boxes[nearest], atol=5e-4, rtol=0)
    torch.testing.assert_close(found["scores"], scores[nearest], atol=1e-5, rtol=0)
    return nearest


def build(name, weights, **arguments):
    model = create_model(
        name,
        min_size=96,
        max_size=128,
        proposals=(PROPOSALS, PROPOSALS),
        detections_per_image=DETECTIONS,
        score_threshold=SCORE,
        **arguments,
    )
    model.load_state_dict(convert_state_dict(name, weights), strict=True)
    return model


def test_boxes_masks_and_keypoints_from_a_pyramid():
    weights = random_weights(pyramid_names(80) | mask_names(256, 4) | keypoint_names())
    image = torch.randint(0, 256, (3, 96, 110), generator=torch.Generator().manual_seed(1)) / 255
    model = build("mask_rcnn_resnet50_fpn_detectron2", weights, num_joints=17)
    plain = Plain(weights, "backbone.bottom_up.")
    with torch.inference_mode():
        found = model([image], heatmaps=True, masks="cells")[0]
        maps = plain.pyramid(plain.stages(image, (3, 4, 6, 3), 32))
        proposals = plain.propose(maps, (4, 8, 16, 32, 64), [(size,) for size in SIZES], (96, 110), 1000)
        hidden = pooled(maps, proposals, 7).flatten(1)
        for layer in ("fc1", "fc2"):
            hidden = F.relu(plain.linear(f"roi_heads.box_head.{layer}", hidden))
        scores, labels, boxes = plain.detect(hidden, proposals, (96, 110), 80)
        rows = assert_same(found, scores, labels, boxes)
        hidden = pooled(maps, boxes, 14)
        for index in range(1, 5):
            hidden = F.relu(plain.conv(f"roi_heads.mask_head.mask_fcn{index}", hidden, padding=1))
        name = "roi_heads.mask_head"
        hidden = F.relu(
            F.conv_transpose2d(hidden, weights[f"{name}.deconv.weight"], weights[f"{name}.deconv.bias"], stride=2)
        )
        masks = plain.conv(f"{name}.predictor", hidden)[torch.arange(len(labels)), labels].sigmoid()
        joints = pooled(maps, boxes, 14)
        for index in range(1, 9):
            joints = F.relu(plain.conv(f"roi_heads.keypoint_head.conv_fcn{index}", joints, padding=1))
        name = "roi_heads.keypoint_head.score_lowres"
        joints = F.conv_transpose2d(joints, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2, padding=1)
        joints = F.interpolate(joints, scale_factor=2.0, mode="bilinear", align_corners=False)
    assert masks.std() > 0.05
    torch.testing.assert_close(found["masks"], masks[rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(found["keypoint_heatmaps"], joints[rows], atol=1e-3 * joints.abs().max().item(), rtol=0)


def test_boxes_and_masks_from_a_single_map():
    weights = random_weights(single_map_names())
    # Sides that are multiples of nothing, and so is the batch.
    image = torch.randint(0, 256, (3, 96, 110), generator=torch.Generator().manual_seed(1)) / 255
    model = build("mask_rcnn_resnet50_c4_detectron2", weights)
    plain = Plain(weights, "backbone.")
    with torch.inference_mode():
        found = model([image], masks="cells")[0]
        feature = plain.stages(image, (3, 4, 6), 1)[-1]
        proposals = plain.propose([feature], (16,), [SIZES], (96, 110), 6000)

        def last_stage(boxes):
            rois = ops.roi_align(feature, [boxes], 14, 1 / 16, 0, True)
            return plain.stage("roi_heads.res5", rois, 3, 2)

        scores, labels, boxes = plain.detect(last_stage(proposals).mean(dim=(2, 3)), proposals, (96, 110), 80)
        rows = assert_same(found, scores, labels, boxes)
        name = "roi_heads.mask_head"
        hidden = F.conv_transpose2d(
            last_stage(boxes), weights[f"{name}.deconv.weight"], weights[f"{name}.deconv.bias"], stride=2
        )
        masks = plain.conv(f"{name}.predictor", F.relu(hidden))[torch.arange(len(labels)), labels].sigmoid()
    assert masks.std() > 0.05
    torch.testing.assert_close(found["masks"], masks[rows], atol=1e-4, rtol=0)
