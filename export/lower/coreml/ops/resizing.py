"""Resize: Core ML's own where it computes the same, else a product with a matrix for each axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.lower.coreml.lowering import Lowering, Node, Unsupported, Var
from export.lower.resize_axis import axis_matrix

_TOLERANCE = 1e-6
_MODES = ("UNALIGN_CORNERS", "STRICT_ALIGN_CORNERS", "DEFAULT")
Matrix = NDArray[np.float64]


def resize(low: Lowering, node: Node) -> None:
    """Resize of height and width.

    What ONNX asks for along an axis is a matrix, found with ONNX's own reference operator. It is
    compared with what each of Core ML's settings computes.
    """
    value, output = node.required(0), node.outputs[0]
    before, after = low.shape(value), low.shape(output)
    sizes = [*before[1:], *after[1:]]
    if len(before) != 4 or not all(isinstance(size, int) for size in sizes):
        raise Unsupported("a resize of images whose size varies, or of other than 4 axes")
    if before[1] != after[1]:
        raise Unsupported("a resize of channels")
    high, wide = (axis_matrix(low, node, axis) for axis in (2, 3))
    x = low.var(value)
    if _is_repeat(high) and _is_repeat(wide):
        low.place(output, _repeated(low, x, high, wide))
        return
    for mode in _MODES:
        if all(np.allclose(m, _bilinear(mode, *m.shape[::-1]), atol=_TOLERANCE)
               for m in (high, wide)):  # fmt: skip
            found = low.emit(
                "resize_bilinear", x=x, sampling_mode=mode,
                target_size_height=high.shape[0], target_size_width=wide.shape[0],
            )  # fmt: skip
            low.place(output, found)
            return
    low.place(output, _by_matrices(low, x, high, wide))


def _is_repeat(matrix: Matrix) -> bool:
    """Whether every row is repeated the same number of times."""
    after, before = matrix.shape
    if after % before:
        return False
    return np.array_equal(matrix, np.repeat(np.eye(before), after // before, axis=0))


def _repeated(low: Lowering, x: Var, high: Matrix, wide: Matrix) -> Var:
    factors = [int(matrix.shape[0] // matrix.shape[1]) for matrix in (high, wide)]
    return low.emit(
        "upsample_nearest_neighbor", x=x,
        scale_factor_height=factors[0], scale_factor_width=factors[1],
    )  # fmt: skip


def _bilinear(mode: str, before: int, after: int) -> Matrix:
    """What resize_bilinear computes along an axis (coremltools' documentation of the operator)."""
    places = np.arange(after)
    if mode == "UNALIGN_CORNERS":
        exact = places * (before / after) + 0.5 * before / after - 0.5
    elif mode == "STRICT_ALIGN_CORNERS":
        exact = places * ((before - 1) / (after - 1) if after > 1 else 0.0)
    else:
        exact = places * ((before - before / after) / (after - 1) if after > 1 else 0.0)
    exact = np.clip(exact, 0, before - 1)
    lower = np.floor(exact).astype(int)
    upper = np.minimum(lower + 1, before - 1)
    matrix = np.zeros((after, before))
    np.add.at(matrix, (places, lower), 1 - (exact - lower))
    np.add.at(matrix, (places, upper), exact - lower)
    return matrix


def _by_matrices(low: Lowering, x: Var, high: Matrix, wide: Matrix) -> Var:
    """Multiply along height, then along width."""
    if not np.array_equal(high, np.eye(*high.shape)):
        x = low.emit("matmul", x=low.const(high.astype(np.float32)[None, None], "resize"), y=x)
    if not np.array_equal(wide, np.eye(*wide.shape)):
        matrix = low.const(wide.T.astype(np.float32)[None, None], "resize")
        x = low.emit("matmul", x=x, y=matrix)
    return x


TABLE: dict[str, Any] = {"Resize": resize}
