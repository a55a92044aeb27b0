"""A tokenizer file of the Hugging Face tokenizers library, read for what apps must know of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import BadFileError


@dataclass(frozen=True, slots=True)
class WordPiece:
    """BERT's tokenizer: lower case, words, then the longest pieces of the vocabulary.

    Args:
        path: of its ``tokenizer.json``.
        vocabulary: the pieces, in the order of their ids.
        tokens: where texts are cut, in tokens.
    """

    path: Path
    vocabulary: tuple[str, ...]
    tokens: int

    @property
    def text(self) -> str:
        """The vocabulary in the form of BERT's ``vocab.txt``: a piece a line."""
        return "".join(f"{piece}\n" for piece in self.vocabulary)

    @property
    def config(self) -> dict[str, Any]:
        """What ``tokenizer_config.json`` says, which swift-transformers reads beside the other."""
        return {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "model_max_length": self.tokens,
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "mask_token": "[MASK]",
        }


def read_wordpiece(path: Path) -> WordPiece:
    """Read a ``tokenizer.json``.

    Raises:
        BadFileError: it is missing, damaged, cuts no text, or is another than BERT's uncased one.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kind, ids = data["model"]["type"], dict(data["model"]["vocab"])
        normalizer = data["normalizer"] or {}
        tokens = (data["truncation"] or {}).get("max_length")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFileError(f"{path} is not a readable tokenizer.json ({error})") from error
    if kind != "WordPiece" or sorted(ids.values()) != list(range(len(ids))):
        raise BadFileError(f"{path} is a {kind} tokenizer; --app needs a WordPiece one, as BERT's")
    if normalizer.get("type") != "BertNormalizer" or not normalizer.get("lowercase"):
        raise BadFileError(f"{path} does not lower its texts as BERT's uncased tokenizer does")
    if not isinstance(tokens, int):
        raise BadFileError(f"{path} cuts no text; save it with truncation at the encoder's tokens")
    return WordPiece(path, tuple(sorted(ids, key=lambda piece: ids[piece])), tokens)
