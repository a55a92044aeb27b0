"""How well embeddings find their like."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def finds_its_class(
    embeddings: NDArray[np.floating], labels: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Tell of each sample whether the nearest other one is of its class; the mean is R@1.

    Args:
        embeddings: ``(samples, dim)``, each of length 1; the nearest has the largest dot product.
        labels: ``(samples,)``.

    Returns:
        ``(samples,)``.
    """
    likeness = embeddings @ embeddings.T
    np.fill_diagonal(likeness, -np.inf)
    found: NDArray[np.bool_] = labels[likeness.argmax(axis=1)] == labels
    return found
