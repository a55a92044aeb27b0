"""Attention scores that are scaled once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


class MergeScoreScalesPass(ir.passes.InPlacePass):
    """``MatMul(q * a, k * b)`` becomes ``MatMul(q * (a b), k)`` for numbers a and b.

    torch scales queries and keys each by the root of the scale, to keep float16 scores in range;
    one product less is left where the arithmetic is in float32.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the main graph."""
        modified = False
        for product in [node for node in model.graph if node.op_type == "MatMul"]:
            left, right = (_scaled(value) for value in product.inputs)
            if left is None or right is None:
                continue
            factor = _number(left) * _number(right)
            left.replace_input_with(1, _constant(model.graph, factor))
            key = right.inputs[0]
            assert key is not None
            product.replace_input_with(1, key)
            model.graph.remove(right, safe=True)
            modified = True
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _scaled(value: ir.Value | None) -> ir.Node | None:
    """The Mul by one number that a value comes from, if nothing else reads it."""
    maker = value.producer() if value is not None else None
    if value is None or maker is None or maker.op_type != "Mul" or len(value.uses()) != 1:
        return None
    scale = ir.convenience.get_const_tensor(maker.inputs[1]) if maker.inputs[1] else None
    is_number = scale is not None and scale.size == 1 and scale.dtype == ir.DataType.FLOAT
    return maker if is_number and not value.is_graph_output() else None


def _number(node: ir.Node) -> float:
    assert node.inputs[1] is not None
    tensor = ir.convenience.get_const_tensor(node.inputs[1])
    assert tensor is not None
    return float(tensor.numpy().item())


def _constant(graph: ir.Graph, number: float) -> ir.Value:
    """The number as an initializer, one for all layers."""
    name = f"scores.scale.{number:.9g}"
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(np.asarray(number, np.float32), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
