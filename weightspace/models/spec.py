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


@dataclass(frozen=True, slots=True)
class TextSpec:
    """One row of ``MODELS``: a text encoder.

    Args:
        build: makes the module, at random weights.
        vocabulary: number of token ids.
        positions: the longest text, in tokens.
        checkpoint: file of trained weights in ``weightspace/zoo``; None where none is shipped.
        twin: name of the untied twin; None for a twin itself.
        tokenizer: file in ``weightspace/zoo``, in the format of the tokenizers library.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    vocabulary: int
    positions: int
    twin: str | None
    checkpoint: str | None = None
    tokenizer: str = "minilm-tokenizer.json"
    source: str = "arXiv:2002.10957"
    input_names: tuple[str, str] = ("input_ids", "attention_mask")
    output_name: str = "embedding"

    def example_inputs(self, batch: int = 2, tokens: int = 16, seed: int = 0) -> tuple[Tensor, ...]:
        """Draw token ids ``(batch, tokens)``; the last row has padding at its end."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(self.vocabulary, (batch, tokens), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, tokens // 2 :] = 0
        return ids * mask, mask
