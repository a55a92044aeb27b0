"""What the toolkit knows of a model beyond its code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """An image classifier and how to feed it.

    Args:
        build: makes the module, at random weights.
        input_shape: ``(channels, height, width)`` of one sample; the batch may vary.
        twin: name of the untied twin; None for a twin itself.
        checkpoint: file of trained weights in ``weightspace/zoo``; None where none is shipped.
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

    input_names: ClassVar[tuple[str, ...]] = ("image",)
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    dynamic_axes: ClassVar[tuple[Mapping[int, str], ...]] = ({0: "batch"},)

    def example_inputs(self, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
        """Draw ``(batch, *input_shape)`` from a normal distribution."""
        return _images(self.input_shape, batch, seed)


@dataclass(frozen=True, slots=True)
class ImageEncoderSpec:
    """An image classifier without its head, and how to feed it.

    Args:
        build: makes the module, at random weights.
        input_shape: ``(channels, height, width)`` of one sample; the batch may vary.
        dimension: length of an embedding.
        twin: name of the untied twin; None for a twin itself.
        checkpoint: file of the classifier's weights in ``weightspace/zoo``.
        source: the paper.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]
    dimension: int
    twin: str | None
    checkpoint: str
    source: str = "arXiv:2401.16438"

    input_names: ClassVar[tuple[str, ...]] = ("image",)
    output_names: ClassVar[tuple[str, ...]] = ("embedding",)
    dynamic_axes: ClassVar[tuple[Mapping[int, str], ...]] = ({0: "batch"},)

    def example_inputs(self, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
        """Draw ``(batch, *input_shape)`` from a normal distribution."""
        return _images(self.input_shape, batch, seed)


def _images(shape: tuple[int, int, int], batch: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, *shape, generator=generator),)


@dataclass(frozen=True, slots=True)
class TextSpec:
    """A text encoder and how to feed it.

    Args:
        build: makes the module, at random weights.
        vocabulary: number of token ids.
        positions: the longest text, in tokens.
        twin: name of the untied twin; None for a twin itself.
        checkpoint: file of trained weights in ``weightspace/zoo``; None where none is shipped.
        tokenizer: file in ``weightspace/zoo``, in the format of the tokenizers library.
        source: the paper.
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

    input_names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    output_names: ClassVar[tuple[str, ...]] = ("embedding",)
    dynamic_axes: ClassVar[tuple[Mapping[int, str], ...]] = (
        {0: "batch", 1: "sequence"},
        {0: "batch", 1: "sequence"},
    )

    def example_inputs(self, batch: int = 2, seed: int = 0, tokens: int = 16) -> tuple[Tensor, ...]:
        """Draw token ids and mask, both ``(batch, tokens)``; the last row ends in padding."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(self.vocabulary, (batch, tokens), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, tokens // 2 :] = 0
        return ids * mask, mask


ModelSpec: TypeAlias = ImageSpec | ImageEncoderSpec | TextSpec


def is_for_fashion_mnist(spec: ModelSpec) -> bool:
    """Whether a model classifies Fashion-MNIST, the one set of images that there is."""
    return isinstance(spec, ImageSpec) and takes_fashion_mnist(spec)


def takes_fashion_mnist(spec: ModelSpec) -> bool:
    """Whether Fashion-MNIST's images are a model's input, whatever it makes of them."""
    return not isinstance(spec, TextSpec) and spec.input_shape == (1, 28, 28)
