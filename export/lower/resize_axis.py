"""What ONNX's Resize does along one axis, as a matrix.

Backends compare it with what their own operators compute, and multiply by it where none does the
same.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from export.lower.facts import Facts
from export.lower.node import Node, Unsupported
from export.reference import run_reference


def axis_matrix(low: Facts, node: Node, axis: int) -> NDArray[np.float64]:
    """The matrix ``(after, before)`` that a Resize applies to an axis of static size."""
    before = low.shape(node.required(0))[axis]
    after = low.shape(node.outputs[0])[axis]
    return _matrix(node, int(str(before)), int(str(after)), _scale(low, node, axis))


def _scale(low: Facts, node: Node, axis: int) -> float | None:
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
    how = np.asarray([after]) if scale is None else np.asarray([scale], np.float32)
    one = onnx.helper.make_node("Resize", inputs, ["y"], axes=[1], **kept)
    feeds = {"x": np.eye(before, dtype=np.float32), "how": how}
    found = run_reference([one], feeds, ["y"], {"": 19})
    if found is None:
        raise Unsupported("a resize that ONNX's reference cannot compute")
    matrix = np.asarray(found[0], np.float64).T
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
