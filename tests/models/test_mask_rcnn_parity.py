"""The R-CNNs against torchvision's own classes, where torchvision is installed."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from pyposeext.models import convert_state_dict, create_model
from pyposeext.models.mask_rcnn.transform import ImageTransform

detection = pytest.importorskip("torchvision.models.detection", reason="torchvision is not installed")

KEYPOINTS, MASKS, SECOND = "keypoint_rcnn_resnet50_fpn", "mask_rcnn_resnet50_fpn", "mask_rcnn_resnet50_fpn_v2"
DEEP = "mask_rcnn_resnet101_fpn"
SIZES = {"min_size": 160, "max_size": 256}


def peer_model(name, eps=1e-5, norm="frozen"):
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    torch.manual_seed(0)
    layer = partial(FrozenBatchNorm2d, eps=eps) if norm == "frozen" else torch.nn.BatchNorm2d
    options = {"box_detections_per_img": 20, **SIZES}
    if name == SECOND:
        peer = detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=91, **options)
    else:
        depth = "resnet101" if name == DEEP else "resnet50"
        backbone = resnet_fpn_backbone(backbone_name=depth, weights=None, norm_layer=layer, trainable_layers=3)
        peer = (
            detection.KeypointRCNN(backbone, num_classes=2, **options)
            if name == KEYPOINTS
            else detection.MaskRCNN(backbone, num_classes=91, **options)
        )
    for key, buffer in peer.named_buffers():
        if key.endswith(("running_var", "bn3.weight")):
            buffer.uniform_(0.5, 1.5)
        elif key.endswith(("running_mean", "bias")):
            buffer.normal_(0, 0.1)
    with torch.no_grad():
        # Random heads give every proposal the same score; these spread them, so that few ties are left to swap rows.
        peer.rpn.head.cls_logits.weight.normal_(0, 0.2)
        peer.roi_heads.box_predictor.cls_score.weight.normal_(0, 0.05 if name == KEYPOINTS else 0.5)
        for layer_index in range(4):
            for block in getattr(peer.backbone.body, f"layer{layer_index + 1}"):
                block.bn3.weight.mul_(0.3 if name != DEEP else 0.1)
    return peer


def our_model(name, peer, **arguments):
    model = create_model(name, detections_per_image=20, **SIZES, **arguments)
    model.load_state_dict(convert_state_dict(name, peer.state_dict()), strict=True)
    return model


def images():
    torch.manual_seed(1)
    return [torch.rand(3, 111, 173), torch.rand(3, 140, 95)]


TOLERANCES = {"boxes": 1e-4, "scores": 1e-6, "keypoints": 1e-3, "keypoint_scores": 1e-4, "masks": 1e-4}


def assert_same_detections(ours, theirs, kind):
    for own, other in zip(ours, theirs, strict=True):
        if "keypoints_scores" in other:
            other["keypoint_scores"] = other.pop("keypoints_scores")
        assert kind in own
        assert set(own) == set(other)
        assert len(own["boxes"]) == len(other["boxes"]) > 0
        # Rows of nearly equal scores may change places: each row is compared with the nearest of the other set.
        labelled = [torch.cat([found["boxes"], found["labels"][:, None] * 1e3], dim=1) for found in (own, other)]
        nearest = torch.cdist(*labelled).argmin(dim=1)
        assert sorted(nearest.tolist()) == list(range(len(nearest)))
        assert own["labels"].tolist() == other["labels"][nearest].tolist()
        for key in TOLERANCES.keys() & own.keys():
            error = (own[key] - other[key][nearest]).abs().max()
            # For whoever wants the figures: pytest -s.
            print(f"{key}: {error:.1e}")
            assert error <= TOLERANCES[key] + 1e-5 * other[key].abs().max() * (key == "keypoint_scores")


def test_batches():
    peer = peer_model(KEYPOINTS).eval().transform
    transform = ImageTransform((160,), 256)
    pictures = [
        torch.rand(3, *size) for size in ((111, 173), (140, 95), (427, 640), (500, 375), (100, 400), (331, 100))
    ]
    ours, theirs = transform(pictures, None, training=False)[0], peer(pictures)[0]
    assert ours.sizes == theirs.image_sizes
    assert torch.equal(ours.tensor, theirs.tensors)


@pytest.mark.parametrize(("name", "eps"), [(KEYPOINTS, 0.0), (KEYPOINTS, 1e-5), (MASKS, 0.0), (DEEP, 0.0)])
def test_inference(name, eps):
    peer = peer_model(name, eps).eval()
    with torch.inference_mode():
        ours = our_model(name, peer, norm_eps=eps)(images())
        assert_same_detections(ours, peer(images()), "keypoints" if name == KEYPOINTS else "masks")


def test_inference_from_ordinary_batch_norms():
    peer = peer_model(KEYPOINTS, norm="batch").eval()
    with torch.inference_mode():
        assert_same_detections(our_model(KEYPOINTS, peer, norm_eps=0.0)(images()), peer(images()), "keypoints")


def test_inference_of_the_second_version():
    peer = peer_model(SECOND).eval()
    with torch.inference_mode():
        assert_same_detections(our_model(SECOND, peer)(images()), peer(images()), "masks")


def training_targets(name):
    torch.manual_seed(2)
    keypoints = torch.rand(2, 17, 3) * torch.tensor([60, 80, 1.0]) + torch.tensor([20, 10, 0.0])
    keypoints[..., 2] = (keypoints[..., 2] > 0.3).float() * 2
    boxes = torch.tensor([[20.0, 10, 80, 90], [5, 30, 60, 100]])
    targets = [
        {"boxes": boxes, "labels": torch.ones(2, dtype=torch.int64), "keypoints": keypoints},
        {"boxes": boxes[:1] + 3, "labels": torch.ones(1, dtype=torch.int64), "keypoints": keypoints[:1] + 3},
    ]
    if name == KEYPOINTS:
        return targets
    for target, image in zip(targets, images(), strict=True):
        del target["keypoints"]
        target["labels"] = torch.tensor([1, 18])[: len(target["labels"])]
        target["masks"] = (torch.rand(len(target["boxes"]), *image.shape[1:]) > 0.5).to(torch.uint8)
    return targets


@pytest.mark.parametrize("name", [KEYPOINTS, MASKS])
def test_training_losses(name):
    peer = peer_model(name).train()
    model = our_model(name, peer, norm_eps=1e-5).train()
    targets, pictures = training_targets(name), images()
    torch.manual_seed(3)
    theirs = peer(pictures, [dict(target) for target in targets])
    torch.manual_seed(3)
    ours = model(pictures, targets)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        print(f"{key}: {(ours[key] - value).abs().item():.1e}")
        torch.testing.assert_close(ours[key], value, atol=1e-6, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
