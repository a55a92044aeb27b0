"""Batch norms in inference form: into the convolution before them, or two vectors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

EPSILON = 1e-5  # the operator's default, ONNX BatchNormalization-15


class FoldBatchNormsPass(ir.passes.InPlacePass):
    """Remove the running statistics, which are no parameters, from the stored tensors.

    1. After a convolution whose weight has no other use: scale and shift go into its weight and
       bias.
    2. After any other: the norm keeps its scale and shift with mean 0 and variance 1, so that
       the weight of a tied convolution is left as it is. The zeros and ones are shared by all
       norms of one width.

    Scale and shift are computed in float64 from gamma, beta, mean and variance.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the main graph."""
        modified = False
        for node in list(model.graph):
            if node.op_type != "BatchNormalization" or len(node.outputs) != 1:
                continue
            vectors = [_constant(value) for value in node.inputs[1:5]]
            if any(vector is None for vector in vectors):
                continue
            gamma, beta, mean, variance = (v.astype(np.float64) for v in vectors if v is not None)
            epsilon = node.attributes.get("epsilon")
            epsilon_value = epsilon.as_float() if epsilon is not None else EPSILON
            scale = gamma / np.sqrt(variance + epsilon_value)
            shift = beta - mean * scale
            conv = node.inputs[0].producer() if node.inputs[0] is not None else None
            if conv is not None and _owns_its_weight(conv):
                _fold(model.graph, conv, node, scale, shift)
                modified = True
            else:
                modified |= _reduce(model.graph, node, scale, shift)
        _drop_unused(model.graph)
        return ir.passes.PassResult(model, modified)


def _constant(value: ir.Value | None) -> NDArray[np.floating] | None:
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def _owns_its_weight(conv: ir.Node) -> bool:
    if conv.op_type != "Conv" or len(conv.outputs[0].uses()) != 1:
        return False
    if conv.outputs[0].is_graph_output():
        return False
    weight = conv.inputs[1]
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    return (
        _constant(weight) is not None
        and weight is not None
        and len(weight.uses()) == 1
        and (bias is None or (_constant(bias) is not None))
    )


def _fold(
    graph: ir.Graph,
    conv: ir.Node,
    norm: ir.Node,
    scale: NDArray[np.float64],
    shift: NDArray[np.float64],
) -> None:
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    array = weight.const_value.numpy()
    bias = _constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    if bias is not None:
        shift = shift + bias.astype(np.float64) * scale
    scaled = array.astype(np.float64) * scale.reshape(-1, *[1] * (array.ndim - 1))
    weight.const_value = ir.tensor(scaled.astype(array.dtype), name=weight.name)
    beta = norm.inputs[2]
    assert beta is not None
    new_bias = _vector(graph, f"{beta.name}.folded", shift.astype(array.dtype))
    inputs = [conv.inputs[0], weight, new_bias]
    folded = ir.node("Conv", inputs, dict(conv.attributes), name=conv.name)
    output, replaced = folded.outputs[0], norm.outputs[0]
    output.name, output.shape, output.type = replaced.name, replaced.shape, replaced.type
    graph.insert_before(norm, folded)
    replaced.replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove([norm, conv], safe=True)


def _reduce(
    graph: ir.Graph, norm: ir.Node, scale: NDArray[np.float64], shift: NDArray[np.float64]
) -> bool:
    gamma = norm.inputs[1]
    assert gamma is not None
    assert gamma.const_value is not None
    dtype = gamma.const_value.numpy().dtype
    mean, variance = _constant(norm.inputs[3]), _constant(norm.inputs[4])
    assert mean is not None
    assert variance is not None
    if not mean.any() and (variance == 1).all():
        return False
    names = [value.name for value in norm.inputs[1:3] if value is not None]
    width = len(scale)
    vectors = [
        _vector(graph, f"{names[0]}.scale", scale.astype(dtype)),
        _vector(graph, f"{names[1]}.shift", shift.astype(dtype)),
        _shared(graph, f"norm.mean.{width}", np.zeros(width, dtype)),
        _shared(graph, f"norm.variance.{width}", np.ones(width, dtype)),
    ]
    for index, vector in enumerate(vectors, start=1):
        norm.replace_input_with(index, vector)
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
    return True


def _shared(graph: ir.Graph, name: str, array: NDArray[np.floating]) -> ir.Value:
    existing = graph.initializers.get(name)
    return existing if existing is not None else _vector(graph, name, array)


def _vector(graph: ir.Graph, name: str, array: NDArray[np.floating]) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and value not in graph.inputs:
            graph.initializers.pop(name)
