"""Einsum of two operands: a transpose of each, one batched product and a transpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.lower.facts import Facts
from export.lower.node import Node, Unsupported
from export.lower.sizes import Shape, Size, product


@dataclass(frozen=True, slots=True)
class Operand:
    """How an operand of the product is made: ``transpose(perm)``, then ``reshape(shape)``."""

    perm: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True, slots=True)
class EinsumPlan:
    """``left (batch, rows, summed)`` times ``right (batch, summed, columns)``.

    Args:
        shape: of the product once its merged axes are split again.
        order: the axis of the result that each of those is.
    """

    left: Operand
    right: Operand
    shape: Shape
    order: tuple[int, ...]


def plan_of(low: Facts, node: Node) -> EinsumPlan:
    """Read an equation.

    Raises:
        Unsupported: it is not a product of two operands.
    """
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
    shapes = low.shape(node.required(0)) + low.shape(node.required(1))
    size = dict(zip(left + right, shapes, strict=True))
    order = [*batch, *rows, *columns]
    return EinsumPlan(
        _operand(left, (batch, rows, summed), size),
        _operand(right, (batch, summed, columns), size),
        tuple(size[x] for x in order),
        tuple(result.index(x) for x in order),
    )


def _operand(letters: str, groups: Sequence[Sequence[str]], size: Mapping[str, Size]) -> Operand:
    order = [letter for group in groups for letter in group]
    shape = tuple(product(size[letter] for letter in group) for group in groups)
    return Operand(tuple(letters.index(letter) for letter in order), shape)
