"""Resize: TFLite's own where it computes the same, else a product with a matrix for each axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

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
    high, wide = (
        _matrix(node, int(str(before[axis])), int(str(after[axis])), _scale(low, node, axis))
        for axis in (2, 3)
    )
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


def _scale(low: Lowering, node: Node, axis: int) -> float | None:
    """The scale that is given for an axis; None where its size is given."""
    if node.input(2) is None or low.shape(node.required(2)) == (0,):
        return None
    scales = low.constant(node.required(2))
    if scales is None:
        raise Unsupported("scales that are computed while the model runs")
    axes = [a % 4 for a in node.integers("axes", range(4))]
    return float(scales[axes.index(axis)]) if axis in axes else 1.0


def _matrix(node: Node, before: int, after: int, scale: float | None) -> NDArray[np.float64]:
    """The matrix ``(after, before)`` that ONNX's Resize applies to an axis.

    A scale that is given is not the ratio of the sizes, which are whole.
    """
    if before == after and scale in (None, 1.0):
        return np.eye(before)
    mode = node.text("coordinate_transformation_mode", "half_pixel")
    if node.text("mode", "nearest") == "nearest":
        places = np.clip(_nearest(node, mode, before, after, scale), 0, before - 1)
        return np.eye(before)[places]
    if mode == "tf_crop_and_resize":
        raise Unsupported("tf_crop_and_resize")
    if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("keep_aspect_ratio_policy; give scales or both sizes")
    kept = {
        name: node.ir.attributes[name].value
        for name in (
            "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside",
            "extrapolation_value", "mode", "nearest_mode", "antialias",
        )
        if name in node.ir.attributes
    }  # fmt: skip
    if mode == "pytorch_half_pixel" and after == 1:  # the one place is 0; the reference says -0.5
        kept["coordinate_transformation_mode"] = "asymmetric"
    inputs = ["x", "", "", "how"] if scale is None else ["x", "", "how"]
    how, kind = (
        (np.asarray([after]), onnx.TensorProto.INT64) if scale is None
        else (np.asarray([scale], np.float32), onnx.TensorProto.FLOAT)
    )  # fmt: skip
    one = onnx.helper.make_node("Resize", inputs, ["y"], axes=[1], **kept)
    graph = onnx.helper.make_graph(
        [one], "resize",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [before, before]),
         onnx.helper.make_tensor_value_info("how", kind, [1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])
    from onnx.reference import ReferenceEvaluator

    feeds = {"x": np.eye(before, dtype=np.float32), "how": how}
    matrix = np.asarray(ReferenceEvaluator(model).run(None, feeds)[0], np.float64).T
    if matrix.shape != (after, before):
        raise Unsupported(f"a resize of {before} to {after} by {scale}")
    return matrix


def _nearest(
    node: Node, mode: str, before: int, after: int, scale: float | None
) -> NDArray[np.int64]:
    """The place that each element is taken from, in float32 as ONNX Runtime finds it.

    Halves are common, and so it matters how they come about.
    """
    one, half = np.float32(1), np.float32(0.5)
    ratio = np.float32(after) / np.float32(before) if scale is None else np.float32(scale)
    number = np.arange(after, dtype=np.float32)
    centred = (number + half) / ratio - half
    exact: NDArray[np.float32]
    if mode == "half_pixel":
        exact = centred
    elif mode == "pytorch_half_pixel":
        exact = centred if after > 1 else number * 0
    elif mode == "asymmetric":
        exact = number / ratio
    elif mode == "align_corners":
        exact = number * np.float32(before - 1) / np.float32(max(after - 1, 1))
    elif mode == "half_pixel_symmetric":
        adjusted = np.float32(after) / (ratio * np.float32(before))
        exact = np.float32(before) / 2 * (one - adjusted) + centred
    else:
        raise Unsupported(f"places by {mode!r}")
    rounded = {
        "round_prefer_floor": np.ceil(exact - half), "round_prefer_ceil": np.floor(exact + half),
        "floor": np.floor(exact), "ceil": np.ceil(exact),
    }  # fmt: skip
    return np.asarray(rounded[node.text("nearest_mode", "round_prefer_floor")], np.int64)


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
