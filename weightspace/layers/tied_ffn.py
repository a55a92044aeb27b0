"""Feed-forward layer whose second matrix is its first one transposed (arXiv:2401.16438)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TiedFFN(nn.Module):
    """``y = Wᵀ GELU(W x + b1) + b2`` with one stored ``W``.

    The nonlinearity leaves W's column space, so Wᵀ can serve as the layer that follows: the
    matrix is used by its rows and by its columns.

    Args:
        dim: size of the input and of the output.
        hidden: rows of ``W``.
        tied: False stores a second matrix ``(dim, hidden)``: the ordinary layer, for comparison.

    Source: arXiv:2401.16438, row and column space sharing. Differs: separate biases.
    """

    def __init__(self, dim: int, hidden: int, *, tied: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, dim))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.out_weight = None if tied else nn.Parameter(torch.empty(dim, hidden))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.xavier_uniform_(self.weight)
        if self.out_weight is not None:
            nn.init.xavier_uniform_(self.out_weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to ``(..., dim)``."""
        out_weight = self.weight.t() if self.out_weight is None else self.out_weight
        hidden = F.gelu(F.linear(x, self.weight, self.hidden_bias))  # (..., hidden)
        return F.linear(hidden, out_weight, self.bias)
