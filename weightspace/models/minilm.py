"""Small text encoders: BERT blocks, mean pooling and L2 normalisation in one module."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.layers import TiedAttention, TiedFFN

VOCABULARY, POSITIONS, DIM, HIDDEN, HEADS, DEPTH = 30522, 256, 384, 1536, 12, 6
_FAR = -1e4  # added to the scores of padding; its exponential is 0, and float16 holds it


class FactorisedEmbedding(nn.Module):
    """A table of thin rows and one matrix that widens them (arXiv:1909.11942, section 3.1)."""

    def __init__(self, count: int, rank: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count, rank)
        self.expand = nn.Linear(rank, dim, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids ``(...)`` to ``(..., dim)``."""
        widened: Tensor = self.expand(self.table(ids))
        return widened


class PostNormBlock(nn.Module):
    """BERT's transformer block on ``(batch, tokens, dim)``: each norm follows its sum."""

    def __init__(self, attention: TiedAttention, ffn: TiedFFN, dim: int) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(dim, eps=1e-12)
        self.ffn = ffn
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Map ``(batch, tokens, dim)`` to the same shape; ``bias`` is added to the scores."""
        x = self.attention_norm(x + self.attention(x, bias))
        x = self.ffn_norm(x + self.ffn(x))
        return x


class TextEncoder(nn.Module):
    """From token ids to one embedding of length 1 for each text.

    Pooling and normalisation are part of the module, so that an app needs a tokenizer and one call.
    All tokens are of BERT's first segment, whose vector is part of ``positions``.

    Args:
        embedding: maps ids to vectors of ``dim``.
        positions: the longest text, in tokens.

    Source: BERT (arXiv:1810.04805); pooling of Sentence-BERT (arXiv:1908.10084).
    """

    def __init__(
        self, embedding: nn.Module, blocks: list[PostNormBlock], *, dim: int, positions: int
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.positions = nn.Parameter(torch.empty(positions, dim))
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.blocks = nn.ModuleList(blocks)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed texts.

        Args:
            input_ids: ``(batch, tokens)``, integers; tokens are at most as many as positions.
            attention_mask: ``(batch, tokens)``, integers: 1 for a token, 0 for padding.

        Returns:
            ``(batch, dim)``, each row of length 1.
        """
        return pooled(self.hidden_states(input_ids, attention_mask)[-1], attention_mask)

    @property
    def layers(self) -> list[PostNormBlock]:
        """The blocks, in order."""
        return [block for block in self.blocks if isinstance(block, PostNormBlock)]

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """Give what enters the first block and what each block gives, ``(batch, tokens, dim)``."""
        x = self.embedding(input_ids) + self.positions[: input_ids.shape[1]]
        states = [self.norm(x)]
        bias = (1 - attention_mask[:, None, None, :].to(x.dtype)) * _FAR
        for block in self.layers:
            states.append(block(states[-1], bias))
        return states


def pooled(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Average the tokens that are no padding and scale to length 1, ``(batch, dim)``."""
    mask = attention_mask[:, :, None].to(states.dtype)
    mean = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
    return F.normalize(mean, dim=-1)


def minilm(*, tied: bool = True, hidden: int = HIDDEN, rank: int | None = None) -> TextEncoder:
    """Build an encoder of MiniLM's size (arXiv:2002.10957): 6 blocks of width 384.

    Args:
        tied: store one matrix for each FFN, with a gain for each hidden unit and a square output
            map. False stores two.
        hidden: width of the FFNs.
        rank: width of the factorised embedding table; None for a plain table.
    """
    embedding = (
        nn.Embedding(VOCABULARY, DIM)
        if rank is None
        else FactorisedEmbedding(VOCABULARY, rank, DIM)
    )
    blocks = [
        PostNormBlock(
            TiedAttention(DIM, HEADS, tie_value_output=False, tie_query_key=False),
            TiedFFN(DIM, hidden, tied=tied, gain=tied, output_map=tied),
            DIM,
        )
        for _ in range(DEPTH)
    ]
    return TextEncoder(embedding, blocks, dim=DIM, positions=POSITIONS)
