"""Text encoders for bundles, as factories."""

from __future__ import annotations

import torch

from weightspace.layers import TiedAttention, TiedFFN
from weightspace.models.minilm import VOCABULARY, FactorisedEmbedding, PostNormBlock, TextEncoder
from weightspace.zoo import path_of

AXES = ({0: "batch", 1: "sequence"},) * 2
DIM, POSITIONS = 64, 256
TOKENIZER = path_of("minilm-tokenizer.json")


def small():
    """One tied block behind a thin table, for the whole vocabulary."""
    encoder = _small()
    encoder.tokenizer = TOKENIZER
    ids = torch.randint(VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    return encoder, (ids * mask, mask), AXES


def fixed_length():
    """The same for one text of 32 tokens in 32-bit integers, which is what LiteRT.js takes."""
    return _small(), (torch.ones(1, 32, dtype=torch.int32), torch.ones(1, 32, dtype=torch.int32))


def _small() -> TextEncoder:
    torch.manual_seed(0)
    attention = TiedAttention(DIM, 4, tie_value_output=False, tie_query_key=False)
    ffn = TiedFFN(DIM, 4 * DIM, gain=True, output_map=True)
    table = FactorisedEmbedding(VOCABULARY, 8, DIM)
    encoder = TextEncoder(table, [PostNormBlock(attention, ffn, DIM)], dim=DIM, positions=POSITIONS)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()
