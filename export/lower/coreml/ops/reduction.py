"""Reductions over axes."""

from __future__ import annotations

from typing import Any

from export.lower.coreml.lowering import BOOL, FLOAT32, INT32, Lowering, Node, Unsupported, Var

_KINDS = {
    "ReduceMean": "reduce_mean", "ReduceSum": "reduce_sum", "ReduceMax": "reduce_max",
    "ReduceMin": "reduce_min", "ReduceProd": "reduce_prod", "ReduceL1": "reduce_l1_norm",
    "ReduceL2": "reduce_l2_norm", "ReduceSumSquare": "reduce_sum_square",
    "ReduceLogSum": "reduce_log_sum", "ReduceLogSumExp": "reduce_log_sum_exp",
    "GlobalAveragePool": "reduce_mean", "GlobalMaxPool": "reduce_max",
}  # fmt: skip


def reduce(low: Lowering, node: Node) -> None:
    """The reductions that are one operator of Core ML."""
    value = node.required(0)
    axes = low.reduced_axes(node, low.rank(value))
    if not axes:
        low.hold(node.outputs[0], low.held(value))
        return
    keep = node.kind.startswith("Global") or bool(node.integer("keepdims", 1))
    x = low.var(value)
    if low.type_of(x) == BOOL:
        x = low.cast(x, INT32)
    kind = _KINDS[node.kind]
    found = reduced(low, kind, x, list(axes), keep)
    low.place(node.outputs[0], low.cast(found, low.dtype(node.outputs[0])))


def reduced(low: Lowering, kind: str, x: Var, axes: list[int], keep: bool) -> Var:
    """Reduce a value; a length in float32, as the square of 256 is beyond float16."""
    if kind != "reduce_l2_norm" or low.type_of(x) == INT32:
        return low.emit(kind, x=x, axes=axes, keep_dims=keep)
    length = low.emit(kind, x=low.cast(x, FLOAT32), axes=axes, keep_dims=keep)
    return low.cast(length, low.type_of(x))


def arg_extreme(low: Lowering, node: Node) -> None:
    """ArgMax and ArgMin."""
    if node.integer("select_last_index", 0):
        raise Unsupported("select_last_index=1 has no Core ML form")
    value = node.required(0)
    axis = node.integer("axis", 0) % low.rank(value)
    keep = bool(node.integer("keepdims", 1))
    kind = f"reduce_{node.kind.lower()}"
    low.place(node.outputs[0], low.emit(kind, x=low.var(value), axis=axis, keep_dims=keep))


TABLE: dict[str, Any] = {
    **dict.fromkeys(_KINDS, reduce),
    "ArgMax": arg_extreme, "ArgMin": arg_extreme,
}  # fmt: skip
