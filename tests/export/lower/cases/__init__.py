"""Cases for every operator that is lowered to TFLite."""

from __future__ import annotations

from tests.export.lower.cases import elementwise, indexing, linear, movement, reductions, windows

CASES = [
    *elementwise.CASES,
    *windows.CASES,
    *reductions.CASES,
    *movement.CASES,
    *indexing.CASES,
    *linear.CASES,
]
