"""The scale of attention's scores, behind the product."""

from __future__ import annotations

import onnx_ir as ir


class MoveScoreScalesPass(ir.passes.InPlacePass):
    """``MatMul(q * s, k)`` becomes ``MatMul(q, k) * s``, s a number.

    TensorRT's builder multiplies a number into the weight of the product before it, and so makes a
    copy of a weight that is tied. A number behind the product stays there.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the main graph."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "MatMul" and node.domain == "" and not _is_stored(node.inputs[1]):
                for place in (0, 1):
                    modified |= _move(model.graph, node, place)
        return ir.passes.PassResult(model, modified)


def _is_stored(value: ir.Value | None) -> bool:
    return value is None or value.is_initializer()


def _move(graph: ir.Graph, product: ir.Node, place: int) -> bool:
    value = product.inputs[place]
    scaling = value.producer() if value is not None else None
    if scaling is None or scaling.op_type != "Mul" or scaling.domain != "":
        return False
    number = next((place for place in (0, 1) if _is_number(scaling.inputs[place])), None)
    result = scaling.outputs[0]
    if number is None or len(result.uses()) != 1 or result.is_graph_output():
        return False
    product.replace_input_with(place, scaling.inputs[1 - number])
    scores = product.outputs[0]
    node = ir.node("Mul", [scores, scaling.inputs[number]], name=scaling.name)
    graph.remove(scaling, safe=True)
    graph.insert_after(product, node)
    scaled, name = node.outputs[0], scores.name
    scaled.type, scaled.shape = scores.type, scores.shape
    scores.replace_all_uses_with(scaled, replace_graph_outputs=True)
    node.replace_input_with(0, scores)
    scores.name, scaled.name = f"{name}.unscaled", name
    return True


def _is_number(value: ir.Value | None) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 1 and len(tensor.shape) <= 1
