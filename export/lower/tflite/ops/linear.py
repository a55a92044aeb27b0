"""Matrix products, and the form that a stored weight takes in each.

``FULLY_CONNECTED(x, W)`` is ``x Wᵀ`` and ``BATCH_MATMUL(x, W)`` is ``x W``: with both, a weight
that is used straight and transposed needs one buffer. Both are as fast as two buffers, and XNNPACK
packs a copy of the weight for each. ``BATCH_MATMUL(W, xᵀ)`` is slower for few rows and packs none:
it is what the memory-first setting writes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir as ir

from export.lower.einsum import plan_of
from export.lower.sizes import broadcast, product
from export.lower.tflite.graph import Tensor
from export.lower.tflite.layout import Layout, plain
from export.lower.tflite.lowering import Constant, Lowering, Node, Unsupported

# Smaller matrices cost more in transposes than their packed copies take.
_LEFT_FROM_BYTES = 16 * 1024
_MOST_BATCH_AXES = 3


def matmul(low: Lowering, node: Node) -> None:
    """MatMul, with a weight on the right or between computed values."""
    left, right = node.required(0), node.required(1)
    weight = low.held(right)
    if isinstance(weight, Constant) and weight.array.ndim == 2 and len(low.shape(left)) >= 2:
        low.place(node.outputs[0], *times_weight(low, left, weight))
        return
    low.place(node.outputs[0], _product(low, node, left, right))


def times_weight(
    low: Lowering, value: ir.Value, weight: Constant, bias: Constant | None = None
) -> tuple[Tensor, Layout]:
    """``x W`` for ``x (..., in)`` and a weight ``(in, out)``; gives a tensor and its layout."""
    matrix = weight.array
    if low.shape(value)[-1] != matrix.shape[0]:
        raise Unsupported(f"a product of {low.shape(value)} and {matrix.shape}")
    if low.memory_first and matrix.nbytes >= _LEFT_FROM_BYTES:
        return _weight_left(low, value, weight, bias)
    x, layout = _rows_of(low, value)
    return rows_times_weight(low, x, weight, bias), layout


def _rows_of(low: Lowering, value: ir.Value) -> tuple[Tensor, Layout]:
    """The value with its last axis last in memory; the others may be in any order."""
    rank = len(low.shape(value))
    held = low.held(value)
    layout = plain(rank)
    if not isinstance(held, Constant) and held.layout[-1] == rank - 1:
        layout = held.layout
    return low.tensor(value, layout), layout


def rows_times_weight(
    low: Lowering, x: Tensor, weight: Constant, bias: Constant | None = None
) -> Tensor:
    """``x W`` with ``x (..., in)`` in a tensor; the fastest form."""
    matrix = weight.array
    shape = (*x.shape[:-1], int(matrix.shape[1]))
    vector = None
    if bias is not None:
        vector = low.const(bias.array.reshape(-1), bias.name, weight=bias.weight)
    if low.keeps_orientation(weight) and matrix.flags.c_contiguous:
        stored = low.const(matrix, weight.name, weight=weight.weight)
        product = low.emit("BATCH_MATMUL", [x, stored], shape)
        return product if vector is None else low.binary("ADD", product, vector, shape)
    stored = low.const(matrix.T, weight.name, weight=weight.weight)
    return low.emit("FULLY_CONNECTED", [x, stored, vector], shape, keepNumDims=True)


def _weight_left(
    low: Lowering, value: ir.Value, weight: Constant, bias: Constant | None
) -> tuple[Tensor, Layout]:
    """``(Wᵀ xᵀ)``: XNNPACK reads a left operand in place, where it packs a right one.

    The result is transposed in memory, and what follows works on it as it is.
    """
    rank = len(low.shape(value))
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    held = low.held(value)
    turned = not isinstance(held, Constant) and held.layout == swapped
    x = low.tensor(value, swapped if turned else plain(rank))
    columns = x.shape[-1] if turned else x.shape[-2]
    matrix = weight.array
    straight = matrix.flags.c_contiguous and low.keeps_orientation(weight)
    array = matrix if straight else matrix.T
    stored = low.const(array[(None,) * (rank - 2)], weight.name, weight=weight.weight)
    shape = (*x.shape[:-2], int(matrix.shape[1]), columns)
    found = low.emit("BATCH_MATMUL", [stored, x], shape, adjX=straight, adjY=not turned)
    if bias is not None:
        column = low.const(bias.array.reshape(-1, 1), bias.name, weight=bias.weight)
        found = low.binary("ADD", found, column, shape)
    return found, swapped


def _product(low: Lowering, node: Node, left: ir.Value, right: ir.Value) -> Tensor:
    """BATCH_MATMUL; a transpose of the last two axes is one of its attributes."""
    a, adj_x = _operand(low, left)
    b, adj_y = _operand(low, right)
    shape = low.shape(node.outputs[0])
    if a.rank == 1:
        a = low.reshape(a, (1, *a.shape))
    if b.rank == 1:
        b = low.reshape(b, (*b.shape, 1))
    rows = a.shape[-1] if adj_x else a.shape[-2]
    columns = b.shape[-2] if adj_y else b.shape[-1]
    batch = broadcast(a.shape[:-2], b.shape[:-2])
    if len(batch) > _MOST_BATCH_AXES and a.shape[:-2] == b.shape[:-2]:
        a = low.reshape(a, (product(batch), *a.shape[-2:]))
        b = low.reshape(b, (product(batch), *b.shape[-2:]))
        batch = (product(batch),)
    found = low.emit("BATCH_MATMUL", [a, b], (*batch, rows, columns), adjX=adj_x, adjY=adj_y)
    return low.reshape(found, shape)


def _operand(low: Lowering, value: ir.Value) -> tuple[Tensor, bool]:
    """A tensor of the value, and whether its last two axes are to be read swapped."""
    held = low.held(value)
    rank = len(low.shape(value))
    if rank < 2:
        return low.tensor(value), False
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    if isinstance(held, Constant):
        turned = held.array.transpose(swapped)
        if turned.flags.c_contiguous and not held.array.flags.c_contiguous:
            return low.tensor(value, swapped), True
        return low.tensor(value), False
    # The axis that is last in memory stays so: a transpose then moves whole rows.
    if held.layout[-1] == rank - 2:
        return low.tensor(value, swapped), True
    return low.tensor(value), False


def gemm(low: Lowering, node: Node) -> None:
    """Gemm: alpha A B + beta C."""
    left, right, third = node.required(0), node.required(1), node.input(2)
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    weight = low.held(right)
    trans_a, trans_b = bool(node.integer("transA", 0)), bool(node.integer("transB", 0))
    shape = low.shape(node.outputs[0])
    if isinstance(weight, Constant):
        matrix = weight.array.T if trans_b else weight.array
        view = replace(weight, array=matrix)
        bias = low.row(third, shape[-1]) if alpha == beta == 1 else None
        if not trans_a and (bias is not None or (third is None and alpha == 1)):
            low.place(node.outputs[0], *times_weight(low, left, view, bias))
            return
        found = rows_times_weight(low, low.tensor(left, (1, 0) if trans_a else (0, 1)), view)
    else:
        a, b = low.tensor(left), low.tensor(right)
        found = low.emit("BATCH_MATMUL", [a, b], shape, adjX=trans_a, adjY=trans_b)
    if alpha != 1:
        found = low.binary("MUL", found, low.scalar(alpha), shape)
    if third is not None:
        term = low.tensor(third)
        if beta != 1:
            term = low.binary("MUL", term, low.scalar(beta), term.shape)
        found = low.binary("ADD", found, term, shape)
    low.place(node.outputs[0], found)


def einsum(low: Lowering, node: Node) -> None:
    """Einsum of two operands, as a transpose of each, one batched product and a transpose."""
    plan = plan_of(low, node)
    left, right = node.required(0), node.required(1)
    a = low.reshape(low.tensor(left, plan.left.perm), plan.left.shape)
    b = low.reshape(low.tensor(right, plan.right.perm), plan.right.shape)
    found = low.emit("BATCH_MATMUL", [a, b], (*a.shape[:-1], b.shape[-1]))
    low.place(node.outputs[0], low.reshape(found, plan.shape), plan.order)


TABLE: dict[str, Any] = {"MatMul": matmul, "Gemm": gemm, "Einsum": einsum}
