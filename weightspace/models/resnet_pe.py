"""Parameter-efficient residual networks and their untied twins (arXiv:2401.16438)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.layers import StagedBottleneck, TiedBottleneck


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm."""

    def __init__(self, channels: int, filters: int, size: int, stride: int = 1) -> None:
        conv = nn.Conv2d(channels, filters, size, stride, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, nn.BatchNorm2d(filters))


class EntryBlock(nn.Module):
    """First bottleneck of a stage: it changes the number of channels, so nothing can be tied.

    The reduce filter is ``(inner, channels)`` and the expand filter ``(filters, inner)``; one is
    the other's transpose only where ``channels == filters``. The stride is in the 3x3
    convolution, as in ResNet v1.5.
    """

    def __init__(self, channels: int, filters: int, inner: int, stride: int) -> None:
        super().__init__()
        self.reduce = ConvNorm(channels, inner, 1)
        self.conv = ConvNorm(inner, inner, 3, stride)
        self.expand = ConvNorm(inner, filters, 1)
        self.shortcut = ConvNorm(channels, filters, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, h, w)`` to ``(batch, filters, h / stride, w / stride)``."""
        y = self.expand(F.relu(self.conv(F.relu(self.reduce(x)))))
        return F.relu(self.shortcut(x) + y)


class ResNet(nn.Module):
    """Stem, stages, global mean, a linear head."""

    def __init__(self, stem: nn.Module, stages: list[nn.Module], width: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map ``(batch, channels, h, w)`` to logits ``(batch, classes)``."""
        logits: Tensor = self.head(self.stages(self.stem(image)).mean(dim=(2, 3)))
        return logits


def _stage(
    channels: int, filters: int, blocks: int, stride: int, *, tied: bool, staged: bool
) -> nn.Module:
    inner = filters // 4
    entry = EntryBlock(channels, filters, inner, stride)
    if tied and staged:
        return nn.Sequential(entry, StagedBottleneck(filters, inner, blocks - 1))
    rest = [TiedBottleneck(filters, inner, tied=tied) for _ in range(blocks - 1)]
    return nn.Sequential(entry, *rest)


def resnet50_pe(*, tied: bool = True, staged: bool = False) -> ResNet:
    """Build ResNet-50 (arXiv:1512.03385, v1.5) for ``(batch, 3, 224, 224)``, 1,000 classes.

    Args:
        tied: False builds the untied twin: the published network.
        staged: the blocks of one stage share their filter as well.
    """
    stem = nn.Sequential(ConvNorm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
    plan = [(64, 256, 3, 1), (256, 512, 4, 2), (512, 1024, 6, 2), (1024, 2048, 3, 2)]
    stages = [_stage(*row, tied=tied, staged=staged) for row in plan]
    return ResNet(stem, stages, 2048, 1000)


def resnet_pe_small(*, tied: bool = True, staged: bool = False) -> ResNet:
    """Build a small ResNet for ``(batch, 1, 28, 28)``: two stages of three blocks, 10 classes."""
    stem = nn.Sequential(ConvNorm(1, 32, 3, 2), nn.ReLU())
    plan = [(32, 128, 3, 1), (128, 256, 3, 2)]
    stages = [_stage(*row, tied=tied, staged=staged) for row in plan]
    return ResNet(stem, stages, 256, 10)
