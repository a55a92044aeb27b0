"""The operators of an older opset, for parsers that know no newer one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.defs import OpSchema
from onnx_ir.passes.common import RemoveUnusedNodesPass

OPSETS = (17, 20)  # in order of preference
_IR_VERSION = 8  # that of opset 17; nothing newer is used

_ROOT_HALF = math.sqrt(0.5)
_ROOT_TWO_OVER_PI = math.sqrt(2 / math.pi)
_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


class LowerOpsetPass(ir.passes.InPlacePass):
    """A graph of a newer opset is written in 17, or else in 20, where every node can be.

    Most operators only took more types since then and stay as they are. Gelu becomes the formula
    that defines it, and reductions get their axes as an attribute again. Where any node has no
    form in the older opset the graph is left as it is: half a step helps no parser.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat a model without functions of its own."""
        current = model.opset_imports.get("", 0)
        for version in OPSETS:
            if current <= version:
                break
            if all(_fits(node, version, current) for node in model.graph.all_nodes()):
                writer = _Writer(model.graph)
                for node in list(model.graph.all_nodes()):
                    _rewrite(writer, node, version)
                model.opset_imports[""] = version
                model.ir_version = min(model.ir_version, _IR_VERSION)
                RemoveUnusedNodesPass()(model)  # axes that are attributes now
                return ir.passes.PassResult(model, True)
        return ir.passes.PassResult(model, False)


def nodes_newer_than(model: ir.Model, version: int) -> list[ir.Node]:
    """List the nodes that have no form in an opset."""
    current = model.opset_imports.get("", 0)
    return [node for node in model.graph.all_nodes() if not _fits(node, version, current)]


def _fits(node: ir.Node, version: int, current: int) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return True
    if node.op_type in _REWRITES and _REWRITES[node.op_type][0](node, version):
        return True
    old, new = _schema(node.op_type, version), _schema(node.op_type, current)
    if old is None or new is None:
        return False
    return old.since_version == new.since_version or _uses_nothing_new(node, old, new)


def _schema(op_type: str, version: int) -> OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version)
    except onnx.defs.SchemaError:
        return None


def _uses_nothing_new(node: ir.Node, old: OpSchema, new: OpSchema) -> bool:
    """Whether a node has the inputs and attributes of the older definition alone."""
    if node.op_type in _MEANINGS and not _MEANINGS[node.op_type](node):
        return False
    lost = set(old.attributes) - set(new.attributes)
    if lost or len(node.inputs) > old.max_input or len(node.inputs) < old.min_input:
        return False
    added = {name: spec for name, spec in new.attributes.items() if name not in old.attributes}
    return all(_is_default(node, name, added[name]) for name in added)


def _is_default(node: ir.Node, name: str, spec: Any) -> bool:
    attribute = node.attributes.get(name)
    if attribute is None:
        return True
    if name == "dilations":
        return set(attribute.as_ints()) <= {1}
    default = onnx.helper.get_attribute_value(spec.default_value)
    given = attribute.value
    return bool(given == (default.decode() if isinstance(default, bytes) else default))


def _plain_reduction(node: ir.Node) -> bool:
    """The reductions of scattered values that the older definition has."""
    reduction = node.attributes.get("reduction")
    return reduction is None or reduction.as_string() in ("none", "add", "mul")


# Operators whose attributes kept their names and took more values.
_MEANINGS: dict[str, Callable[[ir.Node], bool]] = {
    "ScatterElements": _plain_reduction,
    "ScatterND": _plain_reduction,
}


# ---- rewriting --------------------------------------------------------------------------------


class _Writer:
    """Puts nodes and scalars into a graph; equal scalars are stored once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        dtype = like.dtype or ir.DataType.FLOAT
        name = f"formula.{number:.6g}.{dtype.name.lower()}"
        if name not in self._graph.initializers:
            tensor = ir.tensor(np.asarray(number, dtype.numpy()), name=name)
            value = ir.Value(
                name=name, shape=ir.Shape([]), type=ir.TensorType(dtype), const_value=tensor
            )
            self._graph.register_initializer(value)
        return self._graph.initializers[name]

    def replace(self, node: ir.Node, steps: list[ir.Node]) -> None:
        """Put steps, each of the shape of the node's output, in its place."""
        old = node.outputs[0]
        assert node.graph is not None
        for place, step in enumerate(steps):
            made = step.outputs[0]
            made.type, made.shape = old.type, old.shape
            made.name = f"{old.name}.{place}"
            step.name = f"{node.name}.{place}" if node.name else None
        graph = node.graph
        graph.insert_before(node, steps)
        last, name = steps[-1].outputs[0], old.name
        old.replace_all_uses_with(last, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        last.name = name


def _rewrite(writer: _Writer, node: ir.Node, version: int) -> None:
    if node.domain not in ("", "ai.onnx"):
        return
    entry = _REWRITES.get(node.op_type)
    if entry is not None and entry[0](node, version):
        entry[1](writer, node)
        return
    old = _schema(node.op_type, version)
    assert old is not None
    for name in [name for name in node.attributes if name not in old.attributes]:
        del node.attributes[name]  # at its default


def _write_gelu(writer: _Writer, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    one, half = writer.scalar(1, x), writer.scalar(0.5, x)
    approximate = node.attributes.get("approximate")
    if approximate is not None and approximate.as_string() == "tanh":
        cubic, slope = writer.scalar(0.044715, x), writer.scalar(_ROOT_TWO_OVER_PI, x)
        steps = [ir.node("Mul", [x, x])]
        steps.append(ir.node("Mul", [steps[-1].outputs[0], cubic]))
        steps.append(ir.node("Add", [steps[-1].outputs[0], one]))
        steps.append(ir.node("Mul", [steps[-1].outputs[0], x]))
        steps.append(ir.node("Mul", [steps[-1].outputs[0], slope]))
        steps.append(ir.node("Tanh", [steps[-1].outputs[0]]))
    else:
        steps = [ir.node("Mul", [x, writer.scalar(_ROOT_HALF, x)])]
        steps.append(ir.node("Erf", [steps[-1].outputs[0]]))
    steps.append(ir.node("Add", [steps[-1].outputs[0], one]))
    steps.append(ir.node("Mul", [x, steps[-1].outputs[0]]))
    steps.append(ir.node("Mul", [steps[-1].outputs[0], half]))
    writer.replace(node, steps)


def _can_be_formula(node: ir.Node, version: int) -> bool:
    return version < 20


def _axes(node: ir.Node) -> list[int] | None:
    """The axes of a reduction where they are constant; all axes are an empty list."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is None:
        return []
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(axis) for axis in tensor.numpy().reshape(-1)]


def _has_constant_axes(node: ir.Node, version: int) -> bool:
    empty = node.attributes.get("noop_with_empty_axes")
    axes = _axes(node)
    return version < 18 and axes is not None and (bool(axes) or empty is None or not empty.as_int())


def _write_axes(writer: _Writer, node: ir.Node) -> None:
    axes = _axes(node)
    node.attributes.pop("noop_with_empty_axes", None)
    if axes:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    node.resize_inputs(1)


def _is_even_split(node: ir.Node, version: int) -> bool:
    return version < 18 and "num_outputs" in node.attributes and _split_sizes(node) is not None


def _split_sizes(node: ir.Node) -> list[int] | None:
    x = node.inputs[0]
    axis = node.attributes.get("axis")
    if x is None or x.shape is None:
        return None
    size = x.shape[axis.as_int() if axis is not None else 0]
    if not isinstance(size, int):
        return None
    count = len(node.outputs)
    part = -(-size // count)
    return [part] * (count - 1) + [size - part * (count - 1)]


def _write_split(writer: _Writer, node: ir.Node) -> None:
    sizes = _split_sizes(node)
    assert sizes is not None
    assert node.graph is not None
    constant = ir.node("Constant", [], {"value_ints": sizes})
    constant.outputs[0].name = f"{node.outputs[0].name}.sizes"
    constant.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    constant.outputs[0].shape = ir.Shape([len(sizes)])
    node.graph.insert_before(node, constant)
    del node.attributes["num_outputs"]
    node.resize_inputs(2)
    node.replace_input_with(1, constant.outputs[0])


def _write_grid_sample(writer: _Writer, node: ir.Node) -> None:
    mode = node.attributes.get("mode")
    given = mode.as_string() if mode is not None else "linear"
    node.attributes["mode"] = ir.AttrString("mode", _GRID_MODES.get(given, given))


_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSumSquare",
)  # fmt: skip
# Operator -> whether it applies to a node and a version, and what it does.
_REWRITES: dict[str, tuple[Callable[[ir.Node, int], bool], Callable[[_Writer, ir.Node], None]]] = {
    "Gelu": (_can_be_formula, _write_gelu),
    "Split": (_is_even_split, _write_split),
    "GridSample": (_can_be_formula, _write_grid_sample),
    **dict.fromkeys(_REDUCTIONS, (_has_constant_axes, _write_axes)),
}
