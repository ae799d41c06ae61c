from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyposeext.models.mask_rcnn.transform import ImageTransform


@pytest.mark.parametrize("size", [(111, 173), (140, 95), (100, 400), (37, 61), (427, 640), (500, 375)])
def test_sizes_are_those_of_the_recomputed_scale(size):
    scale = min(160 / min(size), 256 / max(size))
    resized = F.interpolate(torch.zeros(1, 1, *size), scale_factor=scale, mode="bilinear", recompute_scale_factor=True)
    assert ImageTransform((160,), 256).resized(size, 160) == tuple(resized.shape[-2:])


def test_no_side_vanishes():
    assert ImageTransform((160,), 256).resized((1, 5000), 160) == (1, 256)


def test_batch_is_normalised_and_zero_padded():
    transform = ImageTransform((64,), 96)
    images = [torch.full((3, 32, 40), 0.485), torch.rand(3, 64, 48)]
    batch, targets = transform(images, None, training=False)
    assert targets is None
    assert batch.tensor.shape == (2, 3, 96, 96)
    assert batch.sizes == [(64, 80), (85, 64)]
    assert batch.original_sizes == [(32, 40), (64, 48)]
    torch.testing.assert_close(batch.tensor[0, 0, :64, :80], torch.zeros(64, 80))
    torch.testing.assert_close(batch.tensor[0, 1, :64, :80], torch.full((64, 80), (0.485 - 0.456) / 0.224))
    assert (batch.tensor[0, :, 64:] == 0).all()
    assert (batch.tensor[1, :, :, 64:] == 0).all()


def test_draws_one_size_per_image_in_training():
    transform = ImageTransform((32, 48, 64), 200)
    images = [torch.rand(3, 20, 20)] * 6
    torch.manual_seed(3)
    expected = [(32, 48, 64)[int(torch.empty(1).uniform_(0, 3).item())] for _ in range(6)]
    torch.manual_seed(3)
    batch, _ = transform(images, None, training=True)
    assert [size[0] for size in batch.sizes] == expected


def test_keeping_the_size_draws_nothing():
    images = [torch.rand(3, 20, 33)]
    state = torch.get_rng_state()
    batch, _ = ImageTransform((640,), 1333)(images, None, training=True, resize=False)
    assert torch.equal(state, torch.get_rng_state())
    assert batch.sizes == [(20, 33)]
    assert batch.tensor.shape == (1, 3, 32, 64)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_targets_move_along_and_back(offset):
    transform = ImageTransform((100,), 1000, keypoint_offset=offset)
    target = {
        "boxes": torch.tensor([[5.0, 10, 20, 40]]),
        "ignore": torch.tensor([[0.0, 0, 50, 80]]),
        "labels": torch.ones(1, dtype=torch.int64),
        "keypoints": torch.tensor([[[10.0, 20, 2], [0, 0, 0]]]),
    }
    batch, moved = transform([torch.rand(3, 80, 50)], [target], training=True)
    assert batch.sizes == [(160, 100)]
    assert moved[0]["boxes"].tolist() == [[10, 20, 40, 80]]
    assert moved[0]["ignore"].tolist() == [[0, 0, 100, 160]]
    assert moved[0]["keypoints"][0, 0].tolist() == [2 * (10 + offset), 2 * (20 + offset), 2]
    assert moved[0]["labels"] is target["labels"]
    restored = transform.restore([dict(moved[0])], batch)[0]
    torch.testing.assert_close(restored["boxes"], target["boxes"])
    torch.testing.assert_close(restored["keypoints"], target["keypoints"])
    assert target["boxes"].tolist() == [[5, 10, 20, 40]]
