"""Which nodes TensorRT does not support, before an hour is spent on a device."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from export.lower.problems import title
from export.lower.tensorrt.versions import NEWEST_OPSETS, OPERATORS_SOURCE, UNSUPPORTED

# Inputs that the table wants to be constants: operator -> place and name.
_CONSTANT_INPUTS = {"CumSum": (1, "axis"), "OneHot": (1, "depth")}
_NEWEST = max(NEWEST_OPSETS.values())


def problems_of(model: ir.Model) -> list[str]:
    """Name every node that no known version supports, with the reason.

    The table is that of the parser's makers; a parser on the device has the last word.
    """
    found = []
    opset = model.opset_imports.get("", 0)
    if opset > _NEWEST:
        found.append(f"the graph has opset {opset}, and {_NEWEST} is the newest that is read")
    for node in model.graph.all_nodes():
        found.extend(f"{title(node)}: {reason}" for reason in _reasons(node))
    return found


def _reasons(node: ir.Node) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield f"operators of domain {node.domain!r} need a plugin"
        return
    if node.op_type in UNSUPPORTED:
        yield f"not supported ({OPERATORS_SOURCE})"
    if node.op_type in _CONSTANT_INPUTS:
        place, name = _CONSTANT_INPUTS[node.op_type]
        value = node.inputs[place] if len(node.inputs) > place else None
        if value is None or ir.convenience.get_const_tensor(value) is None:
            yield f"{name} must be a constant"
    if node.op_type == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].uses():
        yield "its second output is not supported"
    if node.op_type == "LayerNormalization" and any(output.uses() for output in node.outputs[1:]):
        yield "only its first output is supported"
    if any(value.dtype == ir.DataType.STRING for value in node.outputs):
        yield "strings are not supported"
