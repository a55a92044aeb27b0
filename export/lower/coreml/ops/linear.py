"""Matrix products, and the form that a stored weight takes in each.

``linear(x, W, b)`` is ``x Wᵀ + b`` and ``matmul(x, W)`` is ``x W``: with both, a weight that is
used straight and transposed is one constant. Without a bias, ``matmul`` reads either way:
coremltools would store zeros for that of ``linear``.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from export.lower.coreml.lowering import Constant, Lowering, Node, Unsupported, Var
from export.lower.einsum import plan_of
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
    bias = low.row(third, shape[-1]) if beta == 1 else None
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


def einsum(low: Lowering, node: Node) -> None:
    """Einsum of two operands, as a transpose of each, one batched product and a transpose."""
    plan = plan_of(low, node)
    left, right = node.required(0), node.required(1)
    a, b = (
        _shaped(low, _turned(low, low.var(value), made.perm), made.shape, low.shape(value))
        for value, made in ((left, plan.left), (right, plan.right))
    )
    found = low.reshape(low.emit("matmul", x=a, y=b), plan.shape)
    back = tuple(plan.order.index(axis) for axis in range(len(plan.order)))
    low.place(node.outputs[0], _turned(low, found, back))


def _turned(low: Lowering, var: Var, perm: tuple[int, ...]) -> Var:
    if perm == tuple(sorted(perm)):
        return var
    return low.emit("transpose", x=var, perm=list(perm))


def _shaped(low: Lowering, var: Var, shape: Shape, before: Shape) -> Var:
    """Reshape; one that merges no axes is none."""
    return var if len(shape) == len(before) else low.reshape(var, shape)


TABLE: dict[str, Any] = {"MatMul": matmul, "Gemm": gemm, "Einsum": einsum}
