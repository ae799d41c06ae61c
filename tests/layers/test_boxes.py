from __future__ import annotations

import pytest
import torch

from pyposeext.layers.boxes import (
    box_intersection,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    not_smaller_than,
)


def random_boxes(count):
    corner = torch.rand(count, 2) * 500
    return torch.cat([corner, corner + 1 + torch.rand(count, 2) * 400], dim=1)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_coding_round_trip(weights):
    boxes = random_boxes(500) / 4
    targets = boxes + torch.randn(500, 4) * 0.1 * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    decoded = decode_boxes(encode_boxes(targets, boxes, weights), boxes, weights)
    assert decoded.shape == (500, 1, 4)
    assert (decoded[:, 0] - targets).abs().max() < 1e-4


def test_decoding_by_hand():
    decoded = decode_boxes(torch.tensor([[1.0, -0.5, 0.0, 1.0]]), torch.tensor([[10.0, 20, 30, 60]]), (10, 10, 5, 5))
    height = 40 * torch.tensor(0.2).exp()
    expected = torch.tensor([12.0, 38 - height / 2, 32, 38 + height / 2])
    torch.testing.assert_close(decoded[0, 0], expected)


def test_growth_saturates_and_shrinking_does_not():
    box = torch.tensor([[0.0, 0, 10, 10]])
    width = lambda dw: decode_boxes(torch.tensor([[0.0, 0, dw, 0]]), box)[0, 0, [0, 2]].diff().item() / 10  # noqa: E731
    assert width(100.0) == pytest.approx(62.5, rel=1e-5)
    assert width(4.0) == pytest.approx(54.598, rel=1e-4)
    assert width(-10.0) == pytest.approx(4.54e-5, rel=1e-2)


def test_several_classes_decode_as_each_alone():
    boxes, deltas = random_boxes(7), torch.randn(7, 12)
    together = decode_boxes(deltas, boxes)
    for index in range(3):
        torch.testing.assert_close(together[:, index], decode_boxes(deltas[:, 4 * index : 4 * index + 4], boxes)[:, 0])


def test_decoding_is_float32_under_autocast_and_takes_nothing():
    assert decode_boxes(torch.zeros(3, 4, dtype=torch.bfloat16), random_boxes(3)).dtype == torch.float32
    assert decode_boxes(torch.zeros(0, 8), torch.zeros(0, 4)).shape == (0, 2, 4)


def test_clip_iou_and_small_boxes():
    clipped = clip_boxes(torch.tensor([[[-3.0, -4, 50, 60]], [[5, 6, 7, 8]]]), (40, 30))
    assert clipped.tolist() == [[[0, 0, 30, 40]], [[5, 6, 7, 8]]]
    first = torch.tensor([[0.0, 0, 4, 4], [10, 10, 12, 12]])
    second = torch.tensor([[2.0, 2, 6, 6]])
    assert box_intersection(first, second).tolist() == [[4], [0]]
    torch.testing.assert_close(box_iou(first, second), torch.tensor([[4 / 28], [0.0]]))
    assert box_iou(first[:0], second).shape == (0, 1)
    assert not_smaller_than(torch.tensor([[0.0, 0, 1, 2], [0, 0, 2, 1], [0, 0, 2, 2]]), 1.5).tolist() == [2]
