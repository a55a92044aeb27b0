"""Layers with tied weights; every row of ``LAYERS`` is tested alike."""

from torch import nn

from weightspace.layers.staged_bottleneck import StagedBottleneck
from weightspace.layers.tied_attention import TiedAttention
from weightspace.layers.tied_bottleneck import TiedBottleneck
from weightspace.layers.tied_ffn import TiedFFN

LAYERS: dict[str, type[nn.Module]] = {
    "TiedFFN": TiedFFN,
    "TiedAttention": TiedAttention,
    "TiedBottleneck": TiedBottleneck,
    "StagedBottleneck": StagedBottleneck,
}

__all__ = ["LAYERS", "StagedBottleneck", "TiedAttention", "TiedBottleneck", "TiedFFN"]
