"""Products that a builder would join into one, kept apart where their weights are tied."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

_PASSED = {"Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze"}
# Spacing of the bounds, wide enough to be told apart: 64 of them end at -63,424 and -1.7e38.
_STEPS = {np.dtype("float16"): 32.0, np.dtype("float32"): 2.0**121}
_LOWEST = {np.dtype(kind): float(np.finfo(kind).min) for kind in (np.float16, np.float32)}
_MOST = 64

# How a product reads its weight.
_Reading = tuple[ir.Value, bool]


class SeparateTiedProductsPass(ir.passes.InPlacePass):
    """Tied products of one tensor read it through a Max that changes nothing, each its own.

    TensorRT's builder joins products that share their left operand, such as an attention's
    queries, keys and values, into one product on a copy of all their weights side by side. A
    weight that anything else reads as well is then stored twice. ``Max(x, low)`` returns x, and
    the builder does not know that: it does of the very lowest number of float32, so that those
    right above it are used, a different one for each product. Weights that nothing else reads
    are left to be joined, as are those that are always read together in one order.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the main graph."""
        graph = model.graph
        groups = _groups(graph)
        readers: dict[ir.Value, set[object]] = defaultdict(set)
        for members in groups:
            signature = tuple(reading for _, reading in members)
            for _, (weight, _) in members:
                readers[weight].add(signature)
        products = {node for members in groups for node, _ in members}
        for weight in readers:
            for node, place in weight.uses():
                if node not in products and node.op_type not in ("Transpose", "Shape"):
                    readers[weight].add((node.op_type, place))
        modified = False
        for members in groups:
            if len(members) > 1:
                counts = Counter(weight for _, (weight, _) in members)
                tied = [
                    node
                    for node, (weight, _) in members
                    if len(readers[weight]) > 1 or counts[weight] > 1
                ]
                # One product may read x itself where it is then alone with it.
                kept = len(members) > len(tied)
                for place, node in enumerate(tied if kept else tied[1:]):
                    _insert(graph, node, place)
                    modified = True
        return ir.passes.PassResult(model, modified)


def _groups(graph: ir.Graph) -> list[list[tuple[ir.Node, _Reading]]]:
    """Products of stored matrices by what they multiply."""
    by_source: dict[ir.Value, list[tuple[ir.Node, _Reading]]] = defaultdict(list)
    for node in graph:
        reading = _reading(node)
        if reading is not None and node.inputs[0] is not None:
            by_source[_source(node.inputs[0])].append((node, reading))
    return list(by_source.values())


def _reading(node: ir.Node) -> _Reading | None:
    if node.op_type not in ("Gemm", "MatMul") or node.domain != "":
        return None
    weight = node.inputs[1]
    transposed = node.attributes.get("transB")
    turned = transposed is not None and bool(transposed.as_int())
    for maker in _makers(weight):
        if maker.op_type == "Transpose":
            turned = not turned
        elif maker.op_type not in _PASSED:
            return None
        weight = maker.inputs[0]
    return (weight, turned) if weight is not None and weight.is_initializer() else None


def _makers(value: ir.Value | None) -> Iterator[ir.Node]:
    while value is not None and (maker := value.producer()) is not None:
        yield maker
        value = maker.inputs[0] if maker.inputs else None


def _source(value: ir.Value) -> ir.Value:
    for maker in _makers(value):
        if maker.op_type not in _PASSED or maker.inputs[0] is None:
            break
        value = maker.inputs[0]
    return value


def _insert(graph: ir.Graph, product: ir.Node, place: int) -> None:
    x = product.inputs[0]
    assert x is not None
    dtype = np.dtype((x.dtype or ir.DataType.FLOAT).numpy())
    if dtype not in _STEPS or place >= _MOST:
        return  # a double or an integer is no weight's operand in TensorRT
    node = ir.node("Max", [x, _bound(graph, dtype, place)])
    made = node.outputs[0]
    made.name, made.type, made.shape = f"{product.outputs[0].name}.own", x.type, x.shape
    node.name = f"{product.name}.own" if product.name else None
    graph.insert_before(product, node)
    product.replace_input_with(0, made)


def _bound(graph: ir.Graph, dtype: np.dtype[np.generic], place: int) -> ir.Value:
    name = f"low.{place}.{dtype.name}"
    if name not in graph.initializers:
        number = np.asarray(_LOWEST[dtype] + (place + 1) * _STEPS[dtype], dtype)
        tensor = ir.tensor(number, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        graph.register_initializer(value)
    return graph.initializers[name]
