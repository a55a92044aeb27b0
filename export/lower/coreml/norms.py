"""Layer norms that are written out, as exporters before opset 17 do.

Core ML computes its own without the square of a deviation passing through float16, which ends at
65504: one of 256 is beyond that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm of ``source`` over its last axis; without scale or offset where these are None."""

    source: ir.Value
    epsilon: float
    scale: ir.Value | None = None
    offset: ir.Value | None = None


def find_norms(graph: ir.Graph, ranks: Mapping[str, int]) -> dict[ir.Node, Norm]:
    """Norms by the last node of each: a division, a product with a scale, or the sum after it.

    Args:
        ranks: the number of axes of each value.
    """
    return dict(_norms(graph, ranks))


def _norms(graph: ir.Graph, ranks: Mapping[str, int]) -> Iterator[tuple[ir.Node, Norm]]:
    for root in graph:
        if root.op_type != "Sqrt":
            continue
        found = _under_root(root, ranks)
        divisions = [n for n, place in root.outputs[0].uses() if n.op_type == "Div" and place == 1]
        if found is None or len(divisions) != 1:
            continue
        deviation, norm = found
        last = divisions[0]
        if last.inputs[0] is not deviation:
            continue
        scaled = _vector_after(last, "Mul")
        if scaled is not None:
            last, scale = scaled
            norm = Norm(norm.source, norm.epsilon, scale)
            moved = _vector_after(last, "Add")
            if moved is not None:
                last, offset = moved
                norm = Norm(norm.source, norm.epsilon, scale, offset)
        yield last, norm


def _under_root(root: ir.Node, ranks: Mapping[str, int]) -> tuple[ir.Value, Norm] | None:
    """The deviation from the mean, and the norm, of ``Sqrt(Mean((x - Mean(x))²) + epsilon)``."""
    total = _maker(root.inputs[0], "Add")
    if total is None:
        return None
    for value, other in (total.inputs, total.inputs[::-1]):
        epsilon, mean = _number(other), _maker(value, "ReduceMean")
        if epsilon is not None and mean is not None and _is_last_axis(mean, ranks):
            deviation = _squared(mean.inputs[0])
            source = None if deviation is None else _centred(deviation, ranks)
            if deviation is not None and source is not None:
                return deviation, Norm(source, epsilon)
    return None


def _squared(value: ir.Value | None) -> ir.Value | None:
    power, product = _maker(value, "Pow"), _maker(value, "Mul")
    if power is not None and _number(power.inputs[1]) == 2:
        return power.inputs[0]
    if product is not None and product.inputs[0] is product.inputs[1]:
        return product.inputs[0]
    return None


def _centred(value: ir.Value, ranks: Mapping[str, int]) -> ir.Value | None:
    """``x`` of ``x - Mean(x)``."""
    difference = _maker(value, "Sub")
    mean = None if difference is None else _maker(difference.inputs[1], "ReduceMean")
    if difference is None or mean is None or not _is_last_axis(mean, ranks):
        return None
    return difference.inputs[0] if mean.inputs[0] is difference.inputs[0] else None


def _is_last_axis(mean: ir.Node, ranks: Mapping[str, int]) -> bool:
    keep, attribute = mean.attributes.get("keepdims"), mean.attributes.get("axes")
    axes = list(attribute.as_ints()) if attribute is not None else None
    if axes is None and len(mean.inputs) > 1:
        array = _array(mean.inputs[1])
        axes = None if array is None else [int(axis) for axis in array.ravel()]
    source = mean.inputs[0]
    last = ranks.get(source.name or "", 0) - 1 if source is not None else 0
    return (keep is None or bool(keep.as_int())) and axes is not None and axes in ([-1], [last])


def _vector_after(node: ir.Node, kind: str) -> tuple[ir.Node, ir.Value] | None:
    """The only reader of a node, if it is of a kind and its other input is a constant vector."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0][0].op_type != kind:
        return None
    reader, place = uses[0]
    other = reader.inputs[1 - place]
    array = _array(other)
    return (reader, other) if other is not None and array is not None and array.ndim == 1 else None


def _maker(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == kind else None


def _array(value: ir.Value | None) -> NDArray[np.generic] | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _number(value: ir.Value | None) -> float | None:
    array = _array(value)
    return float(array.item()) if array is not None and array.size == 1 else None
