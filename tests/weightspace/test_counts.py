from __future__ import annotations

import torch
from torch import nn

from weightspace.counts import multiply_adds
from weightspace.layers import LowRankConv2d, Separable
from weightspace.layers.structured import materialized


def test_multiply_adds_are_counted_at_each_position_of_one_sample():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5))
    for batch in (1, 4):
        assert multiply_adds(net, (torch.randn(batch, 3, 7, 7),)) == 9 * 3 * 8 * 9 + 72 * 5


def test_a_structured_layer_counts_as_its_structure_and_evaluated_as_a_dense_one():
    depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    net = nn.Sequential(Separable(depthwise, LowRankConv2d(8, 6, 2)), nn.Flatten())
    x = torch.randn(2, 8, 5, 5)
    assert multiply_adds(net, (x,)) == 25 * (9 * 8 + 2 * 8 + 6 * 2)
    assert multiply_adds(materialized(net), (x,)) == 25 * 9 * 8 * 6


def test_counting_leaves_the_mode_and_no_hooks():
    net = nn.Sequential(nn.Linear(3, 2)).train()
    assert multiply_adds(net, (torch.randn(1, 3),)) == 6
    assert net.training
    assert not net[0]._forward_hooks


def test_rows_are_counted_with_any_number_of_leading_dimensions():
    assert multiply_adds(nn.Linear(6, 4), (torch.randn(2, 3, 5, 6),)) == 3 * 5 * 24
