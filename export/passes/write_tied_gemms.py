"""Tied matrix products as Gemm, whose transpose is an attribute."""

from __future__ import annotations

import onnx_ir as ir

from export.passes.tied_uses import TiedUse, tied_matmuls

# Elementwise, one input: they may run on the flattened tensor between two products.
_UNARY = {"Gelu", "Relu", "Erf", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu", "Softplus"}


class WriteTiedGemmsPass(ir.passes.InPlacePass):
    """``MatMul(x, Transpose(W)) + b`` becomes ``Gemm(x, W, b, transB=1)``; straight, transB=0.

    Gemm takes matrices, so x is flattened to ``(rows, in)`` before and reshaped after; the
    reshape between two products of one FFN is left out. No constant is stored for it: the
    shape is computed from x and the bias.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the tied matrices of the main graph."""
        writer = _Writer(model.graph)
        uses = list(tied_matmuls(model.graph))
        for use in uses:
            writer.replace(use)
        _drop_reshape_pairs(model.graph)
        return ir.passes.PassResult(model, bool(uses))


class _Writer:
    """Writes Gemms; products that read the same x share its flattening."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._flat: dict[ir.Value, ir.Value] = {}
        self._lead: dict[ir.Value, ir.Value] = {}

    def replace(self, use: TiedUse) -> None:
        """Write one product as a Gemm, in the place of its last node."""
        x = use.node.inputs[0]
        assert x is not None
        assert x.shape is not None
        rank, last = len(x.shape), use.add or use.node
        flat = x if rank == 2 else self._flattened(x, rank, use.node)
        inputs = [flat, use.weight, *([use.bias] if use.bias is not None else [])]
        gemm = ir.node("Gemm", inputs, {"transB": int(use.transposed)}, name=use.node.name)
        self._graph.insert_before(last, gemm)
        result = _typed(gemm.outputs[0], x, f"{last.outputs[0].name}.flat")
        if rank != 2:
            result = self._reshaped(result, x, use, last)
        replaced = last.outputs[0]
        name = replaced.name
        result.shape, result.type = replaced.shape, replaced.type
        replaced.replace_all_uses_with(result, replace_graph_outputs=True)
        self._graph.remove([last, use.node] if last is not use.node else [last], safe=True)
        result.name = name
        if use.transpose is not None and not use.transpose.outputs[0].uses():
            self._graph.remove(use.transpose, safe=True)

    def _flattened(self, x: ir.Value, rank: int, before: ir.Node) -> ir.Value:
        if x not in self._flat:
            node = ir.node("Flatten", [x], {"axis": rank - 1})
            self._graph.insert_before(before, node)
            self._flat[x] = _typed(node.outputs[0], x, f"{x.name}.rows")
        return self._flat[x]

    def _reshaped(self, result: ir.Value, x: ir.Value, use: TiedUse, last: ir.Node) -> ir.Value:
        if x not in self._lead:
            lead = ir.node("Shape", [x], {"start": 0, "end": -1})
            self._graph.insert_before(use.node, lead)
            self._lead[x] = _named(lead.outputs[0], f"{x.name}.lead")
        source = use.bias if use.bias is not None else use.weight
        axis = 0 if use.bias is not None or use.transposed else 1
        width = ir.node("Shape", [source], {"start": axis, "end": axis + 1})
        shape = ir.node("Concat", [self._lead[x], width.outputs[0]], {"axis": 0})
        reshape = ir.node("Reshape", [result, shape.outputs[0]], {"allowzero": 1})
        self._graph.insert_before(last, [width, shape, reshape])
        _named(width.outputs[0], f"{result.name}.width")
        _named(shape.outputs[0], f"{result.name}.shape")
        return reshape.outputs[0]


def _named(value: ir.Value, name: str) -> ir.Value:
    value.name = name
    value.type = ir.TensorType(ir.DataType.INT64)
    return value


def _typed(value: ir.Value, like: ir.Value, name: str) -> ir.Value:
    value.name, value.type = name, like.type
    return value


def _drop_reshape_pairs(graph: ir.Graph) -> None:
    """Run elementwise operators between two products on the flattened tensor."""
    for flatten in [node for node in graph if node.op_type == "Flatten"]:
        chain: list[ir.Node] = []
        value = flatten.inputs[0]
        while value is not None and (node := value.producer()) is not None:
            if len(value.uses()) > 1 + _shape_uses(value) or value.is_graph_output():
                break
            if node.op_type in _UNARY and node.domain == "":
                chain.append(node)
                value = node.inputs[0]
                continue
            if node.op_type == "Reshape" and _is_gemm(node.inputs[0]):
                _rewire(graph, node, chain, flatten)
            break


def _shape_uses(value: ir.Value) -> int:
    return sum(1 for node, _ in value.uses() if node.op_type == "Shape")


def _is_gemm(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "Gemm"


def _rewire(graph: ir.Graph, reshape: ir.Node, chain: list[ir.Node], flatten: ir.Node) -> None:
    flat = reshape.inputs[0]
    assert flat is not None
    shaped = reshape.outputs[0]
    # The leading sizes are read from the tensor before the first product: they are the same.
    concat = reshape.inputs[1].producer() if reshape.inputs[1] is not None else None
    lead = concat.inputs[0] if concat is not None else None
    for value in [shaped, *(node.outputs[0] for node in chain)]:
        for node, _ in list(value.uses()):
            if node.op_type == "Shape" and lead is not None:
                node.outputs[0].replace_all_uses_with(lead)
                graph.remove(node, safe=True)
    if chain:
        chain[-1].replace_input_with(0, flat)
        for node in chain:
            node.outputs[0].shape = None
        flat = chain[0].outputs[0]
    flatten.outputs[0].replace_all_uses_with(flat)
    graph.remove(flatten, safe=True)
    if not shaped.uses():
        graph.remove(reshape, safe=True)
    if concat is not None and not concat.outputs[0].uses():
        width = concat.inputs[1].producer() if concat.inputs[1] is not None else None
        graph.remove(concat, safe=True)
        if width is not None and not width.outputs[0].uses():
            graph.remove(width, safe=True)
