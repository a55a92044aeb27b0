"""Small text encoders of the zoo's architecture, with values such as trained ones have."""

from __future__ import annotations

import torch
from torch import nn

from weightspace.layers import TiedAttention, TiedFFN
from weightspace.models.minilm import FactorisedEmbedding, PostNormBlock, TextEncoder

VOCABULARY, POSITIONS, DIM = 500, 48, 64
AXES = [{0: "batch", 1: "sequence"}] * 2
NAMES = ["input_ids", "attention_mask"]


def small_encoder(rank: int | None = None) -> TextEncoder:
    """Two blocks with one matrix for each FFN; ``rank`` factorises the table of the words."""
    torch.manual_seed(0)
    table = (
        nn.Embedding(VOCABULARY, DIM)
        if rank is None
        else FactorisedEmbedding(VOCABULARY, rank, DIM)
    )
    blocks = [
        PostNormBlock(
            TiedAttention(DIM, 4, tie_value_output=False, tie_query_key=False),
            TiedFFN(DIM, 2 * DIM, gain=True, output_map=True),
            DIM,
        )
        for _ in range(2)
    ]
    encoder = TextEncoder(table, blocks, dim=DIM, positions=POSITIONS)
    with torch.no_grad():
        for parameter in encoder.parameters():
            # Norms at 1 and biases at 0 would hide a mistake.
            parameter.add_(0.1 * torch.randn_like(parameter))
        for block in encoder.blocks:
            # As in BERT, a few dimensions are far larger than all others.
            block.ffn.bias[5] += 30
            block.attention_norm.weight[9] *= 12
    return encoder.eval()


def token_inputs(batch: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw ids and mask; each row but the first has more padding than the one before."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(1, VOCABULARY, (batch, tokens), generator=generator)
    lengths = tokens - torch.arange(batch) * (tokens - 1) // max(1, batch - 1)
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    return ids * mask, mask
