"""Parameter-efficient vision transformers and their untied twins (arXiv:2401.16438)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.layers import TiedAttention, TiedFFN

ALL_TIES = frozenset({"ffn", "value-output", "query-key"})


class Block(nn.Module):
    """Pre-norm transformer block on ``(batch, tokens, dim)``."""

    def __init__(self, attention: TiedAttention, ffn: TiedFFN, dim: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = attention
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = ffn

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, tokens, dim)`` to the same shape."""
        x = x + self.attention(self.attention_norm(x))
        x = x + self.ffn(self.ffn_norm(x))
        return x


class UnitLength(nn.Module):
    """Scale each row to length 1, so that the dot product of two is their cosine."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to the same shape."""
        return F.normalize(x, dim=-1)


class VisionTransformer(nn.Module):
    """Class token, learned positions, pre-norm blocks, a linear head or none.

    Args:
        stem: maps ``(batch, channels, h, w)`` to ``(batch, dim, rows, columns)``.
        tokens: ``rows * columns``.
        classes: None for an image encoder: the class token itself, at length 1, is its output.
    """

    def __init__(
        self, stem: nn.Module, blocks: list[Block], *, dim: int, tokens: int, classes: int | None
    ) -> None:
        super().__init__()
        self.stem = stem
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, tokens + 1, dim))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = UnitLength() if classes is None else nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.positions, std=0.02)
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Map ``(batch, channels, h, w)`` to ``(batch, classes)`` or ``(batch, dim)``."""
        patches = self.stem(image).flatten(2).transpose(1, 2)  # (batch, tokens, dim)
        token = self.class_token.expand(patches.shape[0], -1, -1)
        x = torch.cat([token, patches], dim=1) + self.positions
        output: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return output


def _blocks(depth: int, dim: int, heads: int, ties: frozenset[str]) -> list[Block]:
    unknown = ties - ALL_TIES
    if unknown:
        raise ValueError(f"ties {sorted(unknown)} are not known; there are {sorted(ALL_TIES)}")
    return [
        Block(
            TiedAttention(
                dim,
                heads,
                tie_value_output="value-output" in ties,
                tie_query_key="query-key" in ties,
            ),
            TiedFFN(dim, 4 * dim, tied="ffn" in ties),
            dim,
        )
        for _ in range(depth)
    ]


def vit_pe(
    dim: int, depth: int, heads: int, *, tied: bool = True, ties: frozenset[str] = ALL_TIES
) -> VisionTransformer:
    """Build a ViT for ``(batch, 3, 224, 224)`` in patches of 16, 1,000 classes.

    Args:
        tied: False builds the untied twin, whatever ``ties`` says.
        ties: which matrices are shared: ``ffn``, ``value-output``, ``query-key``.

    Raises:
        ValueError: ``ties`` holds an unknown name.
    """
    blocks = _blocks(depth, dim, heads, ties if tied else frozenset())
    stem = nn.Conv2d(3, dim, 16, stride=16)
    return VisionTransformer(stem, blocks, dim=dim, tokens=14 * 14, classes=1000)


def vit_pe_ti16(*, tied: bool = True, ties: frozenset[str] = ALL_TIES) -> VisionTransformer:
    """Build ViT-Ti/16 (arXiv:2012.12877): width 192, 12 blocks, 3 heads."""
    return vit_pe(192, 12, 3, tied=tied, ties=ties)


def vit_pe_s16(*, tied: bool = True, ties: frozenset[str] = ALL_TIES) -> VisionTransformer:
    """Build ViT-S/16 (arXiv:2012.12877): width 384, 12 blocks, 6 heads."""
    return vit_pe(384, 12, 6, tied=tied, ties=ties)


def vit_pe_b16(*, tied: bool = True, ties: frozenset[str] = ALL_TIES) -> VisionTransformer:
    """Build ViT-B/16 (arXiv:2010.11929): width 768, 12 blocks, 12 heads."""
    return vit_pe(768, 12, 12, tied=tied, ties=ties)


def vit_pe_small(
    *, tied: bool = True, ties: frozenset[str] = ALL_TIES, classes: int | None = 10
) -> VisionTransformer:
    """Build a small ViT for ``(batch, 1, 28, 28)``: 16 tokens of 80, 6 blocks.

    Args:
        classes: None for an image encoder, which gives embeddings ``(batch, 80)``.
    """
    dim = 80
    # Strided convolutions see edges that single patches miss at this size (arXiv:2106.14881).
    stem = nn.Sequential(_stem_step(1, 32), _stem_step(32, 64), _stem_step(64, dim))
    blocks = _blocks(6, dim, 4, ties if tied else frozenset())
    return VisionTransformer(stem, blocks, dim=dim, tokens=4 * 4, classes=classes)


def _stem_step(channels: int, filters: int) -> nn.Sequential:
    """Halve height and width."""
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(filters),
        nn.ReLU(),
    )
