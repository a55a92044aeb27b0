"""How each stored tensor is read: in one arrangement of its axes, or in several."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

View = tuple[object, ...]  # the views between a stored tensor and what a reader wants stored
_RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def read_differently(graph: ir.Graph) -> frozenset[str]:
    """Initializers whose readers would not all store the same array.

    A product or a convolution stores ``(out, in)``, a transposed one ``(in, out)``. An
    initializer that is read in one arrangement only may be stored in that; one of those named
    here must stay as it is, and its readers adapt.
    """
    return frozenset(
        name
        for name, value in graph.initializers.items()
        if len(set(_wanted(value, ()))) > 1 or value.is_graph_output()
    )


def _wanted(value: ir.Value, view: View) -> Iterator[View]:
    for node, place in value.uses():
        if node.op_type == "Transpose":
            yield from _wanted(node.outputs[0], _turned(view, _perm(node)))
        elif node.op_type == "Identity":
            yield from _wanted(node.outputs[0], view)
        elif node.op_type in _RESHAPES and place == 0:
            step = f"{node.op_type} {node.outputs[0].shape or node.name}"
            yield from _wanted(node.outputs[0], (*view, step))
        elif node.op_type == "MatMul" and place == 1:
            yield _turned(view, (1, 0))
        elif node.op_type == "Gemm" and place == 1:
            attribute = node.attributes.get("transB")
            straight = attribute is not None and bool(attribute.as_int())
            yield view if straight else _turned(view, (1, 0))
        elif node.op_type == "ConvTranspose" and place == 1:
            rank = len(value.shape) if value.shape is not None else 4
            yield _turned(view, (1, 0, *range(2, rank)))
        else:
            yield view


def _perm(node: ir.Node) -> tuple[int, ...]:
    perm = node.attributes.get("perm")
    if perm is not None:
        return tuple(perm.as_ints())
    value = node.inputs[0]
    rank = len(value.shape) if value is not None and value.shape is not None else 2
    return tuple(reversed(range(rank)))


def _turned(view: View, perm: tuple[int, ...]) -> View:
    """The view after a transpose; two that undo each other are none."""
    last = view[-1] if view else None
    if not isinstance(last, tuple):
        return (*view, perm)
    if len(last) != len(perm):
        return (*view, str(perm))
    both = tuple(last[axis] for axis in perm)
    return view[:-1] if both == tuple(range(len(both))) else (*view[:-1], both)
