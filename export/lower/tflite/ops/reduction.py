"""Reductions over axes; they follow the layout of their input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from export.lower.sizes import Shape
from export.lower.tflite.graph import Tensor
from export.lower.tflite.layout import Layout, plain
from export.lower.tflite.lowering import (
    BOOL,
    INT32,
    INT64,
    Constant,
    Lowering,
    Node,
    Unsupported,
)

_KINDS = {
    "ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN", "ReduceProd": "REDUCE_PROD", "GlobalAveragePool": "MEAN",
    "GlobalMaxPool": "REDUCE_MAX",
}  # fmt: skip


def reduce(low: Lowering, node: Node) -> None:
    """The reductions that are one TFLite operator."""
    kind = _KINDS[node.kind]
    if low.dtype(node.required(0)) == BOOL:
        kind = {"REDUCE_MAX": "REDUCE_ANY", "REDUCE_MIN": "REDUCE_ALL"}.get(kind, kind)
    _reduce(low, node, lambda x, places, shape: _emit(low, kind, x, places, shape))


def reduce_squares(low: Lowering, node: Node) -> None:
    """ReduceSumSquare and ReduceL2."""

    def compute(x: Tensor, places: list[int], shape: Shape) -> Tensor:
        found = _emit(low, "SUM", low.square(x), places, shape)
        return low.emit("SQRT", [found], shape) if node.kind == "ReduceL2" else found

    _reduce(low, node, compute)


def reduce_l1(low: Lowering, node: Node) -> None:
    """ReduceL1."""
    _reduce(low, node, lambda x, places, shape: _emit(low, "SUM", low.absolute(x), places, shape))


def reduce_log_sum(low: Lowering, node: Node) -> None:
    """ReduceLogSum and ReduceLogSumExp; of the latter the largest element is taken out first."""

    def compute(x: Tensor, places: list[int], shape: Shape) -> Tensor:
        if node.kind == "ReduceLogSum":
            return low.emit("LOG", [_emit(low, "SUM", x, places, shape)], shape)
        top = _emit(low, "REDUCE_MAX", x, places, shape)
        powers = low.emit("EXP", [low.binary("SUB", x, top, x.shape)], x.shape)
        logs = low.emit("LOG", [_emit(low, "SUM", powers, places, shape)], shape)
        return low.binary("ADD", logs, top, shape)

    _reduce(low, node, compute)


def _emit(low: Lowering, kind: str, x: Tensor, places: list[int], shape: Shape) -> Tensor:
    if not places:  # what is computed for each element before and after is still due
        return x
    return low.emit(kind, [x, low.vector(places)], shape, keepDims=True)


def _reduce(
    low: Lowering, node: Node, compute: Callable[[Tensor, list[int], Shape], Tensor]
) -> None:
    """Reduce and keep the axes, then drop them where ONNX does."""
    value = node.required(0)
    rank = len(low.shape(value))
    axes = low.reduced_axes(node, rank)
    held = low.held(value)
    layout = plain(rank) if isinstance(held, Constant) else held.layout
    x = low.tensor(value, layout)
    places = sorted(layout.index(axis) for axis in axes)
    kept = tuple(1 if place in places else size for place, size in enumerate(x.shape))
    found = compute(x, places, kept)
    keep = node.kind.startswith("Global") or bool(node.integer("keepdims", 1))
    low.place(node.outputs[0], *(found, layout) if keep else drop(low, found, layout, axes))


def drop(low: Lowering, x: Tensor, layout: Layout, axes: tuple[int, ...]) -> tuple[Tensor, Layout]:
    """Drop axes of size 1, given in ONNX's order; gives the tensor and its new layout."""
    left = [axis for axis in layout if axis not in axes]
    shape = [size for size, axis in zip(x.shape, layout, strict=True) if axis not in axes]
    order = sorted(left)
    return low.reshape(x, shape), tuple(order.index(axis) for axis in left)


def arg_extreme(low: Lowering, node: Node) -> None:
    """ArgMax and ArgMin; of 64 bit integers they compare the lower 32 bits."""
    if node.integer("select_last_index", 0):
        raise Unsupported("select_last_index=1 has no TFLite form")
    value = node.required(0)
    rank = len(low.shape(value))
    axis = node.integer("axis", 0) % rank
    x = low.tensor(value)
    if x.dtype == INT64:
        x = low.cast(x, INT32)
    kind = "ARG_MAX" if node.kind == "ArgMax" else "ARG_MIN"
    shape = tuple(size for place, size in enumerate(x.shape) if place != axis)
    place = low.const(np.asarray(axis, np.int32), "axis")
    found = low.emit(kind, [x, place], shape, INT32, outputType=2)
    found = low.cast(found, low.dtype(node.outputs[0]))
    low.place(node.outputs[0], low.reshape(found, low.shape(node.outputs[0])))


TABLE: dict[str, Any] = {
    **dict.fromkeys(_KINDS, reduce),
    "ReduceSumSquare": reduce_squares, "ReduceL2": reduce_squares, "ReduceL1": reduce_l1,
    "ReduceLogSum": reduce_log_sum, "ReduceLogSumExp": reduce_log_sum,
    "ArgMax": arg_extreme, "ArgMin": arg_extreme,
}  # fmt: skip
