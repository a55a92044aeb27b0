"""Bottleneck whose expand filter is its reduce filter transposed (arXiv:2401.16438)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpatialMix(nn.Module):
    """G of the paper: norm, ReLU, 3x3 convolution, norm, ReLU on ``(batch, inner, h, w)``."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inner, h, w)`` to the same shape."""
        return F.relu(self.norm2(self.conv(F.relu(self.norm1(x)))))


class TiedBottleneck(nn.Module):
    """``relu(x + norm(Wᵀ G(W x)))`` with one stored 1x1 filter ``W``.

    Args:
        channels: channels of the input and of the output.
        inner: filters of ``W``, ``(inner, channels, 1, 1)``.
        tied: False stores a second filter ``(channels, inner, 1, 1)``: ResNet's own block.

    Source: arXiv:2401.16438. Differs: as in ResNet a norm stands before the sum and a ReLU after
    it, so that the untied twin is the published ResNet-50.
    """

    def __init__(self, channels: int, inner: int, *, tied: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inner, channels, 1, 1))
        self.out_weight = None if tied else nn.Parameter(torch.empty(channels, inner, 1, 1))
        self.mix = SpatialMix(inner)
        self.norm = nn.BatchNorm2d(channels)
        for weight in (self.weight, self.out_weight):
            if weight is not None:
                nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, h, w)`` to the same shape."""
        out_weight = self.weight.transpose(0, 1) if self.out_weight is None else self.out_weight
        y = F.conv2d(self.mix(F.conv2d(x, self.weight)), out_weight)
        return F.relu(x + self.norm(y))
