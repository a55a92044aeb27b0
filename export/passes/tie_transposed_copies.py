"""Transposed copies of a stored tensor, tied again."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_SMALLEST_BYTES = 256  # below, equal tensors are chance and cost nothing
_MAX_RANK = 4


class TieTransposedCopiesPass(ir.passes.InPlacePass):
    """An initializer that is another one transposed becomes a Transpose of that one.

    For graphs from elsewhere: other exporters fold a transposed use into a copy. Every value must
    be equal; near matches are left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the main graph."""
        kept: dict[tuple[object, ...], list[ir.Value]] = {}
        inputs = {value.name for value in model.graph.inputs}
        modified = False
        for name, value in list(model.graph.initializers.items()):
            tensor = value.const_value
            if (
                tensor is None
                or name in inputs
                or value.is_graph_output()
                or tensor.nbytes < _SMALLEST_BYTES
                or not 2 <= len(tensor.shape) <= _MAX_RANK
            ):
                continue
            bits = _bits(tensor)
            key = (tensor.dtype, tuple(sorted(bits.shape)), int(bits.sum(dtype=np.uint64)))
            for other in kept.setdefault(key, []):
                assert other.const_value is not None
                axes = _permutation(_bits(other.const_value), bits)
                if axes is not None:
                    _replace(model.graph, value, other, axes)
                    modified = True
                    break
            else:
                kept[key].append(value)
        return ir.passes.PassResult(model, modified)


def _bits(tensor: ir.TensorProtocol) -> NDArray[np.unsignedinteger]:
    """View values as unsigned integers, so that equal means equal in every bit."""
    array = np.ascontiguousarray(tensor.numpy())
    return array.view(f"u{array.dtype.itemsize}").reshape(array.shape)


def _permutation(
    one: NDArray[np.unsignedinteger], other: NDArray[np.unsignedinteger]
) -> tuple[int, ...] | None:
    """The order of axes in which the first equals the second; not the order that it has."""
    if (one == one.flat[0]).all():
        return None  # one number throughout is a start value, not a shared weight
    for axes in itertools.permutations(range(one.ndim)):
        if axes == tuple(range(one.ndim)):
            continue
        turned = one.transpose(axes)
        if turned.shape == other.shape and np.array_equal(turned, other):
            return axes
    return None


def _replace(graph: ir.Graph, copy: ir.Value, stored: ir.Value, axes: tuple[int, ...]) -> None:
    node = ir.node("Transpose", [stored], {"perm": list(axes)}, name=f"{copy.name}_view")
    output = node.outputs[0]
    output.shape, output.type = copy.shape, copy.type
    first = next(iter(graph), None)
    if first is None:
        graph.append(node)
    else:
        graph.insert_before(first, node)
    copy.replace_all_uses_with(output)
    assert copy.name is not None
    graph.initializers.pop(copy.name)
    output.name = copy.name
