"""A 1x1 transposed convolution is a convolution with the transposed weight."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


class ReplacePointwiseConvTransposesPass(ir.passes.InPlacePass):
    """``ConvTranspose(x, W)`` of size 1 and stride 1 becomes ``Conv(x, Transpose(W))``.

    Runtimes have faster kernels for Conv, and one way of writing a tied pair lets every later
    pass look for one pattern. Other sizes, strides, pads and groups are left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the main graph."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "ConvTranspose" and _is_pointwise(node):
                _replace(model.graph, node)
                modified = True
        return ir.passes.PassResult(model, modified)


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def _is_pointwise(node: ir.Node) -> bool:
    weight = node.inputs[1]
    shape = weight.shape if weight is not None else None
    if shape is None or len(shape) < 3 or any(size != 1 for size in list(shape)[2:]):
        return False
    plain = {"strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}
    return (
        _attribute(node, "group", 1) == 1
        and _attribute(node, "auto_pad", "NOTSET") == "NOTSET"
        and "output_shape" not in node.attributes
        and all(
            all(size == value for size in _attribute(node, name, ()))
            for name, value in plain.items()
        )
    )


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    rank = len(weight.shape)
    permutation = [1, 0, *range(2, rank)]
    transpose = ir.node("Transpose", [weight], {"perm": permutation})
    view = transpose.outputs[0]
    view.name = f"{node.outputs[0].name}.weight"
    view.type = weight.type
    view.shape = ir.Shape([weight.shape[axis] for axis in permutation])
    conv = ir.node(
        "Conv",
        [node.inputs[0], view, *node.inputs[2:]],
        {"kernel_shape": [1] * (rank - 2)},
        name=node.name,
    )
    output, replaced = conv.outputs[0], node.outputs[0]
    output.name, output.shape, output.type = replaced.name, replaced.shape, replaced.type
    graph.insert_before(node, [transpose, conv])
    replaced.replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove(node, safe=True)
