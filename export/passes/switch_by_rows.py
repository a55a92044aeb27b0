"""Two bodies for one set of weights: one for few rows, one for many."""

from __future__ import annotations

import math

import onnx_ir as ir

# Few rows leave no time to repay a repacked copy; many rows do. Measured between 16 and 64.
FEW_ROWS = 32


class SwitchByRowsPass(ir.passes.InPlacePass):
    """The graph becomes ``If(rows <= 32)`` of itself, twice, on the same stored weights.

    1. Up to 32 rows: each tied Gemm reads its weight through a Reshape whose shape is computed
       in the run. The runtime passes it through without a copy, but cannot repack it: both uses
       read the same bytes, which stay in the cache.
    2. More rows: as it was, with the runtime's repacked copies.

    The rows are those of the first tied Gemm, as far as the inputs' sizes tell. A graph without
    tied Gemms, whose rows are always more, or with subgraphs of its own is left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the main graph."""
        graph = model.graph
        tied = _tied_weights(graph)
        rows = _rows(graph, tied)
        if rows is None or not _can_be_moved(graph):
            return ir.passes.PassResult(model, False)
        static, axes = rows
        head, few, zero = _condition(axes, FEW_ROWS // static)
        views = _opaque_views(tied, zero)
        small = _branch(graph, "few.", {weight: view[-1] for weight, view in views.items()})
        for view in reversed(list(views.values())):
            for node in reversed([value.producer() for value in view]):
                assert node is not None
                small.insert_before(small.node(0), node)
        branches = {"then_branch": small, "else_branch": _branch(graph, "many.", {})}
        switch = ir.node("If", [few], branches, num_outputs=len(graph.outputs))
        before = list(graph)
        for output, replaced in zip(switch.outputs, list(graph.outputs), strict=True):
            output.shape, output.type = replaced.shape, replaced.type
            name = replaced.name
            replaced.name = None
            output.name = name
        graph.outputs[:] = switch.outputs
        graph.remove(before, safe=False)
        graph.extend([*head, switch])
        return ir.passes.PassResult(model, True)


def _tied_weights(graph: ir.Graph) -> list[ir.Value]:
    """List the initializers that several nodes read, a Gemm as its second input among them."""
    return [
        value
        for value in graph.initializers.values()
        if len(list(value.uses())) > 1
        and any(node.op_type == "Gemm" and index == 1 for node, index in value.uses())
    ]


def _rows(graph: ir.Graph, tied: list[ir.Value]) -> tuple[int, list[tuple[ir.Value, int]]] | None:
    """Find the rows of a tied Gemm: a fixed factor, and the inputs' axes that multiply it."""
    sources = {
        size.value: (value, axis)
        for value in reversed(graph.inputs)
        for axis, size in enumerate(value.shape or ())
        if isinstance(size, ir.SymbolicDim) and size.value
    }
    for node in graph:
        if node.op_type != "Gemm" or node.inputs[1] not in tied:
            continue
        x = node.inputs[0]
        producer = x.producer() if x is not None else None
        if producer is not None and producer.op_type == "Flatten":
            x = producer.inputs[0]
        if x is None or x.shape is None:
            continue
        lead = list(x.shape)[:-1]
        static = math.prod(size for size in lead if isinstance(size, int))
        names = [size.value for size in lead if isinstance(size, ir.SymbolicDim)]
        if names and static <= FEW_ROWS and all(name in sources for name in names):
            return static, [sources[name] for name in names if name]
    return None


def _can_be_moved(graph: ir.Graph) -> bool:
    inside = all(
        attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for node in graph
        for attribute in node.attributes.values()
    )
    return inside and all(output.producer() is not None for output in graph.outputs)


def _condition(
    axes: list[tuple[ir.Value, int]], limit: int
) -> tuple[list[ir.Node], ir.Value, ir.Value]:
    """Compute whether there are few rows, and a zero that no optimiser knows to be one."""
    sizes = [
        _node("Shape", [value], f"switch.size{place}", start=axis, end=axis + 1)
        for place, (value, axis) in enumerate(axes)
    ]
    joined = _node("Concat", [node.outputs[0] for node in sizes], "switch.sizes", axis=0)
    product = _node("ReduceProd", [joined.outputs[0]], "switch.rows", keepdims=0)
    most = _node("Constant", [], "switch.limit", value_int=limit)
    few = _node("LessOrEqual", [product.outputs[0], most.outputs[0]], "switch.few")
    few.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
    zero = _node("Sub", [sizes[0].outputs[0], sizes[0].outputs[0]], "switch.zero")
    return [*sizes, joined, product, most, few, zero], few.outputs[0], zero.outputs[0]


def _opaque_views(tied: list[ir.Value], zero: ir.Value) -> dict[ir.Value, list[ir.Value]]:
    views = {}
    for weight in tied:
        shape = _node("Shape", [weight], f"few.{weight.name}.shape")
        known = _node("Add", [shape.outputs[0], zero], f"few.{weight.name}.sizes")
        view = _node("Reshape", [weight, known.outputs[0]], f"few.{weight.name}")
        view.outputs[0].type, view.outputs[0].shape = weight.type, weight.shape
        views[weight] = [shape.outputs[0], known.outputs[0], view.outputs[0]]
    return views


def _node(op_type: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Node:
    node = ir.node(op_type, inputs, attributes or None)
    node.outputs[0].name = name
    node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    return node


def _branch(graph: ir.Graph, prefix: str, instead: dict[ir.Value, ir.Value]) -> ir.Graph:
    """Copy the nodes into a graph of their own, which reads inputs and weights from outside."""
    copies: dict[ir.Value, ir.Value] = dict(instead)
    nodes = []
    for node in graph:
        inputs = [copies.get(value, value) if value is not None else None for value in node.inputs]
        copy = ir.node(
            node.op_type,
            inputs,
            dict(node.attributes),
            domain=node.domain,
            num_outputs=len(node.outputs),
            name=f"{prefix}{node.name}" if node.name else None,
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.shape, new.type = f"{prefix}{old.name}", old.shape, old.type
            copies[old] = new
        nodes.append(copy)
    outputs = [copies[value] for value in graph.outputs]
    return ir.Graph([], outputs, nodes=nodes, name=f"{prefix}body")
