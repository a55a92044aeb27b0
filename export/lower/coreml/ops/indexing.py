"""Operators that pick elements by their place.

Newer systems want places counted from the front, so constant ones are written so, and computed
ones get what they lack; those that an input gives, such as tokens, are taken as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from export.lower.coreml.lowering import (
    BOOL,
    INT32,
    Constant,
    Lowering,
    Node,
    Unsupported,
    Var,
)
from export.lower.sizes import Size

_MODES = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}
_VIEWS = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand")


def gather(low: Lowering, node: Node) -> None:
    """Gather along one axis, such as rows of an embedding table."""
    value = node.required(0)
    shape = low.shape(value)
    axis = node.integer("axis", 0) % len(shape)
    places = low.constant(node.required(1))
    if places is not None and places.size == 1:
        low.place(node.outputs[0], _pick(low, node, axis, int(places.item())))
        return
    x = low.var(value)
    kind = low.type_of(x)
    indices = _places(low, node.required(1), [shape[axis]])
    found = low.emit("gather", x=low.cast(x, INT32) if kind == BOOL else x, indices=indices,
                     axis=axis)  # fmt: skip
    low.place(node.outputs[0], low.cast(found, kind))


def _pick(low: Lowering, node: Node, axis: int, place: int) -> Var:
    """One element of an axis, cut out."""
    value = node.required(0)
    shape = low.shape(value)
    size, rank = shape[axis], len(shape)
    if place < 0 and isinstance(size, int):
        place += size
    cut = [place if i == axis else 0 for i in range(rank)]
    last = [place + 1 if i == axis else 0 for i in range(rank)]
    whole = [i != axis for i in range(rank)]
    to_the_end = [i != axis or place == -1 for i in range(rank)]
    found = low.emit(
        "slice_by_index", x=low.var(value), begin=cut, end=last, begin_mask=whole,
        end_mask=to_the_end,
    )  # fmt: skip
    wanted = low.shape(node.outputs[0])
    if low.rank(node.required(1)) == 0 and wanted:
        return low.emit("squeeze", x=found, axes=[axis])
    return low.reshape(found, wanted) if low.rank(node.required(1)) > 1 else found


def _places(low: Lowering, value: ir.Value, sizes: list[Size]) -> Var:
    """Places counted from the front, with one size for each number of the last axis, or for all."""
    held = low.held(value)
    if isinstance(held, Constant):
        array = np.asarray(held.array, np.int64)
        if (array >= 0).all():
            return low.const(array, held.name)
        if not all(isinstance(size, int) for size in sizes):
            raise Unsupported("places counted from the end of an axis whose size varies")
        ends = np.asarray(sizes if len(sizes) > 1 else sizes[0])
        return low.const(np.where(array < 0, array + ends, array), held.name)
    indices = low.cast(held.var, INT32)
    if _is_given(value):
        return indices
    limit = low.size_vector(sizes)
    negative = low.cast(low.emit("less", x=indices, y=low.number(0, INT32)), INT32)
    return low.emit("add", x=indices, y=low.emit("mul", x=negative, y=limit))


def _is_given(value: ir.Value) -> bool:
    """Whether a value is an input of the model, or a view of one."""
    maker = value.producer()
    if maker is None:
        return value.is_graph_input()
    first = maker.inputs[0] if maker.inputs else None
    return maker.op_type in _VIEWS and first is not None and _is_given(first)


def gather_elements(low: Lowering, node: Node) -> None:
    """GatherElements."""
    value = node.required(0)
    shape = low.shape(value)
    axis = node.integer("axis", 0) % len(shape)
    indices = _places(low, node.required(1), [shape[axis]])
    found = low.emit("gather_along_axis", x=low.var(value), indices=indices, axis=axis)
    low.place(node.outputs[0], found)


def gather_nd(low: Lowering, node: Node) -> None:
    """GatherND."""
    value, batch = node.required(0), node.integer("batch_dims", 0)
    x = low.var(value)
    kind = low.type_of(x)
    if kind == BOOL:
        x = low.cast(x, INT32)
    depth = low.shape(node.required(1))[-1]
    assert isinstance(depth, int)
    sizes = list(low.shape(value)[batch : batch + depth])
    indices = _places(low, node.required(1), sizes)
    given = {"batch_dims": batch} if batch else {}
    found = low.emit("gather_nd", x=x, indices=indices, **given)
    low.place(node.outputs[0], low.cast(found, kind))


def one_hot(low: Lowering, node: Node) -> None:
    """OneHot."""
    depth = low.ints(node.required(1), "the depth")[0]
    values = low.constant(node.required(2))
    if values is None:
        raise Unsupported("values that are computed while the model runs")
    dtype = low.dtype(node.outputs[0])
    off, on = low.converted(values).astype(dtype)
    indices = _places(low, node.required(0), [depth])
    rank = low.rank(node.outputs[0])
    found = low.emit(
        "one_hot", indices=low.cast(indices, INT32), one_hot_vector_size=np.int32(depth),
        axis=node.integer("axis", -1) % rank, on_value=on, off_value=off,
    )  # fmt: skip
    low.place(node.outputs[0], found)


def top_k(low: Lowering, node: Node) -> None:
    """TopK."""
    count = low.ints(node.required(1), "the number of elements")[0]
    axis = node.integer("axis", -1) % low.rank(node.required(0))
    values, places = low.emit(
        "topk", x=low.var(node.required(0)), k=count, axis=axis,
        ascending=not node.integer("largest", 1),
    )  # fmt: skip
    low.place(node.outputs[0], values)
    if len(node.outputs) > 1:
        low.place(node.outputs[1], places)


def scatter_nd(low: Lowering, node: Node) -> None:
    """ScatterND."""
    data, updates = low.var(node.required(0)), low.var(node.required(2))
    depth = low.shape(node.required(1))[-1]
    assert isinstance(depth, int)
    indices = _places(low, node.required(1), list(low.shape(node.required(0))[:depth]))
    mode = _MODES[node.text("reduction", "none")]
    found = low.emit("scatter_nd", data=data, indices=indices, updates=updates, mode=mode)
    low.place(node.outputs[0], found)


def scatter_elements(low: Lowering, node: Node) -> None:
    """ScatterElements."""
    value = node.required(0)
    axis = node.integer("axis", 0) % low.rank(value)
    data, updates = low.var(value), low.var(node.required(2))
    indices = _places(low, node.required(1), [low.shape(value)[axis]])
    mode = _MODES[node.text("reduction", "none")]
    found = low.emit(
        "scatter_along_axis", data=data, indices=indices, updates=updates, axis=axis, mode=mode
    )
    low.place(node.outputs[0], found)


TABLE: dict[str, Any] = {
    "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd,
    "OneHot": one_hot, "TopK": top_k, "ScatterND": scatter_nd,
    "ScatterElements": scatter_elements,
}  # fmt: skip
