"""Walks an ONNX graph and lowers it node by node."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from export.errors import LoweringError
from export.lower.probe import Probed, evaluate, probe
from export.lower.problems import listing, title
from export.lower.sizes import in_file, is_static
from export.lower.tflite.graph import Graph, Tensor
from export.lower.tflite.layout import plain
from export.lower.tflite.lowering import (
    BOOL,
    INT32,
    INT64,
    Constant,
    Lowering,
    Node,
    Unsupported,
)
from export.lower.tflite.ops import OPERATORS

_INPUT_TYPES = (np.dtype("float32"), INT32, INT64, BOOL, np.dtype("uint8"), np.dtype("int8"))
_OLDEST_OPSET = 13
_MAX_FOLDED_ELEMENTS = 4096


def convert(model: ir.Model, *, memory_first: bool = False) -> Graph:
    """Lower a graph whose stored tensors are each there once.

    Args:
        memory_first: write weights where the runtime reads them in place, at the cost of time.

    Raises:
        LoweringError: something has no form in TFLite; everything that has none is named at once.
    """
    _check_model(model)
    probed = probe(model)
    graph = Graph()
    tied = frozenset(_read_both_ways(model.graph))
    low = Lowering(probed, graph, tied, memory_first=memory_first)
    _hold_inputs(low, model.graph)
    problems: list[str] = []
    for node in model.graph:
        try:
            if _hold_known(low, probed, node) or _fold(low, node, model.opset_imports):
                continue
            lower = OPERATORS.get(node.op_type) if node.domain == "" else None
            if lower is None:
                raise Unsupported("no such operator")
            wrapped = Node(node)
            low.where = wrapped.name
            lower(low, wrapped)
        except Unsupported as reason:
            problems.append(f"{title(node)}: {reason}")
            _stand_in(low, node)
    for value in model.graph.outputs:
        try:
            _add_output(low, value)
        except Unsupported as reason:
            problems.append(f"output {value.name!r}: {reason}")
    if problems:
        raise LoweringError(listing(problems, "TFLite"))
    graph.remove_unread()
    return graph


def _check_model(model: ir.Model) -> None:
    opset = model.opset_imports.get("", 0)
    if opset < _OLDEST_OPSET:
        raise LoweringError(
            f"the model has opset {opset}; {_OLDEST_OPSET} or newer is needed: convert it with "
            "onnx.version_converter"
        )


def _hold_inputs(low: Lowering, onnx_graph: ir.Graph) -> None:
    for value in onnx_graph.inputs:
        if value.is_initializer():
            continue
        assert value.dtype is not None
        shape, dtype = low.shape(value), np.dtype(value.dtype.numpy())
        if dtype not in _INPUT_TYPES:
            raise LoweringError(f"input {value.name!r} has type {dtype}, which is not supported")
        tensor = Tensor(low.unique(value.name or "input"), shape, dtype)
        low.graph.inputs.append(tensor)
        low.know_axes(tensor)
        low.place(value, tensor)
    for value in onnx_graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        is_weight = array.dtype.kind == "f"
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        low.hold_constant(value, array, weight=is_weight, origin=value.name or "")


def _hold_known(low: Lowering, probed: Probed, node: ir.Node) -> bool:
    """Note outputs that follow from shapes alone; gives whether nothing is left to lower."""
    for output in node.outputs:
        arrays = probed.known.get(output.name or "")
        if arrays is None:
            return False
        if all(np.array_equal(array, arrays[0]) for array in arrays):
            low.hold_constant(output, arrays[0], weight=_reads_weights(low, node))
        elif arrays[0].dtype.kind not in "iu" or probed.sizes(output.name or "") is None:
            return False
    return True


def _reads_weights(low: Lowering, node: ir.Node) -> bool:
    held = [low.held(value) for value in node.inputs if value is not None]
    return any(isinstance(one, Constant) and one.weight for one in held)


def _fold(low: Lowering, node: ir.Node, opsets: Mapping[str, int]) -> bool:
    """Compute a node of small constants now, such as a bias that is made of a scalar.

    Never one that reads a stored matrix: its value would be stored beside it.
    """
    held = {v.name or "": low.held(v) for v in node.inputs if v is not None and v.name}
    arrays = {name: one.array for name, one in held.items() if isinstance(one, Constant)}
    shapes = [low.shape(output) for output in node.outputs if output.name]
    elements = sum(math.prod(in_file(shape)) for shape in shapes)
    if (
        len(arrays) < len(held)
        or elements > _MAX_FOLDED_ELEMENTS
        or any(array.size > _MAX_FOLDED_ELEMENTS for array in arrays.values())
        or any(isinstance(one, Constant) and _is_matrix(one) for one in held.values())
        or not all(is_static(shape) for shape in shapes)
        or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values())
    ):
        return False
    found = evaluate(node, arrays, opsets)
    if found is None:
        return False
    for output, array in zip(node.outputs, found, strict=False):
        low.hold_constant(output, array, weight=_reads_weights(low, node))
    return True


def _is_matrix(constant: Constant) -> bool:
    return constant.weight and sum(size > 1 for size in constant.array.shape) > 1


def _stand_in(low: Lowering, node: ir.Node) -> None:
    """Put a tensor where a node failed, so that the rest of the graph is checked as well."""
    for output in node.outputs:
        try:
            tensor = Tensor(low.unique("missing"), low.shape(output), low.dtype(output))
        except KeyError:
            continue
        low.place(output, tensor, plain(tensor.rank))


def _add_output(low: Lowering, value: ir.Value) -> None:
    tensor = low.tensor(value)
    makers = {id(output) for op in low.graph.operators for output in op.outputs}
    taken = {id(other) for _, other in low.graph.outputs}
    if id(tensor) not in makers or id(tensor) in taken:
        # An output that is an input, a constant or another output needs a tensor of its own.
        low.where = value.name or "output"
        tensor = low.copied(tensor)
    low.graph.outputs.append((value.name or "", tensor))


# ---- which matrices are read both straight and transposed -------------------------------------


def _read_both_ways(graph: ir.Graph) -> Iterator[str]:
    """Initializers that products read in both orientations, or that something else reads too."""
    for name, value in graph.initializers.items():
        if len(set(_readings(value, swapped=False))) > 1:
            yield name


def _readings(value: ir.Value, *, swapped: bool) -> Iterator[str]:
    for node, index in value.uses():
        if node.op_type == "Transpose":
            yield from _readings(node.outputs[0], swapped=swapped != _swaps(node))
        elif node.op_type in ("Identity", "Reshape", "Squeeze", "Unsqueeze") and index == 0:
            yield from _readings(node.outputs[0], swapped=swapped)
        elif node.op_type in ("MatMul", "Gemm") and index == 1:
            attribute = node.attributes.get("transB")
            turned = attribute is not None and bool(attribute.as_int())
            yield "out, in" if swapped != turned else "in, out"
        elif node.op_type == "Conv" and index == 1:
            yield "in, out" if swapped else "out, in"
        elif node.op_type == "ConvTranspose" and index == 1:
            yield "out, in" if swapped else "in, out"
        else:
            yield "as stored"


def _swaps(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    return perm is None or tuple(perm.as_ints())[:2] == (1, 0)
