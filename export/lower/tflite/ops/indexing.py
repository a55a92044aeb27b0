"""Operators that pick elements by their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from export.lower.sizes import Size, in_file, is_static
from export.lower.tflite.graph import Tensor
from export.lower.tflite.layout import Layout
from export.lower.tflite.lowering import (
    BOOL,
    INT32,
    INT64,
    Constant,
    Lowering,
    Node,
    Placed,
    Unsupported,
)
from export.lower.tflite.ops.reduction import drop


def gather(low: Lowering, node: Node) -> None:
    """Gather along one axis, such as rows of an embedding table."""
    value = node.required(0)
    shape = low.shape(value)
    axis = node.integer("axis", 0) % len(shape)
    places = low.constant(node.required(1))
    single = places is not None and places.size == 1 and places.ndim <= 1
    if places is not None and single and not isinstance(low.held(value), Constant):
        _pick(low, node, axis, int(places.item()))
        return
    x = low.tensor(value)
    indices = _places(low, node.required(1), [shape[axis]])
    found = low.emit("GATHER", [x, indices], low.shape(node.outputs[0]), axis=axis)
    low.place(node.outputs[0], found)


def _pick(low: Lowering, node: Node, axis: int, place: int) -> None:
    """One element of an axis, cut out: faster than GATHER, and in any layout."""
    value = node.required(0)
    held = low.held(value)
    assert isinstance(held, Placed)
    x, at = held.tensor, held.layout.index(axis)
    size = x.shape[at]
    first = place + size if place < 0 and isinstance(size, int) else place
    shape = (*x.shape[:at], 1, *x.shape[at + 1 :])
    begin, end = ([n if i == at else 0 for i in range(x.rank)] for n in (first, first + 1))
    whole = (1 << x.rank) - 1 - (1 << at)  # XNNPACK takes masks, and no sizes of -1
    to_end = 1 << at if first == -1 else 0
    cut = low.emit(
        "STRIDED_SLICE",
        [x, low.vector(begin), low.vector(end), low.vector([1] * x.rank)],
        shape, beginMask=whole, endMask=whole | to_end,
    )  # fmt: skip
    if len(low.shape(node.required(1))) == 1:
        low.place(node.outputs[0], cut, held.layout)
    else:
        low.place(node.outputs[0], *drop(low, cut, held.layout, (axis,)))


def _places(
    low: Lowering, value: ir.Value, sizes: Sequence[Size], layout: Layout | None = None
) -> Tensor:
    """Places counted from the front, as TFLite wants them.

    Constant ones are counted anew. Of those that are computed a negative one ends the run with an
    error: to look at each would cost every lookup of a token.

    Args:
        sizes: of the axes that the last axis of the places goes through, or of the only one.
    """
    held = low.constant(value)
    if held is None:
        return low.tensor(value, layout)
    array = np.asarray(held.transpose(layout) if layout else held, np.int32)
    if is_static(sizes):
        counted = np.where(array < 0, array + np.asarray(in_file(sizes)), array)
        return low.const(np.asarray(counted, np.int32), "places")
    if not (array < 0).any():
        return low.const(array, "places")
    if len(sizes) > 1:
        raise Unsupported("places from the end of axes whose sizes vary")
    start = low.const(array, "places")
    from_end = low.const(np.asarray(array < 0, np.int32), "from_end")
    added = low.binary("MUL", from_end, low.size_tensor(sizes), from_end.shape)
    return low.binary("ADD", start, added, start.shape)


def gather_elements(low: Lowering, node: Node) -> None:
    """GatherElements: a GATHER for each row, the axis brought to the end."""
    value, places = node.required(0), node.required(1)
    shape, wanted = low.shape(value), low.shape(places)
    rank = len(shape)
    axis = node.integer("axis", 0) % rank
    if any(shape[i] != wanted[i] for i in range(rank) if i != axis):
        raise Unsupported("indices that leave out rows of the data")
    order = (*(i for i in range(rank) if i != axis), axis)
    x, indices = low.tensor(value, order), _places(low, places, [shape[axis]], order)
    found = low.emit("GATHER", [x, indices], indices.shape, axis=rank - 1, batchDims=rank - 1)
    low.place(node.outputs[0], found, order)


def gather_nd(low: Lowering, node: Node) -> None:
    """GatherND without batch axes."""
    if node.integer("batch_dims", 0):
        raise Unsupported("GatherND with batch axes")
    x = low.tensor(node.required(0))
    indices = _places(low, node.required(1), _reached(low, node))
    low.place(node.outputs[0], low.emit("GATHER_ND", [x, indices], low.shape(node.outputs[0])))


def _reached(low: Lowering, node: Node) -> tuple[Size, ...]:
    """The sizes of the axes that the indices of GatherND and ScatterND go through."""
    depth = low.shape(node.required(1))[-1]
    if not isinstance(depth, int):
        raise Unsupported("places through a number of axes that varies")
    return low.shape(node.required(0))[:depth]


def one_hot(low: Lowering, node: Node) -> None:
    """OneHot; places below 0 count from the end."""
    depth = low.constant(node.required(1))
    values = low.constant(node.required(2))
    if depth is None or values is None:
        raise Unsupported("a depth or values that are computed while the model runs")
    shape = low.shape(node.outputs[0])
    indices = low.cast(low.tensor(node.required(0)), INT32)
    count = low.const(np.asarray(depth, np.int32).reshape(()), "depth")
    below = low.emit("LESS", [indices, low.scalar(0, INT32)], indices.shape, BOOL)
    counted = low.binary("ADD", indices, count, indices.shape)
    indices = low.emit("SELECT_V2", [below, counted, indices], indices.shape, INT32)
    off, on = (low.const(np.asarray(v), "value") for v in values.ravel())
    axis = node.integer("axis", -1) % len(shape)
    found = low.emit("ONE_HOT", [indices, count, on, off], shape, on.dtype, axis=axis)
    low.place(node.outputs[0], found)


def top_k(low: Lowering, node: Node) -> None:
    """TopK of the largest along the last axis."""
    value = node.required(0)
    rank = len(low.shape(value))
    if not node.integer("largest", 1):
        raise Unsupported("the smallest elements; TFLite finds the largest")
    axis = node.integer("axis", -1) % rank
    order = (*(i for i in range(rank) if i != axis), axis)
    x = low.tensor(value, order)
    count = low.ints(node.required(1), "the number of elements")[0]
    shape = (*x.shape[:-1], count)
    values = Tensor(low.unique(f"{low.where}/top"), shape, x.dtype)
    places = Tensor(low.unique(f"{low.where}/places"), shape, INT32)
    k = low.const(np.asarray(count, np.int32), "k")
    low.add("TOPK_V2", [x, k], [values, places], {})
    low.place(node.outputs[0], values, order)
    if len(node.outputs) > 1:
        low.place(node.outputs[1], low.cast(places, INT64), order)


def scatter_nd(low: Lowering, node: Node) -> None:
    """ScatterND: the updates are spread over zeros, and picked where a mark is spread as well."""
    how = node.text("reduction", "none")
    if how not in ("none", "add"):
        raise Unsupported("ScatterND that multiplies or compares")
    data, updates = low.tensor(node.required(0)), low.tensor(node.required(2))
    indices = low.cast(_places(low, node.required(1), _reached(low, node)), INT32)
    shape = low.size_tensor(data.shape)
    spread = low.emit("SCATTER_ND", [indices, updates, shape], data.shape, data.dtype)
    if how == "add":
        low.place(node.outputs[0], low.binary("ADD", data, spread, data.shape))
        return
    one = low.const(np.ones((1,) * updates.rank, np.int32), "one")
    ones = low.broadcast_to(one, updates.shape)
    marks = low.emit("SCATTER_ND", [indices, ones, shape], data.shape, INT32)
    kept = low.emit("EQUAL", [marks, low.scalar(0, INT32)], data.shape, BOOL)
    low.place(node.outputs[0], low.emit("SELECT_V2", [kept, data, spread], data.shape, data.dtype))


TABLE: dict[str, Any] = {
    "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd,
    "OneHot": one_hot, "TopK": top_k, "ScatterND": scatter_nd,
}  # fmt: skip
