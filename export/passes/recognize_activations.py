"""Activation functions that are written out, found by what they compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.reference import run_reference

_POINTS = np.linspace(-8, 8, 161, dtype=np.float32)
_TOLERANCE = 2e-6  # float32 arithmetic in another order
_STEPS = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Erf",
    "Tanh",
    "Neg",
    "HardSigmoid",
    "Clip",
    "Identity",
}
_ROOTS = {"Erf", "Tanh", "HardSigmoid", "Clip"}  # each function has one of them at its heart
_DEPTH = 9  # steps from the function's input to its result, at most
_OPSET = 20  # the first with Gelu

Function = tuple[str, dict[str, str]]
Numbers = NDArray[np.float64]


def _gelu_exact(x: Numbers) -> Numbers:
    return np.asarray(x * 0.5 * (1 + np.asarray([math.erf(v / math.sqrt(2)) for v in x])))


def _gelu_tanh(x: Numbers) -> Numbers:
    return np.asarray(x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _hard_swish(x: Numbers) -> Numbers:
    return np.asarray(x * np.clip(x / 6 + 0.5, 0, 1))


_KNOWN: tuple[tuple[Function, Callable[[Numbers], Numbers]], ...] = (
    (("Gelu", {"approximate": "none"}), _gelu_exact),
    (("Gelu", {"approximate": "tanh"}), _gelu_tanh),
    (("HardSwish", {}), _hard_swish),
)


class RecognizeActivationsPass(ir.passes.InPlacePass):
    """A region of elementwise operators that computes Gelu or HardSwish becomes that operator.

    The region is run on numbers from -8 to 8 and compared with each function, so every way to
    write it is found. Backends have one operator for it where the region takes eight.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the main graph."""
        modified = False
        for root in [node for node in model.graph if node.op_type in _ROOTS]:
            if root.graph is not model.graph:
                continue  # taken out with another region
            for source, result in _regions(root):
                found = _recognized(source, result, model.opset_imports.get("", _OPSET))
                if found is not None:
                    _replace(model, source, result, found)
                    modified = True
                    break
        if modified:
            version = model.opset_imports.get("", _OPSET)
            # From 18 on opsets only add: the operators of an older one keep their meaning.
            model.opset_imports[""] = max(version, _OPSET)
        return ir.passes.PassResult(model, modified)


def _regions(root: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Pairs of a value before the root and one after it that may enclose a function."""
    results = list(_after(root))
    for source in _before(root):
        for result in results:
            yield source, result


def _before(root: ir.Node) -> Iterator[ir.Value]:
    seen: list[ir.Value] = []
    queue = [value for value in root.inputs if value is not None]
    while queue and len(seen) < _DEPTH:
        value = queue.pop(0)
        if value in seen or _scalar(value) is not None:
            continue
        seen.append(value)
        maker = value.producer()
        if maker is not None and maker.op_type in _STEPS:
            queue.extend(v for v in maker.inputs if v is not None)
    yield from seen


def _after(root: ir.Node) -> Iterator[ir.Value]:
    value = root.outputs[0]
    for _ in range(4):
        followers = {node for node, _ in value.uses()}
        if len(followers) != 1:
            return
        node = followers.pop()
        if node.op_type not in _STEPS or len(node.outputs) != 1:
            return
        value = node.outputs[0]
        yield value


def _recognized(source: ir.Value, result: ir.Value, opset: int) -> Function | None:
    nodes = _between(source, result)
    if nodes is None or opset < 18:
        return None
    computed = _run(source, result, nodes, opset)
    if computed is None:
        return None
    exact = _POINTS.astype(np.float64)
    for function, formula in _KNOWN:
        if np.abs(computed - formula(exact)).max() <= _TOLERANCE:
            return function
    return None


def _between(source: ir.Value, result: ir.Value) -> list[ir.Node] | None:
    """The nodes from one value to another, or None where they read or feed anything else."""
    nodes: list[ir.Node] = []
    queue = [result]
    while queue:
        value = queue.pop()
        if value is source or _scalar(value) is not None:
            continue
        maker = value.producer()
        if maker is None or maker.op_type not in _STEPS or len(nodes) > 2 * _DEPTH:
            return None
        if maker not in nodes:
            nodes.append(maker)
            queue.extend(v for v in maker.inputs if v is not None)
    inner = [output for node in nodes for output in node.outputs if output is not result]
    for value in inner:
        if value.is_graph_output() or any(node not in nodes for node, _ in value.uses()):
            return None
    return nodes


def _scalar(value: ir.Value) -> NDArray[np.generic] | None:
    tensor = ir.convenience.get_const_tensor(value)
    return tensor.numpy() if tensor is not None and tensor.size == 1 else None


def _run(
    source: ir.Value, result: ir.Value, nodes: list[ir.Node], opset: int
) -> NDArray[np.float64] | None:
    in_order = sorted(nodes, key=lambda node: list(node.graph or ()).index(node))
    inputs: dict[str, NDArray[np.generic]] = {source.name or "": _POINTS}
    for value in (value for node in nodes for value in node.inputs if value is not None):
        scalar = _scalar(value)
        if scalar is not None:
            inputs[value.name or ""] = np.asarray(scalar)
    protos = [ir.serde.serialize_node(node) for node in in_order]
    found = run_reference(protos, inputs, [result.name or ""], {"": opset})
    if found is None or found[0].shape != _POINTS.shape:
        return None
    return np.asarray(found[0], np.float64)


def _replace(model: ir.Model, source: ir.Value, result: ir.Value, function: Function) -> None:
    op_type, attributes = function
    nodes = _between(source, result)
    assert nodes is not None
    last = result.producer()
    assert last is not None
    node = ir.node(op_type, [source], dict(attributes), name=last.name)
    output = node.outputs[0]
    output.shape, output.type = result.shape, result.type
    model.graph.insert_before(last, node)
    result.replace_all_uses_with(output, replace_graph_outputs=True)
    output.name = result.name
    for dead in sorted(nodes, key=lambda n: list(model.graph).index(n), reverse=True):
        model.graph.remove(dead, safe=True)
