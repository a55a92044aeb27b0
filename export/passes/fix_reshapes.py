"""Shapes that are known but for one size, as constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass


class FixReshapesPass(ir.passes.InPlacePass):
    """``Reshape`` to a computed shape becomes one to a constant with at most one -1.

    A parser turns every step of a computed shape into a layer. Equal shapes share a constant.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the main graph."""
        graph = model.graph
        modified = False
        for node in graph:
            if node.op_type != "Reshape" or node.inputs[1] is None:
                continue
            if ir.convenience.get_const_tensor(node.inputs[1]) is not None:
                continue
            sizes = _sizes(node.outputs[0])
            if sizes is not None:
                node.replace_input_with(1, shape_constant(graph, sizes))
                modified = True
        if modified:
            RemoveUnusedNodesPass()(model)
            ShapeInferencePass()(model)
        return ir.passes.PassResult(model, modified)


def _sizes(value: ir.Value) -> list[int] | None:
    if value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else -1 for size in value.shape]
    # 0 would stand for the size that the input has there.
    return sizes if sizes.count(-1) <= 1 and 0 not in sizes else None


def shape_constant(graph: ir.Graph, sizes: list[int]) -> ir.Value:
    """Store a shape once; -1 is the size that follows from the others."""
    name = "shape." + "x".join("n" if size < 0 else str(size) for size in sizes)
    if name not in graph.initializers:
        array = np.asarray(sizes, np.int64)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.tensor(array, name=name),
        )
        graph.register_initializer(value)
    return graph.initializers[name]
