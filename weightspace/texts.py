"""Texts for encoders: samples that ship, tokenizers of the zoo, and token ids as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace import zoo

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def sample_texts() -> list[str]:
    """Give the texts that ship: 64, of 3 to 129 tokens of English word pieces."""
    return zoo.path_of("sample-texts.txt").read_text(encoding="utf-8").splitlines()


def load_tokenizer(file: str) -> Tokenizer:
    """Read a tokenizer of ``weightspace/zoo``.

    Raises:
        ImportError: the package ``tokenizers`` is not installed.
    """
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(zoo.path_of(file)))


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Turn texts into token ids, each cut where the tokenizer cuts."""
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
