"""Weights that are expressions over fewer numbers: what of them must not become a constant."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from export.expressions.constants import cone, constant_nodes

# What is no larger is a shape, or a number of the graph's own.
SMALL_BYTES = 512
# Operators that read a weight, with the places of their inputs where it stands.
_WEIGHTS = {
    "MatMul": (0, 1), "Gemm": (0, 1), "Einsum": (0, 1), "Conv": (1,), "ConvTranspose": (1,),
    "Gather": (0,),
}  # fmt: skip
# Tied weights are read through these; that they are stored once is seen to elsewhere.
_VIEWS = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
# What moves numbers rounds none of them, in any precision.
MOVES = frozenset({
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape",
    "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip


def weight_expressions(
    graph: ir.Graph, bytes_of: Callable[[ir.Value], int]
) -> dict[ir.Value, ir.Node]:
    """Values that no input reaches and that lead to a weight which is larger than its parts.

    The index that picks a matrix from a bank, a generated cosine transform and the product of two
    factors are such values, and so is what they are made of: a column of the index, folded for
    each of many layers, would be stored beside the banks. A table that is read at constant places
    leads to no more than it holds, and its places may be folded. Parts that something else reads
    as well are not freed by storing the value, so they do not count.

    Args:
        bytes_of: a value's size.

    Returns:
        Each value with the node that computes it, in the order of the graph.
    """
    steady = {value: node for node in constant_nodes(graph) for value in node.outputs}
    kept: set[ir.Node] = set()
    for weight in steady:
        if _is_weight(weight, steady):
            nodes = set(cone(weight))
            read = {value for node in nodes for value in node.inputs if value is not None}
            parts = sum(bytes_of(value) for value in read if _is_freed(value, nodes))
            views = all(node.op_type in _VIEWS for node in nodes)
            if bytes_of(weight) > max(parts, SMALL_BYTES) and not views:
                kept.update(nodes)
    return {value: node for value, node in steady.items() if node in kept}


def bytes_of(value: ir.Value) -> int:
    """The bytes of a value by the graph's own shapes; 0 where one is not known."""
    if value.shape is None or value.dtype is None:
        return 0
    sizes = [size for size in value.shape if isinstance(size, int)]
    if len(sizes) < len(value.shape):
        return 0
    return math.ceil(math.prod(sizes) * value.dtype.itemsize)


def _is_weight(value: ir.Value, steady: dict[ir.Value, ir.Node]) -> bool:
    return any(
        node.outputs[0] not in steady and place in _WEIGHTS.get(node.op_type, ())
        for node, place in value.uses()
    )


def _is_freed(value: ir.Value, nodes: set[ir.Node]) -> bool:
    """Whether a stored tensor is read by these nodes alone."""
    return value.is_initializer() and all(node in nodes for node, _ in value.uses())
