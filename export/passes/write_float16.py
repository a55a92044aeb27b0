"""float16 weights and arithmetic, written into the graph itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)

from export.errors import LoweringError
from export.weight_expressions import MOVES, bytes_of, weight_expressions

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST = float(np.finfo(np.float16).max)
_SUFFIXES = {_FLOAT: "wide", _HALF: "half"}

# Sums of many terms, and functions that leave float16's range or digits soon. LayerNormalization
# is not among them: by its definition mean and deviation are float32 whatever x is.
WIDE_OPERATORS = frozenset({
    "Cos", "CumSum", "Exp", "GlobalAveragePool", "GlobalLpPool", "GroupNormalization",
    "InstanceNormalization", "Log", "LogSoftmax", "LpNormalization", "LpPool",
    "MeanVarianceNormalization", "NonMaxSuppression", "Pow", "Range", "Reciprocal", "ReduceL1",
    "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "RMSNormalization", "Sin", "Softmax", "Softplus", "Sqrt", "TopK",
    "RandomNormal", "RandomUniform",
})  # fmt: skip
# Between two of these nothing is narrowed: what keeps a norm from 0 does so in float32.
_FOLLOWING = frozenset({
    "Abs", "Add", "Clip", "Div", "Expand", "Max", "Min", "Mul", "Neg", "Sub", "Unsqueeze",
})  # fmt: skip
# Inputs that are float32 by definition.
_ALWAYS_WIDE = {"Resize": (1, 2)}
_NARROWABLE = (_FLOAT, _HALF, ir.DataType.BOOL)
_SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


class WriteFloat16Pass(ir.passes.InPlacePass):
    """Weights become float16, once each, and operators compute in float16 where it is enough.

    1. Inputs and outputs stay float32, with a Cast behind or before them.
    2. Operators in ``WIDE_OPERATORS``, and a square, compute in float32 between two Casts.
    3. So do weights that are expressions, such as a stack of cosine transforms: what is stored is
       float16, what is made of it is rounded once.
    4. Finite numbers beyond 65504, such as those of a mask, become it.

    The types are then those of a strongly typed TensorRT network: no option of a builder has to
    be set for them, and none can be forgotten.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat a model without functions.

        Raises:
            LoweringError: a node has a branch or a loop in it.
        """
        if not _has_float32(model.graph):
            return ir.passes.PassResult(model, False)
        for node in model.graph:
            if any(attribute.type in _SUBGRAPHS for attribute in node.attributes.values()):
                raise LoweringError(
                    f"{node.op_type} {node.name!r} has a graph of its own, which is not written in "
                    "float16; export with --precision float32"
                )
        LiftConstantsToInitializersPass(lift_all_constants=True)(model)
        ShapeInferencePass()(model)
        _Narrowing(model.graph).run()
        RemoveUnusedNodesPass()(model)  # numbers that only float16 reads
        return ir.passes.PassResult(model, True)


def _has_float32(graph: ir.Graph) -> bool:
    """Whether anything is left to be narrowed: a weight, or a result that no Cast made."""
    if any(v.dtype == _FLOAT and _is_weight(v) and v.uses() for v in graph.initializers.values()):
        return True
    made = [v for node in graph for v in node.outputs]
    return not any(v.dtype == _HALF for v in made) and any(v.dtype == _FLOAT for v in made)


def _is_weight(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.size > 1


class _Narrowing:
    """Rewrites one graph, node after node; a value is cast to another type once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._first = next(iter(graph), None)
        self._weights = set(weight_expressions(graph, bytes_of).values())

    def run(self) -> None:
        """Type every node of the graph."""
        outputs = {value: value.name for value in self._graph.outputs if value.dtype == _FLOAT}
        for node in list(self._graph):
            self._type(node)
        for value, name in outputs.items():
            if value.dtype == _HALF:
                value.name = f"{name}.half"
                wide = self._as(value, _FLOAT, last=True)
                self._graph.outputs[self._graph.outputs.index(value)] = wide
                wide.name = name

    def _type(self, node: ir.Node) -> None:
        if node.op_type == "Cast":
            self._type_cast(node)
            return
        kept = _ALWAYS_WIDE.get(node.op_type, ())
        wanted = _FLOAT if self._is_wide(node) else _HALF
        for place, value in enumerate(node.inputs):
            if value is not None and value.dtype in (_FLOAT, _HALF) and place not in kept:
                node.replace_input_with(place, self._read(value, wanted))
        for name in ("value", "dtype"):  # of what is filled, drawn or made
            if name in node.attributes and wanted == _HALF:
                _narrow_attribute(node, name)
        for output in node.outputs:
            if output.dtype in (_FLOAT, _HALF):
                output.type = ir.TensorType(wanted)

    def _type_cast(self, node: ir.Node) -> None:
        source, output = node.inputs[0], node.outputs[0]
        # What was an integer may be a position: beyond 2048 float16 skips some.
        if output.dtype == _FLOAT and source is not None and source.dtype in _NARROWABLE:
            node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
            output.type = ir.TensorType(_HALF)

    def _is_wide(self, node: ir.Node) -> bool:
        if node.op_type in WIDE_OPERATORS:
            return True
        if node in self._weights:
            return node.op_type not in MOVES
        operands = [v for v in node.inputs if v is not None and v.dtype in (_FLOAT, _HALF)]
        if node.op_type == "Mul" and len(operands) == 2 and operands[0] is operands[1]:
            return any(n.op_type in WIDE_OPERATORS for n, _ in node.outputs[0].uses())
        computed = [v for v in operands if not v.is_initializer() and not v.is_graph_input()]
        return (
            node.op_type in _FOLLOWING
            and bool(computed)
            and all(value.dtype == _FLOAT for value in computed)
        )

    def _read(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        if value.is_initializer() and not value.is_graph_input():
            if not _is_weight(value):
                return self._number(value, wanted)
            self._store(value)
        return value if value.dtype == wanted else self._as(value, wanted)

    def _number(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """A single number in either type: an epsilon would be 0 in float16."""
        if value.dtype == wanted:
            return value
        key = (value, wanted)
        if key not in self._cast:
            assert value.const_value is not None
            array = value.const_value.numpy()
            found = narrowed(array) if wanted == _HALF else array.astype(np.float32)
            tensor = ir.tensor(found, name=f"{value.name}.{_SUFFIXES[wanted]}")
            made = ir.Value(
                name=tensor.name,
                shape=ir.Shape(found.shape),
                type=ir.TensorType(wanted),
                const_value=tensor,
            )
            self._graph.register_initializer(made)
            self._cast[key] = made
        return self._cast[key]

    def _store(self, value: ir.Value) -> None:
        if value.dtype != _FLOAT:
            return
        assert value.const_value is not None
        value.const_value = ir.tensor(narrowed(value.const_value.numpy()), name=value.name)
        value.type = ir.TensorType(_HALF)

    def _as(self, value: ir.Value, dtype: ir.DataType, *, last: bool = False) -> ir.Value:
        key = (value, dtype)
        if key not in self._cast:
            suffix = _SUFFIXES[dtype]
            node = ir.node("Cast", [value], {"to": int(dtype)})
            made = node.outputs[0]
            made.name, made.type = f"{value.name}.{suffix}", ir.TensorType(dtype)
            made.shape = value.shape
            node.name = f"{value.name}.{suffix}"
            self._place(node, value, last=last)
            self._cast[key] = made
        return self._cast[key]

    def _place(self, node: ir.Node, value: ir.Value, *, last: bool) -> None:
        maker = value.producer()
        if maker is not None:
            self._graph.insert_after(maker, node)
        elif self._first is not None and not last:
            self._graph.insert_before(self._first, node)
        else:
            self._graph.append(node)


def narrowed(array: NDArray[np.generic]) -> NDArray[np.float16]:
    """Round to float16; what is finite stays finite."""
    wide = np.asarray(array, np.float64)
    finite = np.clip(wide, -LARGEST, LARGEST)
    found: NDArray[np.float16] = np.where(np.isinf(wide), wide, finite).astype(np.float16)
    return found


def _narrow_attribute(node: ir.Node, name: str) -> None:
    attribute = node.attributes[name]
    if name == "dtype" and attribute.type == ir.AttributeType.INT:
        if attribute.as_int() == int(_FLOAT):
            node.attributes[name] = ir.AttrInt64(name, int(_HALF))
    elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FLOAT:
        tensor = ir.tensor(narrowed(attribute.as_tensor().numpy()))
        node.attributes[name] = ir.AttrTensor(name, tensor)
