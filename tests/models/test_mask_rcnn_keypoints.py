"""Keypoint targets, decoding, the choice of RoIs and the loss."""

from __future__ import annotations

import math

import pytest
import torch

from pyposeext.models.mask_rcnn.keypoints import (
    decode_keypoints,
    keypoint_loss,
    keypoint_targets,
    select_keypoint_rois,
)

SIZE = 56


def person(*points):
    return torch.tensor([[*points]], dtype=torch.float32)


def test_targets_by_hand():
    box = torch.tensor([[10.0, 20, 66, 132]])
    keypoints = person(
        (10, 20, 2), (66, 132, 1), (65.9, 20, 2), (37.5, 76, 2), (9.9, 30, 2), (30, 132.1, 2), (30, 30, 0)
    )
    cells, valid = keypoint_targets(keypoints, box, SIZE)
    assert valid.tolist() == [[True, True, True, True, False, False, False]]
    expected = [0, 55 * 56 + 55, 55, 28 * 56 + 27, 0, 0, 0]
    assert cells.tolist() == [expected]


def test_targets_are_decoded_within_half_a_cell():
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        corner, side = torch.rand(2, generator=generator) * 100, 60 + torch.rand(2, generator=generator) * 300
        box = torch.cat([corner, corner + side])[None]
        # The outermost cells are left out: bicubic resizing moves their peaks outward.
        points = corner + side * (1.1 / SIZE + torch.rand(8, 2, generator=generator) * (1 - 2.2 / SIZE))
        keypoints = torch.cat([points, torch.full((8, 1), 2.0)], dim=1)[None]
        cells, valid = keypoint_targets(keypoints, box, SIZE)
        assert valid.all()
        logits = torch.nn.functional.one_hot(cells, SIZE * SIZE).float().view(1, 8, SIZE, SIZE) * 10
        found, scores = decode_keypoints(logits, box)
        assert found.shape == (1, 8, 3)
        assert (found[..., 2] == 1).all()
        assert ((found[0, :, :2] - points).abs() <= side / SIZE / 2 + 0.5).all()
        assert (scores > 5).all()


@pytest.mark.parametrize(("row", "column"), [(3, 50), (28, 27), (54, 1)])
def test_one_hot_decodes_to_its_cell(row, column):
    box = torch.tensor([[7.0, 9, 97, 149]])
    logits = torch.zeros(1, 1, SIZE, SIZE)
    logits[0, 0, row, column] = 10
    point = decode_keypoints(logits, box)[0][0, 0]
    assert abs(point[0] - (7 + (column + 0.5) * 90 / SIZE)) <= 90 / SIZE
    assert abs(point[1] - (9 + (row + 0.5) * 140 / SIZE)) <= 140 / SIZE


def test_no_rois():
    cells, valid = keypoint_targets(torch.zeros(0, 17, 3), torch.zeros(0, 4), SIZE)
    assert cells.shape == valid.shape == (0, 17)
    points, scores = decode_keypoints(torch.zeros(0, 17, SIZE, SIZE), torch.zeros(0, 4))
    assert (points.shape, scores.shape) == ((0, 17, 3), (0, 17))


def test_loss_is_the_mean_over_valid_pairs_only():
    boxes = [torch.tensor([[0.0, 0, 56, 56]]), torch.tensor([[0.0, 0, 56, 56]])]
    people = [torch.zeros(1, dtype=torch.int64)] * 2
    targets = [{"keypoints": person((3, 2, 2), (9, 9, 0))}, {"keypoints": person((60, 2, 2), (55, 55, 1))}]
    logits = torch.zeros(2, 2, SIZE, SIZE, requires_grad=True)
    loss = keypoint_loss(logits, boxes, people, targets)
    assert loss.item() == pytest.approx(math.log(SIZE * SIZE), rel=1e-5)
    loss.backward()
    used = logits.grad.flatten(2).abs().sum(dim=2) > 0
    assert used.tolist() == [[True, False], [False, True]]
    assert logits.grad[0, 0, 2, 3] < 0


def test_loss_weights_joints():
    boxes, people = [torch.tensor([[0.0, 0, 56, 56]])], [torch.zeros(1, dtype=torch.int64)]
    target = {"keypoints": person((3, 2, 2), (9, 9, 2))}
    logits = torch.zeros(1, 2, SIZE, SIZE)
    logits[0, 0, 2, 3] = 20
    good = keypoint_loss(logits, boxes, people, [{**target, "keypoint_weights": torch.tensor([[1.0, 0.0]])}])
    bad = keypoint_loss(logits, boxes, people, [{**target, "keypoint_weights": torch.tensor([[0.0, 0.3]])}])
    mixed = keypoint_loss(logits, boxes, people, [{**target, "keypoint_weights": torch.tensor([[3.0, 1.0]])}])
    assert good < 1e-4
    assert bad.item() == pytest.approx(math.log(SIZE * SIZE), rel=1e-5)
    assert mixed.item() == pytest.approx(math.log(SIZE * SIZE) / 4, rel=1e-3)


def test_loss_without_labels_is_zero_and_has_a_gradient():
    logits = torch.zeros(0, 17, SIZE, SIZE, requires_grad=True)
    loss = keypoint_loss(logits * 1.0, [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)], [{}])
    loss.backward()
    assert loss.item() == 0


def test_rois_as_published_are_all_foreground():
    proposals, matches = torch.rand(5, 4), torch.tensor([0, 1, 1, 0, 1])
    target = {"boxes": torch.rand(2, 4), "keypoints": torch.ones(2, 17, 3)}
    boxes, people = select_keypoint_rois(proposals, matches, target, None)
    assert boxes is proposals
    assert people is matches
    boxes, people = select_keypoint_rois(proposals, matches, {"boxes": target["boxes"]}, None)
    assert len(boxes) == len(people) == 0


def test_few_rois_per_person_and_none_for_unlabelled_people():
    matches = torch.tensor([0] * 9 + [1] * 2 + [2] * 5)
    proposals = torch.arange(16.0)[:, None].expand(16, 4)
    keypoints = torch.ones(3, 17, 3)
    keypoints[2, :, 2] = 0
    target = {"boxes": -torch.ones(3, 4) * torch.tensor([[1.0], [2], [3]]), "keypoints": keypoints}
    boxes, people = select_keypoint_rois(proposals, matches, target, 4)
    assert people.tolist() == [0, 1] + [0] * 4 + [1] * 2
    assert boxes[:2, 0].tolist() == [-1, -2]
    assert boxes[6:, 0].tolist() in ([9, 10], [10, 9])
    assert len(set(boxes[2:6, 0].tolist()) & set(range(9))) == 4
