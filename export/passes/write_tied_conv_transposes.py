"""Tied 1x1 filters as Conv and ConvTranspose on one weight."""

from __future__ import annotations

import onnx_ir as ir


class WriteTiedConvTransposesPass(ir.passes.InPlacePass):
    """``Conv(x, Transpose(W))`` of size 1 becomes ``ConvTranspose(x, W)``.

    Both uses then read the stored filter as it is, where a Transpose of a weight that is not
    folded would be computed in every run.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the main graph."""
        modified = False
        for transpose in [node for node in model.graph if node.op_type == "Transpose"]:
            weight, view = transpose.inputs[0], transpose.outputs[0]
            if weight is None or not weight.is_initializer():
                continue
            for node, index in list(view.uses()):
                if index == 1 and _is_pointwise_conv(node):
                    _replace(model.graph, node, weight)
                    modified = True
            if not view.uses() and not view.is_graph_output():
                model.graph.remove(transpose, safe=True)
        return ir.passes.PassResult(model, modified)


def _is_pointwise_conv(node: ir.Node) -> bool:
    if node.op_type != "Conv":
        return False
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    group = node.attributes.get("group")
    strides, pads = node.attributes.get("strides"), node.attributes.get("pads")
    return (
        shape is not None
        and all(size == 1 for size in list(shape)[2:])
        and (group is None or group.as_int() == 1)
        and (strides is None or set(strides.as_ints()) == {1})
        and (pads is None or set(pads.as_ints()) == {0})
    )


def _replace(graph: ir.Graph, conv: ir.Node, weight: ir.Value) -> None:
    kernel = [1] * (len(weight.shape or ()) - 2)
    inputs = [conv.inputs[0], weight, *conv.inputs[2:]]
    node = ir.node("ConvTranspose", inputs, {"kernel_shape": kernel}, name=conv.name)
    output, replaced = node.outputs[0], conv.outputs[0]
    output.shape, output.type = replaced.shape, replaced.type
    graph.insert_before(conv, node)
    replaced.replace_all_uses_with(output, replace_graph_outputs=True)
    name = replaced.name
    graph.remove(conv, safe=True)
    output.name = name
