"""How close an artifact's outputs are to torch's on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.errors import ParityError
from export.records import Parity

FP32_LIMIT = 1e-4  # of the output's scale
LIMITS = {"float32": FP32_LIMIT, "float16": 1e-2}  # by the precision of the stored weights
# Core ML and TensorRT compute in float16 too, where the other formats only store it.
_HALF_LIMITS = {"float32": FP32_LIMIT, "float16": 2e-2}
_COMPUTING_IN_HALF = ("mlpackage", "tensorrt", "engine")


def limit_of(name: str, precision: str) -> float:
    """The largest difference that an artifact of a format may have, of the output's scale."""
    return (_HALF_LIMITS if name in _COMPUTING_IN_HALF else LIMITS)[precision]


def compare_outputs(
    reference: Sequence[NDArray[np.generic]],
    actual: Sequence[NDArray[np.generic]],
    *,
    source: str,
    evaluated_by: str,
    classifier: bool = False,
) -> Parity:
    """Compare outputs pairwise, in float64.

    Args:
        reference: torch's outputs, each ``(batch, ...)``.
        actual: the artifact's, of the same shapes and in the same order.
        source: where the inputs are from, for the record.
        evaluated_by: the runtime that computed ``actual``.
        classifier: whether the first output is ``(batch, classes)``, to compare its arg max.

    Raises:
        ParityError: a shape differs, or an output of the artifact is not finite where torch's is.
    """
    if [a.shape for a in actual] != [r.shape for r in reference]:
        raise ParityError(
            f"output shapes differ: reference {[r.shape for r in reference]}, "
            f"artifact {[a.shape for a in actual]}"
        )
    expected = np.concatenate([r.astype(np.float64).ravel() for r in reference])
    found = np.concatenate([a.astype(np.float64).ravel() for a in actual])
    if not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        raise ParityError("the artifact's outputs are not finite where the reference's are")
    finite = np.isfinite(expected)
    expected, found = expected[finite], found[finite]
    difference = np.abs(expected - found)
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    error = float(np.mean(difference**2)) if difference.size else 0.0
    norms = float(np.linalg.norm(expected) * np.linalg.norm(found))
    agreement = None
    if classifier:
        agreement = float(np.mean(reference[0].argmax(-1) == actual[0].argmax(-1)))
    return Parity(
        max_abs=float(difference.max(initial=0.0)),
        max_rel=float(difference.max(initial=0.0)) / scale,
        cosine=float(expected @ found) / norms if norms else 1.0,
        psnr_db=10 * math.log10(scale**2 / error) if error else None,
        inputs=int(reference[0].shape[0]) if reference[0].ndim else 1,
        source=source,
        top1_agreement=agreement,
        reference=evaluated_by,
    )


def enforce(parity: Parity, limit: float = FP32_LIMIT) -> None:
    """Refuse an artifact whose outputs are off by more than a share of the output's scale.

    Raises:
        ParityError: the difference is over ``limit``.
    """
    if not parity.max_rel <= limit:  # written so that a NaN is refused as well
        raise ParityError(
            f"outputs differ from the reference by {parity.max_rel:.2e} of their scale, "
            f"more than {limit:.0e}; nothing was written"
        )
