"""Attention that masks whole rows, without a look at every score."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

_LOWEST = float(np.finfo(np.float32).min)


class ReplaceNanGuardsPass(ir.passes.InPlacePass):
    """``Where(IsNaN(s), 0, s)`` with ``s = Softmax(scores + Where(keep, 0, -inf))`` goes.

    torch writes that guard for rows in which nothing is kept: minus infinity less itself is no
    number. With the lowest finite number instead nothing of the kind arises, and a row that keeps
    nothing is multiplied by 0, which is one number a row to look at. Where no mask is added, or
    one that is finite already, the guard is left out: only scores that are infinite themselves
    could make it act. A mask that keeps everything is not added at all.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the main graph."""
        modified = False
        masks: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        for guard in [node for node in model.graph if node.op_type == "Where"]:
            softmax = _guarded(guard)
            if softmax is None:
                continue
            replaced = _without_guard(model.graph, guard, softmax, masks)
            modified = modified or replaced
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _guarded(guard: ir.Node) -> ir.Node | None:
    """The Softmax that a Where guards against what is no number."""
    condition, filler, value = guard.inputs
    if condition is None or filler is None or value is None:
        return None
    test, softmax = condition.producer(), value.producer()
    if test is None or softmax is None:
        return None
    zero = _constant(filler)
    if zero is None or np.any(zero) or test.op_type != "IsNaN" or test.inputs[0] is not value:
        return None
    return softmax if softmax.op_type == "Softmax" else None


def _without_guard(
    graph: ir.Graph,
    guard: ir.Node,
    softmax: ir.Node,
    masks: dict[ir.Value, tuple[ir.Value, ir.Value]],
) -> bool:
    scores = softmax.inputs[0]
    maker = scores.producer() if scores is not None else None
    if maker is None or not _is_over_last(softmax):
        return False
    if _is_product(maker):
        _replace(graph, guard, [], softmax.outputs[0])
        return True
    if maker.op_type != "Add":
        return False
    for place in (0, 1):
        other, mask = maker.inputs[1 - place], maker.inputs[place]
        if mask is None or other is None or not _is_product(other.producer()):
            continue
        form = _form_of(mask)
        if form == "other":
            continue
        if form == "infinite" and mask not in masks:
            masks[mask] = _finite_mask(graph, mask)
        _mask_again(graph, guard, other, form, masks.get(mask))
        return True
    return False


def _mask_again(
    graph: ir.Graph,
    guard: ir.Node,
    scores: ir.Value,
    form: str,
    finite: tuple[ir.Value, ir.Value] | None,
) -> None:
    """Put what a guarded softmax of masked scores comes down to in the guard's place."""
    softmax = _guarded(guard)
    assert softmax is not None
    if form == "finite":
        _replace(graph, guard, [], softmax.outputs[0])
        return
    nodes: list[ir.Node] = []
    if finite is not None:
        nodes.append(ir.node("Add", [scores, finite[0]], name=_after(guard, "masked")))
        scores = nodes[-1].outputs[0]
    nodes.append(ir.node("Softmax", [scores], {"axis": -1}, name=softmax.name))
    if finite is not None:
        factors = [nodes[-1].outputs[0], finite[1]]
        nodes.append(ir.node("Mul", factors, name=_after(guard, "kept")))
    _replace(graph, guard, nodes, nodes[-1].outputs[0])


def _after(node: ir.Node, what: str) -> str | None:
    """A name made from that of another node; none where that has none, or two would be equal."""
    return f"{node.name}_{what}" if node.name else None


def _is_over_last(softmax: ir.Node) -> bool:
    axis, value = softmax.attributes.get("axis"), softmax.inputs[0]
    rank = len(value.shape) if value is not None and value.shape is not None else 0
    return axis is None or axis.as_int() in (-1, rank - 1)


def _replace(graph: ir.Graph, guard: ir.Node, nodes: list[ir.Node], result: ir.Value) -> None:
    """Put nodes, all of the guard's shape, in its place."""
    old = guard.outputs[0]
    graph.insert_before(guard, nodes)
    for node in nodes:
        node.outputs[0].shape, node.outputs[0].type = old.shape, old.type
    old.replace_all_uses_with(result, replace_graph_outputs=True)


def _is_product(node: ir.Node | None) -> bool:
    """Whether scores come from a product alone, scaled or not."""
    if node is None:
        return False
    if node.op_type in ("Mul", "Div"):
        scale = node.inputs[1]
        first = node.inputs[0]
        constant = _constant(scale) if scale is not None else None
        return (
            constant is not None
            and bool(np.isfinite(constant).all())
            and first is not None
            and _is_product(first.producer())
        )
    return node.op_type == "MatMul"


def _form_of(mask: ir.Value) -> str:
    """What is added to scores: a mask that ``keeps all``, is ``finite`` or ``infinite``, or not."""
    where = mask.producer()
    if where is None or where.op_type != "Where":
        return "other"
    condition, kept, dropped = where.inputs
    first = _constant(kept) if kept is not None else None
    second = _constant(dropped) if dropped is not None else None
    if first is None or second is None:
        return "other"
    if condition is not None and _is_true(condition) and not np.any(first):
        return "keeps all"
    if np.isfinite(first).all() and np.isfinite(second).all():
        return "finite"
    return "other" if np.any(first) or not np.isneginf(second).all() else "infinite"


def _is_true(condition: ir.Value) -> bool:
    """Whether a condition holds everywhere, whatever its shape."""
    constant = ir.convenience.get_const_tensor(condition)
    if constant is not None:
        return bool(constant.numpy().all())
    maker = condition.producer()
    if maker is None or maker.op_type not in ("Expand", "Reshape", "Unsqueeze", "Squeeze", "And"):
        return False
    read = maker.inputs if maker.op_type == "And" else maker.inputs[:1]
    return all(value is not None and _is_true(value) for value in read)


def _finite_mask(graph: ir.Graph, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The mask with a finite number for minus infinity, and 1 for each row that keeps anything."""
    where = mask.producer()
    assert where is not None
    condition, kept, _ = where.inputs
    lowest = _new_constant(graph, "mask.lowest", np.asarray(_LOWEST, np.float32))
    axes = _new_constant(graph, "mask.axes", np.asarray([-1], np.int64))
    finite = ir.node("Where", [condition, kept, lowest], name=_after(where, "finite"))
    number = ir.node("Cast", [condition], {"to": ir.DataType.FLOAT}, name=_after(where, "number"))
    row = ir.node(
        "ReduceMax", [number.outputs[0], axes], {"keepdims": 1}, name=_after(where, "rows")
    )
    graph.insert_after(where, [finite, number, row])
    finite.outputs[0].shape, finite.outputs[0].type = mask.shape, mask.type
    return finite.outputs[0], row.outputs[0]


def _new_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    existing = graph.initializers.get(name)
    if existing is not None:
        return existing
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _constant(value: ir.Value) -> np.ndarray | None:
    tensor = ir.convenience.get_const_tensor(value)
    return tensor.numpy() if tensor is not None and tensor.size <= 16 else None
