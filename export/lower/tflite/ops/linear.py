"""Matrix products, and the form that a stored weight takes in each.

``FULLY_CONNECTED(x, W)`` is ``x Wᵀ`` and ``BATCH_MATMUL(x, W)`` is ``x W``: with both, a weight
that is used straight and transposed needs one buffer.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from export.lower.tflite.graph import Tensor
from export.lower.tflite.layout import Layout, plain
from export.lower.tflite.lowering import Constant, Lowering, Node, Unsupported
from export.lower.tflite.sizes import Shape, broadcast
from export.lower.tflite.ops.elementwise import aligned


def matmul(low: Lowering, node: Node) -> None:
    """MatMul, with a weight on the right or between computed values."""
    left, right = node.required(0), node.required(1)
    weight = low.held(right)
    if isinstance(weight, Constant) and weight.array.ndim == 2 and len(low.shape(left)) >= 2:
        x, layout = rows_of(low, left)
        low.place(node.outputs[0], times_weight(low, x, weight), layout)
        return
    low.place(node.outputs[0], _product(low, node, left, right))


def rows_of(low: Lowering, value: ir.Value) -> tuple[Tensor, Layout]:
    """The value with its last axis last in memory; the others may be in any order."""
    rank = len(low.shape(value))
    held = low.held(value)
    layout = plain(rank)
    if not isinstance(held, Constant) and held.layout[-1] == rank - 1:
        layout = held.layout
    return low.tensor(value, layout), layout


def times_weight(
    low: Lowering, x: Tensor, weight: Constant, bias: Constant | None = None
) -> Tensor:
    """``x W`` for a weight ``(in, out)``; ``x`` is ``(..., in)``."""
    matrix = weight.array
    if x.shape[-1] != matrix.shape[0]:
        raise Unsupported(f"a product of {x.shape} and {matrix.shape}")
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
    full = (*broadcast(a.shape[:-2], b.shape[:-2]), rows, columns)
    found = low.emit("BATCH_MATMUL", [a, b], full, adjX=adj_x, adjY=adj_y)
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
    alpha, beta = node.float("alpha", 1.0), node.float("beta", 1.0)
    weight = low.held(right)
    trans_a, trans_b = bool(node.int("transA", 0)), bool(node.int("transB", 0))
    shape = low.shape(node.outputs[0])
    if isinstance(weight, Constant):
        matrix = weight.array.T if trans_b else weight.array
        x = low.tensor(left, (1, 0) if trans_a else (0, 1))
        bias = _row_bias(low, third, shape) if alpha == beta == 1 else None
        found = times_weight(low, x, Constant(matrix, weight.name, weight.weight, weight.origin), bias)
        if bias is not None:
            low.place(node.outputs[0], found)
            return
    else:
        a, b = low.tensor(left), low.tensor(right)
        found = low.emit("BATCH_MATMUL", [a, b], shape, adjX=trans_a, adjY=trans_b)
    if alpha != 1:
        found = low.binary("MUL", found, low.scalar(alpha), shape)
    if third is not None:
        added, _ = aligned(low, [third])
        term = added[0]
        if beta != 1:
            term = low.binary("MUL", term, low.scalar(beta), term.shape)
        found = low.binary("ADD", found, term, shape)
    low.place(node.outputs[0], found)


def _row_bias(low: Lowering, value: ir.Value | None, shape: Shape) -> Constant | None:
    """A constant bias with one number a column, or None."""
    if value is None:
        return None
    held = low.held(value)
    if isinstance(held, Constant) and held.array.size == shape[-1] == held.array.shape[-1]:
        return held
    return None


def einsum(low: Lowering, node: Node) -> None:
    """Einsum of two operands, as a transpose of each, one batched product and a transpose."""
    equation = node.string("equation", "").replace(" ", "")
    if "." in equation or equation.count(",") != 1 or "->" not in equation:
        raise Unsupported(f"the equation {equation!r}; two operands and '->' are supported")
    inputs, result = equation.split("->")
    left, right = inputs.split(",")
    if any(len(set(letters)) != len(letters) for letters in (left, right, result)):
        raise Unsupported(f"the equation {equation!r} repeats an index")
    batch = [x for x in left if x in right and x in result]
    summed = [x for x in left if x in right and x not in result]
    rows = [x for x in left if x not in right]
    columns = [x for x in right if x not in left]
    if any(x not in result for x in rows + columns):
        raise Unsupported(f"the equation {equation!r} sums over one operand alone")
    size = dict(zip(left + right, low.shape(node.required(0)) + low.shape(node.required(1)),
                    strict=True))  # fmt: skip
    a = _grouped(low, node.required(0), left, (batch, rows, summed), size)
    b = _grouped(low, node.required(1), right, (batch, summed, columns), size)
    shape = (*a.shape[:-1], b.shape[-1])
    found = low.emit("BATCH_MATMUL", [a, b], shape)
    order = [*batch, *rows, *columns]
    found = low.reshape(found, [size[x] for x in order])
    low.place(node.outputs[0], found, tuple(result.index(x) for x in order))


def _grouped(
    low: Lowering, value: ir.Value, letters: str, groups: Any, size: dict[str, Any]
) -> Tensor:
    """Order the axes by group, and merge those of each group."""
    order = [letter for group in groups for letter in group]
    tensor = low.tensor(value, tuple(letters.index(letter) for letter in order))
    shape = []
    for group in groups:
        merged: Any = 1
        for letter in group:
            merged = merged * size[letter]
        shape.append(merged)
    return low.reshape(tensor, shape)


TABLE: dict[str, Any] = {"MatMul": matmul, "Gemm": gemm, "Einsum": einsum}
