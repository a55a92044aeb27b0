"""A run of bottlenecks that share one filter and its transpose (arXiv:2401.16438)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.layers.tied_bottleneck import SpatialMix


class StagedBottleneck(nn.Module):
    """``x_{i+1} = relu(x_i + norm_i(Wᵀ G_i(W x_i)))``: one ``W`` for all blocks of a stage.

    Args:
        channels: channels of the input and of the output.
        inner: filters of ``W``, ``(inner, channels, 1, 1)``.
        blocks: how many blocks; each has a ``G`` and norms of its own.

    Source: arXiv:2401.16438, sharing within a stage. Differs: norm and ReLU as in
    ``TiedBottleneck``.
    """

    def __init__(self, channels: int, inner: int, blocks: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inner, channels, 1, 1))
        self.mixes = nn.ModuleList(SpatialMix(inner) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(blocks))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, h, w)`` to the same shape."""
        expand = self.weight.transpose(0, 1)
        for mix, norm in zip(self.mixes, self.norms, strict=True):
            x = F.relu(x + norm(F.conv2d(mix(F.conv2d(x, self.weight)), expand)))
        return x
