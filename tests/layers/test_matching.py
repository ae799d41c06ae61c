from __future__ import annotations

import torch

from pyposeext.layers.matching import BELOW, BETWEEN, match_boxes, sample_balanced


def test_thresholds():
    iou = torch.tensor([[0.7, 0.3, 0.29, 0.1, 0.5], [0.1, 0.2, 0.2, 0.9, 0.5]])
    assert match_boxes(iou, 0.7, 0.3).tolist() == [0, BETWEEN, BELOW, 1, BETWEEN]
    assert match_boxes(iou, 0.5, 0.5).tolist() == [0, BELOW, BELOW, 1, 0]


def test_best_boxes_get_back_their_own_best_truth():
    # Box 1 is the best box of truth 1, yet overlaps truth 0 more: truth 0 is what it answers for.
    iou = torch.tensor([[0.8, 0.4, 0.0, 0.1], [0.1, 0.35, 0.0, 0.35]])
    assert match_boxes(iou, 0.7, 0.3, keep_best=True).tolist() == [0, 0, BELOW, 1]


def test_no_truth_is_all_background():
    assert match_boxes(torch.zeros(0, 3), 0.7, 0.3, keep_best=True).tolist() == [BELOW] * 3


def test_sampling_counts_and_draws():
    positive = torch.tensor([True] * 10 + [False] * 30)
    negative = torch.tensor([False] * 12 + [True] * 28)
    torch.manual_seed(5)
    positives, negatives = sample_balanced(positive, negative, 16, 0.25)
    torch.manual_seed(5)
    assert positives.tolist() == torch.randperm(10)[:4].tolist()
    assert negatives.tolist() == (torch.randperm(28)[:12] + 12).tolist()


def test_too_few_of_one_kind():
    few = torch.tensor([True, False, False, False])
    positives, negatives = sample_balanced(few, ~few, 256, 0.5)
    assert (len(positives), len(negatives)) == (1, 3)
    positives, negatives = sample_balanced(~few, few & ~few, 2, 0.5)
    assert (len(positives), len(negatives)) == (1, 0)
