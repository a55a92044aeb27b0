"""A text encoder with its tokenizer, small enough to be exported in a test."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from weightspace.layers import TiedAttention, TiedFFN
from weightspace.models.minilm import PostNormBlock, TextEncoder

TOKENIZER = Path(__file__).parent / "data" / "tokenizer.json"  # of BERT's kind
TOKENS, VOCABULARY, DIM = 24, 128, 32
AXES = ({0: "batch", 1: "sequence"},) * 2
TEXTS = (
    "the cat sat on the dog",
    "How do I reset my password?",
    "Café Zoë: crème brûlée, 3.5!",
    "A cats\u00ad\u200b \t ROSE",
    "x",
)
LONG = "the cat sat " * 20  # more tokens than the encoder takes


def encoder() -> TextEncoder:
    """Two blocks with one matrix for each FFN."""
    torch.manual_seed(0)
    blocks = [
        PostNormBlock(
            TiedAttention(DIM, 4, tie_value_output=False, tie_query_key=False),
            TiedFFN(DIM, 4 * DIM, gain=True, output_map=True),
            DIM,
        )
        for _ in range(2)
    ]
    return TextEncoder(
        nn.Embedding(VOCABULARY, DIM), blocks, dim=DIM, positions=TOKENS
    ).eval()  # fmt: skip


def example_inputs() -> tuple[Tensor, Tensor]:
    """Draw two texts; the second has padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (2, 8), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids * mask, mask


def with_tokenizer() -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[dict[int, str], ...]]:
    """A factory for the command line."""
    module = encoder()
    module.tokenizer = TOKENIZER
    return module, example_inputs(), AXES


def tokens_of(text: str) -> Tensor:
    """The token ids of one text, ``(1, tokens)``."""
    from tokenizers import Tokenizer

    return torch.tensor([Tokenizer.from_file(str(TOKENIZER)).encode(text).ids])
