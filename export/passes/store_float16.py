"""float16 weights under float32 arithmetic."""

from __future__ import annotations

import onnx_ir as ir

from export.passes.write_float16 import narrowed

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


class StoreFloat16Pass(ir.passes.InPlacePass):
    """Each float32 weight is stored once as float16, and a Cast behind it makes float32 of it.

    ONNX Runtime computes a Cast of a constant once, when a session starts, so no run is slower;
    what is halved is the file. Where Gathers alone read a weight, such as an embedding's table, the
    Cast follows them: only the rows that are read become float32, and the table stays as it is.

    Single numbers keep their type, as an epsilon would be 0 in float16, and so do outputs. Finite
    numbers beyond 65504 become it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the initializers of the main graph; all of its branches may read them."""
        graph = model.graph
        weights = [value for value in graph.initializers.values() if _is_wide_weight(value)]
        for value in weights:
            tensor = value.const_value
            assert tensor is not None
            narrow = ir.tensor(narrowed(tensor.numpy()), name=value.name)
            if not _cast_rows(value):
                _cast_whole(graph, value)
            value.const_value, value.type = narrow, ir.TensorType(_HALF)
        return ir.passes.PassResult(model, bool(weights))


def _is_wide_weight(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or value.is_graph_output():
        return False
    return tensor.dtype == _FLOAT and tensor.size > 1


def _cast_rows(value: ir.Value) -> bool:
    """Widen what Gathers read of a weight, where nothing else reads it."""
    uses = list(value.uses())
    if not all(node.op_type == "Gather" and place == 0 for node, place in uses):
        return False
    for gather, _ in uses:
        rows = gather.outputs[0]
        assert gather.graph is not None
        name, rows.name = rows.name, f"{rows.name}.half"
        wide = _cast(rows, name)
        rows.replace_all_uses_with(wide.outputs[0], replace_graph_outputs=True)
        wide.replace_input_with(0, rows)
        rows.type = ir.TensorType(_HALF)
        gather.graph.insert_after(gather, wide)
    return True


def _cast_whole(graph: ir.Graph, value: ir.Value) -> None:
    wide = _cast(value, f"{value.name}.wide")
    value.replace_all_uses_with(wide.outputs[0])
    wide.replace_input_with(0, value)
    graph.insert_before(graph.node(0), wide)


def _cast(value: ir.Value, name: str | None) -> ir.Node:
    node = ir.node("Cast", [value], {"to": _FLOAT}, name=name)
    made = node.outputs[0]
    made.name, made.shape, made.type = name, value.shape, ir.TensorType(_FLOAT)
    return node
