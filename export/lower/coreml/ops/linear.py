"""Matrix products, and the form that a stored weight takes in each.

``linear(x, W, b)`` is ``x Wᵀ + b`` and ``matmul(x, W)`` is ``x W``: with both, a weight that is
used straight and transposed is one constant. Without a bias, ``matmul`` reads either way:
coremltools would store zeros for that of ``linear``.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from export.lower.coreml.lowering import Constant, Lowering, Node, Unsupported, Var
from export.lower.sizes import Shape

_MOST_AXES_OF_LINEAR = 3


def matmul(low: Lowering, node: Node) -> None:
    """MatMul, with a weight on the right or between computed values."""
    left, right = node.required(0), node.required(1)
    weight = low.held(right)
    if isinstance(weight, Constant) and weight.array.ndim == 2 and low.rank(left) >= 2:
        add, bias = _bias_after(low, node)
        low.place(node.outputs[0], times_weight(low, low.var(left), weight, bias))
        if add is not None:
            low.hold(add.outputs[0], low.held(node.outputs[0]))
        return
    low.place(node.outputs[0], _product(low, node, left, right))


def times_weight(
    low: Lowering, x: Var, weight: Constant, bias: Constant | None = None, scale: float = 1.0
) -> Var:
    """``x W + b`` for ``x (..., in)`` and a weight ``(in, out)``."""
    if x.rank is not None and weight.array.shape[0] != x.shape[-1] and isinstance(x.shape[-1], int):
        raise Unsupported(f"a product of {tuple(x.shape)} and {weight.array.shape}")
    turned = weight.transposed((1, 0))  # as linear wants it
    if not low.is_const(turned):
        found = low.emit("matmul", x=x, y=low.const_of(weight))
    elif bias is not None and x.rank <= _MOST_AXES_OF_LINEAR and scale == 1:
        return low.emit("linear", x=x, weight=low.const_of(turned), bias=_vector(low, bias))
    else:
        found = low.emit("matmul", x=x, y=low.const_of(turned), transpose_y=True)
    if scale != 1:
        found = low.emit("mul", x=found, y=low.number(scale))
    return found if bias is None else low.emit("add", x=found, y=_vector(low, bias))


def _vector(low: Lowering, bias: Constant) -> Var:
    return low.const(bias.array.reshape(-1), bias.name)


def _bias_after(low: Lowering, node: Node) -> tuple[ir.Node | None, Constant | None]:
    """An Add of one number a column that alone reads a product, and what it adds."""
    product = node.outputs[0]
    uses = list(product.uses())
    if len(uses) != 1 or product.is_graph_output() or uses[0][0].op_type != "Add":
        return None, None
    add, place = uses[0]
    other = add.inputs[1 - place]
    if other is None or low.constant(other) is None:
        return None, None
    held = low.held(other)
    assert isinstance(held, Constant)
    columns = low.shape(product)[-1]
    shape = held.array.shape
    fits = len(shape) > 0 and held.array.size == shape[-1] == columns
    return (add, held) if fits and len(shape) <= low.rank(product) else (None, None)


def _product(low: Lowering, node: Node, left: ir.Value, right: ir.Value) -> Var:
    """Matmul of two values; vectors become matrices for it."""
    a, b = low.var(left), low.var(right)
    if low.rank(left) == 1:
        a = low.emit("expand_dims", x=a, axes=[0])
    if low.rank(right) == 1:
        b = low.emit("expand_dims", x=b, axes=[1])
    found = low.emit("matmul", x=a, y=b)
    axes = [-2] * (low.rank(left) == 1) + [-1] * (low.rank(right) == 1)
    if axes:
        found = low.emit("squeeze", x=found, axes=axes)
    return found


def gemm(low: Lowering, node: Node) -> None:
    """Gemm: alpha A B + beta C."""
    left, right, third = node.required(0), node.required(1), node.input(2)
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    trans_a, trans_b = bool(node.integer("transA", 0)), bool(node.integer("transB", 0))
    shape = low.shape(node.outputs[0])
    x = low.var(left)
    weight = low.held(right)
    bias = _row_bias(low, third, shape) if beta == 1 else None
    if isinstance(weight, Constant):
        if trans_a:
            x = low.emit("transpose", x=x, perm=[1, 0])
        matrix = weight.transposed((1, 0)) if trans_b else weight
        found = times_weight(low, x, matrix, bias, alpha)
    else:
        bias = None
        found = low.emit("matmul", x=x, y=low.var(right), transpose_x=trans_a, transpose_y=trans_b)
        if alpha != 1:
            found = low.emit("mul", x=found, y=low.number(alpha))
    if third is not None and bias is None:
        term = low.var(third)
        if beta != 1:
            term = low.emit("mul", x=term, y=low.number(beta))
        found = low.emit("add", x=found, y=term)
    low.place(node.outputs[0], found)


def _row_bias(low: Lowering, value: ir.Value | None, shape: Shape) -> Constant | None:
    """A constant bias with one number a column, or None."""
    if value is None:
        return None
    held = low.held(value)
    fits = isinstance(held, Constant) and held.array.ndim > 0
    if isinstance(held, Constant) and fits and held.array.size == shape[-1] == held.array.shape[-1]:
        return held
    return None


def einsum(low: Lowering, node: Node) -> None:
    """Einsum of two operands, as a transpose of each, one batched product and a transpose."""
    equation = node.text("equation", "").replace(" ", "")
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
    found = low.emit("matmul", x=a, y=b)
    order = [*batch, *rows, *columns]
    found = low.reshape(found, [size[x] for x in order])
    perm = [order.index(x) for x in result]
    if perm != sorted(perm):
        found = low.emit("transpose", x=found, perm=perm)
    low.place(node.outputs[0], found)


def _grouped(
    low: Lowering, value: ir.Value, letters: str, groups: Any, size: dict[str, Any]
) -> Var:
    """Order the axes by group, and merge those of each group."""
    order = [letter for group in groups for letter in group]
    perm = [letters.index(letter) for letter in order]
    var = low.var(value)
    if perm != sorted(perm):
        var = low.emit("transpose", x=var, perm=perm)
    shape = []
    for group in groups:
        merged: Any = 1
        for letter in group:
            merged = merged * size[letter]
        shape.append(merged)
    if len(letters) == len(shape) and all(len(group) == 1 for group in groups):
        return var
    return low.reshape(var, shape)


TABLE: dict[str, Any] = {"MatMul": matmul, "Gemm": gemm, "Einsum": einsum}
