"""Keypoint R-CNN against torchvision's own class, where torchvision is installed."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from pyposeext.models import convert_state_dict, create_model
from pyposeext.models.mask_rcnn.transform import ImageTransform

detection = pytest.importorskip("torchvision.models.detection", reason="torchvision is not installed")

NAME = "keypoint_rcnn_resnet50_fpn"
SIZES = {"min_size": 160, "max_size": 256}


def peer_model(eps, norm="frozen"):
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    torch.manual_seed(0)
    layer = partial(FrozenBatchNorm2d, eps=eps) if norm == "frozen" else torch.nn.BatchNorm2d
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=layer, trainable_layers=3)
    peer = detection.KeypointRCNN(backbone, num_classes=2, box_detections_per_img=20, **SIZES)
    for name, buffer in peer.named_buffers():
        if name.endswith(("running_var", "bn3.weight")):
            buffer.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            buffer.normal_(0, 0.1)
    with torch.no_grad():
        # Random heads give every proposal the same score; these spread them, so that few ties are left to swap rows.
        peer.rpn.head.cls_logits.weight.normal_(0, 0.2)
        peer.roi_heads.box_predictor.cls_score.weight.normal_(0, 0.05)
        for layer_index in range(4):
            for block in getattr(peer.backbone.body, f"layer{layer_index + 1}"):
                block.bn3.weight.mul_(0.3)
    return peer


def our_model(peer, eps):
    model = create_model(NAME, norm_eps=eps, detections_per_image=20, **SIZES)
    model.load_state_dict(convert_state_dict(NAME, peer.state_dict()), strict=True)
    return model


def images():
    torch.manual_seed(1)
    return [torch.rand(3, 111, 173), torch.rand(3, 140, 95)]


def assert_same_detections(ours, theirs):
    for own, other in zip(ours, theirs, strict=True):
        assert len(own["boxes"]) == len(other["boxes"]) > 0
        # Rows of nearly equal scores may change places: each row is compared with the nearest of the other set.
        nearest = torch.cdist(own["boxes"], other["boxes"]).argmin(dim=1)
        assert sorted(nearest.tolist()) == list(range(len(nearest)))
        for key, tolerance in (("boxes", 1e-4), ("scores", 1e-6), ("keypoints", 1e-3)):
            torch.testing.assert_close(own[key], other[key][nearest], atol=tolerance, rtol=0)
        torch.testing.assert_close(own["keypoint_scores"], other["keypoints_scores"][nearest], atol=1e-4, rtol=1e-5)


def test_batches():
    peer = peer_model(1e-5).eval().transform
    transform = ImageTransform((160,), 256)
    pictures = [
        torch.rand(3, *size) for size in ((111, 173), (140, 95), (427, 640), (500, 375), (100, 400), (331, 100))
    ]
    ours, theirs = transform(pictures, None, training=False)[0], peer(pictures)[0]
    assert ours.sizes == theirs.image_sizes
    assert torch.equal(ours.tensor, theirs.tensors)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_inference(eps):
    peer = peer_model(eps).eval()
    with torch.inference_mode():
        assert_same_detections(our_model(peer, eps).eval()(images()), peer(images()))


def test_inference_from_ordinary_batch_norms():
    peer = peer_model(1e-5, norm="batch").eval()
    with torch.inference_mode():
        assert_same_detections(our_model(peer, 0.0).eval()(images()), peer(images()))


def test_training_losses():
    peer = peer_model(1e-5).train()
    model = our_model(peer, 1e-5).train()
    torch.manual_seed(2)
    keypoints = torch.rand(2, 17, 3) * torch.tensor([60, 80, 1.0]) + torch.tensor([20, 10, 0.0])
    keypoints[..., 2] = (keypoints[..., 2] > 0.3).float() * 2
    boxes = torch.tensor([[20.0, 10, 80, 90], [5, 30, 60, 100]])
    targets = [
        {"boxes": boxes, "labels": torch.ones(2, dtype=torch.int64), "keypoints": keypoints},
        {"boxes": boxes[:1] + 3, "labels": torch.ones(1, dtype=torch.int64), "keypoints": keypoints[:1] + 3},
    ]
    torch.manual_seed(3)
    theirs = peer(images(), [dict(target) for target in targets])
    torch.manual_seed(3)
    ours = model(images(), targets)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=1e-6, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
