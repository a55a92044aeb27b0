"""From texts to the token ids and masks that text encoders take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.models.minilm import POSITIONS
from weightspace.zoo import path_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def sample_texts() -> list[str]:
    """Give the texts that ship: 64, of 3 to 129 tokens of English word pieces."""
    return path_of("sample-texts.txt").read_text(encoding="utf-8").splitlines()


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``; texts are not padded.

    Raises:
        ImportError: the package ``tokenizers`` is not installed.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str], longest: int = POSITIONS) -> list[list[int]]:
    """Turn texts into token ids, each cut at ``longest``."""
    tokenizer.enable_truncation(longest)
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]


def padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Stack token ids: the ids and the mask, both ``(batch, longest)`` int64."""
    longest = max(map(len, ids))
    stacked = torch.zeros(len(ids), longest, dtype=torch.int64)
    mask = torch.zeros_like(stacked)
    for row, one in enumerate(ids):
        stacked[row, : len(one)] = torch.tensor(one)
        mask[row, : len(one)] = 1
    return stacked, mask
