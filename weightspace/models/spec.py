"""What the toolkit knows of a model beyond its code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One row of ``MODELS``: an image classifier and how to feed it.

    Args:
        build: makes the module, at random weights.
        input_shape: ``(channels, height, width)`` of one sample; the batch may vary.
        checkpoint: file of trained weights in ``weightspace/zoo``; None where none is shipped.
        twin: name of the untied twin; None for a twin itself.
        source: the paper.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]
    classes: int
    twin: str | None
    checkpoint: str | None = None
    source: str = "arXiv:2401.16438"
    input_name: str = "image"
    output_name: str = "logits"

    def example_inputs(self, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
        """Draw ``(batch, *input_shape)`` from a normal distribution."""
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(batch, *self.input_shape, generator=generator),)
