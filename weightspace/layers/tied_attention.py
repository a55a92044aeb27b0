"""Self-attention that uses its matrices both straight and transposed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TiedAttention(nn.Module):
    """Multi-head self-attention with ``W_o = W_vᵀ`` and keys that read ``W_qᵀ``.

    Attention stands between values and output as the nonlinearity does in an FFN, so the output
    projection can be the values' matrix transposed. The square query matrix is read by its rows
    for queries and by its columns for keys. Biases are separate.

    Args:
        dim: size of the input and of the output; a multiple of ``heads``.
        heads: number of attention heads.
        tie_value_output: store no output matrix.
        tie_query_key: store no key matrix.

    Raises:
        ValueError: ``dim`` is not a multiple of ``heads``.

    Source: ours, after the pattern of arXiv:2401.16438.
    """

    def __init__(
        self, dim: int, heads: int, *, tie_value_output: bool = True, tie_query_key: bool = True
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.heads = heads
        self.query_weight = nn.Parameter(torch.empty(dim, dim))
        self.key_weight = None if tie_query_key else nn.Parameter(torch.empty(dim, dim))
        self.value_weight = nn.Parameter(torch.empty(dim, dim))
        self.out_weight = None if tie_value_output else nn.Parameter(torch.empty(dim, dim))
        self.query_bias = nn.Parameter(torch.zeros(dim))
        self.key_bias = nn.Parameter(torch.zeros(dim))
        self.value_bias = nn.Parameter(torch.zeros(dim))
        self.out_bias = nn.Parameter(torch.zeros(dim))
        for weight in (self.query_weight, self.key_weight, self.value_weight, self.out_weight):
            if weight is not None:
                nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map ``(batch, tokens, dim)`` to ``(batch, tokens, dim)``.

        Args:
            bias: added to the scores, ``(batch, 1, 1, tokens)``: far below zero for padding.
        """
        key_weight = self.query_weight.t() if self.key_weight is None else self.key_weight
        out_weight = self.value_weight.t() if self.out_weight is None else self.out_weight
        query = self._split(F.linear(x, self.query_weight, self.query_bias))
        key = self._split(F.linear(x, key_weight, self.key_bias))
        value = self._split(F.linear(x, self.value_weight, self.value_bias))
        mixed = F.scaled_dot_product_attention(query, key, value, bias)
        return F.linear(mixed.transpose(1, 2).flatten(2), out_weight, self.out_bias)

    def _split(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        split = x.view(batch, tokens, self.heads, dim // self.heads)
        return split.transpose(1, 2)  # (batch, heads, tokens, dim / heads)
