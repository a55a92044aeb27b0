"""The last two axes swapped in one step instead of three."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

# A dimension as far as the graph tells: a number, or an axis of a named tensor.
_Dim = int | tuple[str | None, int]


class CollapseTransposedReshapesPass(ir.passes.InPlacePass):
    """``Reshape(to 3-D) > Transpose(0,2,1) > Reshape(back)`` becomes one Transpose.

    torch's attention is exported with its keys transposed that way; the detour costs two copies
    and a handful of shape operators. It is taken out only where the shapes prove that it swaps
    the last two axes and nothing else.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the main graph."""
        modified = False
        for last in [node for node in model.graph if node.op_type == "Reshape"]:
            swap = _producer(last, "Transpose")
            first = _producer(swap, "Reshape") if swap is not None else None
            if swap is None or first is None or not _swaps_last_two(first, swap, last):
                continue
            source, result = first.inputs[0], last.outputs[0]
            assert source is not None
            assert source.shape is not None
            rank = len(source.shape)
            perm = [*range(rank - 2), rank - 1, rank - 2]
            node = ir.node("Transpose", [source], {"perm": perm}, name=last.name)
            output = node.outputs[0]
            output.type, output.shape = result.type, ir.Shape([source.shape[axis] for axis in perm])
            model.graph.insert_before(last, node)
            result.replace_all_uses_with(output, replace_graph_outputs=True)
            output.name = result.name
            for dead in (last, swap, first):
                if not dead.outputs[0].uses():
                    model.graph.remove(dead, safe=True)
            modified = True
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _producer(node: ir.Node, op_type: str) -> ir.Node | None:
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == op_type else None


def _swaps_last_two(first: ir.Node, swap: ir.Node, last: ir.Node) -> bool:
    perm = swap.attributes.get("perm")
    source = first.inputs[0]
    if perm is None or list(perm.as_ints()) != [0, 2, 1] or source is None or source.shape is None:
        return False
    dims = [_dim(source, axis) for axis in range(len(source.shape))]
    squeezed, restored = _shape_operand(first.inputs[1]), _shape_operand(last.inputs[1])
    if len(dims) < 3 or squeezed is None or restored is None:
        return False
    expected = [*dims[:-2], dims[-1], dims[-2]]
    return squeezed[1:] == dims[-2:] and len(squeezed) == 3 and _same(restored, expected)


def _same(found: Sequence[_Dim], expected: Sequence[_Dim]) -> bool:
    """Compare shapes; one -1 stands for whatever the number of elements leaves."""
    if len(found) != len(expected):
        return False
    differing = [a for a, b in zip(found, expected, strict=True) if a != b]
    return differing in ([], [-1])


def _dim(value: ir.Value, axis: int) -> _Dim:
    assert value.shape is not None
    size = value.shape[axis]
    if isinstance(size, int):
        return size
    # A named size is the same wherever it stands.
    return (size.value, -1) if size.value else (value.name, axis)


def _shape_operand(value: ir.Value | None) -> list[_Dim] | None:
    """Read a shape that the graph computes from constants and other tensors' shapes."""
    if value is None:
        return None
    if value.const_value is not None:
        return [int(size) for size in value.const_value.numpy().reshape(-1)]
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Concat":
        parts = [_shape_operand(part) for part in node.inputs]
        return None if None in parts else [dim for part in parts for dim in part or ()]
    if node.op_type == "Shape" and node.inputs[0] is not None:
        source = node.inputs[0]
        if source.shape is None:
            return None
        start, end = node.attributes.get("start"), node.attributes.get("end")
        axes = range(len(source.shape))[
            slice(start.as_int() if start else 0, end.as_int() if end else None)
        ]
        return [_dim(source, axis) for axis in axes]
    if node.op_type == "Slice" and len(node.inputs) == 3:
        dims, *bounds = (_shape_operand(part) for part in node.inputs)
        if dims is None or any(bound is None or len(bound) != 1 for bound in bounds):
            return None
        begin, stop = (bound[0] for bound in bounds if bound is not None)
        if isinstance(begin, int) and isinstance(stop, int):
            return dims[begin:stop]
    return None
