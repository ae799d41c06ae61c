from __future__ import annotations

import pytest
import torch

from pyposeext.layers.anchors import AnchorGenerator

ROUNDED = [
    [(-23, -11, 23, 11), (-16, -16, 16, 16), (-11, -23, 11, 23)],
    [(-45, -23, 45, 23), (-32, -32, 32, 32), (-23, -45, 23, 45)],
    [(-91, -45, 91, 45), (-64, -64, 64, 64), (-45, -91, 45, 91)],
    [(-181, -91, 181, 91), (-128, -128, 128, 128), (-91, -181, 91, 181)],
    [(-362, -181, 362, 181), (-256, -256, 256, 256), (-181, -362, 181, 362)],
]


@pytest.mark.parametrize("level", range(5))
def test_base_anchors_are_the_published_table(level):
    base = AnchorGenerator((32, 64, 128, 256, 512)).base(level)
    assert base.tolist() == [list(map(float, anchor)) for anchor in ROUNDED[level]]


def test_order_and_integer_strides():
    anchors = AnchorGenerator((32, 64), (1.0, 2.0))((64, 100), [(16, 24), (5, 7)], torch.device("cpu"))
    assert [tuple(level.shape) for level in anchors] == [(16 * 24 * 2, 4), (5 * 7 * 2, 4)]
    first = anchors[0].view(16, 24, 2, 4)
    # 100 // 24 is 4 and 64 // 5 is 12: the rest of the division is lost, as in the reference.
    assert first[3, 5, 0].tolist() == [5 * 4 - 16, 3 * 4 - 16, 5 * 4 + 16, 3 * 4 + 16]
    assert anchors[1].view(5, 7, 2, 4)[1, 2, 0].tolist() == [2 * 14 - 32, 12 - 32, 2 * 14 + 32, 12 + 32]


def test_several_sizes_at_one_position():
    anchors = AnchorGenerator(((32, 64), (128, 256)), (1.0, 2.0))
    assert anchors.levels == 2
    assert anchors.count == 4
    assert anchors.base(0).tolist() == [
        [-16, -16, 16, 16],
        [-11, -23, 11, 23],
        [-32, -32, 32, 32],
        [-23, -45, 23, 45],
    ]
    found = anchors((64, 64), [(4, 4), (2, 2)], torch.device("cpu"))
    assert [len(level) for level in found] == [64, 16]


def test_unrounded_anchors_at_given_strides():
    anchors = AnchorGenerator((32,), (0.5, 2.0), rounded=False, strides=(8,))
    # Width sqrt(32 * 32 / 0.5), height half of it.
    torch.testing.assert_close(anchors.base(0)[0], torch.tensor([-22.627417, -11.313708, 22.627417, 11.313708]))
    level = anchors((100, 100), [(3, 3)], torch.device("cpu"))[0].view(3, 3, 2, 4)
    torch.testing.assert_close(level[2, 1, 1], anchors.base(0)[1] + torch.tensor([8.0, 16, 8, 16]))
