"""Operators that pick elements by their place."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.lower.tflite.graph import Tensor
from export.lower.tflite.lowering import (
    BOOL,
    FLOAT,
    INT32,
    INT64,
    Constant,
    Lowering,
    Node,
    Placed,
    Unsupported,
)
from export.lower.tflite.ops.reduction import drop
from export.lower.tflite.sizes import Size, broadcast


def gather(low: Lowering, node: Node) -> None:
    """Gather along one axis, such as rows of an embedding table."""
    value = node.required(0)
    shape = low.shape(value)
    axis = node.integer("axis", 0) % len(shape)
    places = low.constant(node.required(1))
    if places is not None and places.size == 1 and not isinstance(low.held(value), Constant):
        _pick(low, node, axis, int(places.item()))
        return
    x = low.tensor(value)
    indices = _indices(low, node, shape[axis])
    found = low.emit("GATHER", [x, indices], low.shape(node.outputs[0]), axis=axis)
    low.place(node.outputs[0], found)


def _pick(low: Lowering, node: Node, axis: int, place: int) -> None:
    """One element of an axis, cut out: faster than GATHER, and in any layout."""
    value = node.required(0)
    held = low.held(value)
    assert isinstance(held, Placed)
    x, at = held.tensor, held.layout.index(axis)
    size = x.shape[at]
    if place < 0 and not isinstance(size, int):
        raise Unsupported("an index from the end of an axis whose size varies")
    first = place + size if place < 0 and isinstance(size, int) else place
    shape = (*x.shape[:at], 1, *x.shape[at + 1 :])
    begin, end = ([n if i == at else 0 for i in range(x.rank)] for n in (first, first + 1))
    whole = (1 << x.rank) - 1 - (1 << at)  # XNNPACK takes masks, and no sizes of -1
    cut = low.emit(
        "STRIDED_SLICE",
        [x, low.vector(begin), low.vector(end), low.vector([1] * x.rank)],
        shape, beginMask=whole, endMask=whole,
    )  # fmt: skip
    if len(low.shape(node.required(1))) == 1:
        low.place(node.outputs[0], cut, held.layout)
    else:
        low.place(node.outputs[0], *drop(low, cut, held.layout, (axis,)))


def _indices(low: Lowering, node: Node, size: Size) -> Tensor:
    """Places as TFLite wants them: constant ones counted from the front."""
    held = low.held(node.required(1))
    if isinstance(held, Constant) and isinstance(size, int):
        array = np.asarray(held.array, np.int32)
        array = np.where(array < 0, array + size, array).astype(np.int32)
        return low.const(array, "places")
    return low.tensor(node.required(1))


def gather_elements(low: Lowering, node: Node) -> None:
    """GatherElements: a GATHER for each row, the axis brought to the end."""
    value, places = node.required(0), node.required(1)
    shape, wanted = low.shape(value), low.shape(places)
    rank = len(shape)
    axis = node.integer("axis", 0) % rank
    if any(shape[i] != wanted[i] for i in range(rank) if i != axis):
        raise Unsupported("indices that leave out rows of the data")
    order = (*(i for i in range(rank) if i != axis), axis)
    x, indices = low.tensor(value, order), low.tensor(places, order)
    found = low.emit("GATHER", [x, indices], indices.shape, axis=rank - 1, batchDims=rank - 1)
    low.place(node.outputs[0], found, order)


def gather_nd(low: Lowering, node: Node) -> None:
    """GatherND without batch axes."""
    if node.integer("batch_dims", 0):
        raise Unsupported("GatherND with batch axes")
    x, indices = low.tensor(node.required(0)), low.tensor(node.required(1))
    kind = x.dtype
    if kind == BOOL:  # the kernel has no booleans
        x = low.cast(x, INT32)
    found = low.emit("GATHER_ND", [x, indices], low.shape(node.outputs[0]))
    low.place(node.outputs[0], low.cast(found, kind))


def one_hot(low: Lowering, node: Node) -> None:
    """OneHot."""
    depth = low.constant(node.required(1))
    values = low.constant(node.required(2))
    if depth is None or values is None:
        raise Unsupported("a depth or values that are computed while the model runs")
    indices = low.cast(low.tensor(node.required(0)), INT32)
    count = low.const(np.asarray(depth, np.int32).reshape(()), "depth")
    off, on = (low.const(np.asarray(v), "value") for v in values.ravel())
    axis = node.integer("axis", -1)
    shape = low.shape(node.outputs[0])
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
    low.graph.add("TOPK_V2", [x, k], [values, places], {}, low.where)
    low.place(node.outputs[0], values, order)
    if len(node.outputs) > 1:
        low.place(node.outputs[1], low.cast(places, INT64), order)


def scatter_nd(low: Lowering, node: Node) -> None:
    """ScatterND: what is replaced is masked out, and the updates are added in its place."""
    if node.text("reduction", "none") not in ("none", "add"):
        raise Unsupported("ScatterND that multiplies or compares")
    data, indices, updates = (low.tensor(node.required(i)) for i in range(3))
    if data.dtype != FLOAT:
        raise Unsupported(f"ScatterND of {data.dtype}; float32 is supported")
    indices = low.cast(indices, INT32)
    shape = low.size_tensor(data.shape)
    spread = low.emit("SCATTER_ND", [indices, updates, shape], data.shape, FLOAT)
    if node.text("reduction", "none") == "none":
        one = low.const(np.ones((1,) * updates.rank, np.float32), "one")
        ones = low.broadcast_to(one, updates.shape)
        marks = low.emit("SCATTER_ND", [indices, ones, shape], data.shape, FLOAT)
        kept = low.binary("SUB", low.scalar(1.0), marks, data.shape)
        data = low.binary("MUL", data, kept, broadcast(data.shape, kept.shape))
    low.place(node.outputs[0], low.binary("ADD", data, spread, data.shape))


TABLE: dict[str, Any] = {
    "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd,
    "OneHot": one_hot, "TopK": top_k, "ScatterND": scatter_nd,
}  # fmt: skip
