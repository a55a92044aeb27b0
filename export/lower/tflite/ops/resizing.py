"""Resize: TFLite's own where it computes the same, else a product with a matrix for each axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.lower.resize_axis import axis_matrix
from export.lower.tflite.graph import Tensor
from export.lower.tflite.lowering import Lowering, Node, Unsupported

_CHANNELS_LAST = (0, 2, 3, 1)
_TOLERANCE = 1e-6


def resize(low: Lowering, node: Node) -> None:
    """Resize of height and width.

    What ONNX asks for along an axis is a matrix, found with ONNX's own reference operator. It is
    compared with what each of TFLite's settings computes.
    """
    value = node.required(0)
    before, after = low.shape(value), low.shape(node.outputs[0])
    sizes = [*before[1:], *after[1:]]
    if len(before) != 4 or not all(isinstance(size, int) for size in sizes):
        raise Unsupported("a resize of images whose size varies, or of other than 4 axes")
    if before[:2] != after[:2]:
        raise Unsupported("a resize of the batch or of channels")
    high, wide = (axis_matrix(low, node, axis) for axis in (2, 3))
    x = low.tensor(value, _CHANNELS_LAST)
    shape = (x.shape[0], after[2], after[3], x.shape[3])
    for kind, corners, centres in _SETTINGS:
        same = all(
            np.allclose(matrix, _tflite_matrix(kind, corners, centres, *matrix.shape[::-1]),
                        atol=_TOLERANCE)
            for matrix in (high, wide)
        )  # fmt: skip
        if same:
            target = low.vector([high.shape[0], wide.shape[0]])
            found = low.emit(
                kind, [x, target], shape, alignCorners=corners, halfPixelCenters=centres
            )
            low.place(node.outputs[0], found, _CHANNELS_LAST)
            return
    low.place(node.outputs[0], _by_matrices(low, x, high, wide), _CHANNELS_LAST)


_SETTINGS = (
    ("RESIZE_NEAREST_NEIGHBOR", False, False),
    ("RESIZE_NEAREST_NEIGHBOR", False, True),
    ("RESIZE_NEAREST_NEIGHBOR", True, False),
    ("RESIZE_BILINEAR", False, True),
    ("RESIZE_BILINEAR", True, False),
    ("RESIZE_BILINEAR", False, False),
)


def _tflite_matrix(
    kind: str, corners: bool, centres: bool, before: int, after: int
) -> NDArray[np.float64]:
    """What TFLite computes along an axis (tensorflow/lite/kernels/internal/reference)."""
    scale = (before - 1) / (after - 1) if corners and after > 1 else before / after
    places = np.arange(after)
    matrix = np.zeros((after, before))
    if kind == "RESIZE_NEAREST_NEIGHBOR":
        exact = (places + (0.5 if centres else 0.0)) * scale
        nearest = np.floor(exact + 0.5) if corners else np.floor(exact)
        matrix[places, np.clip(nearest.astype(int), 0, before - 1)] = 1
        return matrix
    exact = (places + 0.5) * scale - 0.5 if centres else places * scale
    low = np.clip(np.floor(exact), 0, before - 1).astype(int)
    high = np.minimum(low + 1, before - 1)
    share = np.clip(exact - low, 0, 1)
    np.add.at(matrix, (places, low), 1 - share)
    np.add.at(matrix, (places, high), share)
    return matrix


def _by_matrices(
    low: Lowering, x: Tensor, high: NDArray[np.float64], wide: NDArray[np.float64]
) -> Tensor:
    """Multiply along height, then along width."""
    batch, rows, columns, channels = x.shape
    if high.shape[0] != high.shape[1] or not np.array_equal(high, np.eye(high.shape[0])):
        flat = low.reshape(x, (batch, rows, columns * channels))
        matrix = low.const(high.astype(np.float32)[None], "resize")
        flat = low.emit("BATCH_MATMUL", [matrix, flat], (batch, high.shape[0], columns * channels))
        x = low.reshape(flat, (batch, high.shape[0], columns, channels))
    if wide.shape[0] != wide.shape[1] or not np.array_equal(wide, np.eye(wide.shape[0])):
        matrix = low.const(wide.astype(np.float32)[None, None], "resize")
        shape = (batch, x.shape[1], wide.shape[0], channels)
        x = low.emit("BATCH_MATMUL", [matrix, x], shape)
    return x


TABLE: dict[str, Any] = {"Resize": resize}
