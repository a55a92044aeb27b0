"""Weights in half the bytes: stored as float16, and made float32 again by DEQUANTIZE."""

from __future__ import annotations

import numpy as np

from export.lower.tflite.graph import Graph, Operator, Tensor

_LARGEST = float(np.finfo(np.float16).max)
_FLOAT, _HALF = np.dtype("float32"), np.dtype("float16")


def store_as_float16(graph: Graph) -> None:
    """Store every weight as float16, with a DEQUANTIZE before each operator that reads it.

    The runtime converts constants once, when it prepares the model; a table that rows are picked
    from stays as it is, and the rows are converted. Numbers beyond the range of float16, such as
    those that stand for minus infinity in a mask, stay float32.
    """
    halves: dict[int, Tensor] = {}
    body: list[Operator] = []
    for operator in graph.operators:
        if operator.kind == "GATHER" and _is_weight(operator.inputs[0]):
            body.extend(_picked_as_half(operator, halves))
            continue
        for place, tensor in enumerate(operator.inputs):
            if tensor is not None and _is_weight(tensor):
                # One for each reader, right before it: the delegate folds it into the reader, and
                # takes only neighbours together.
                wide = Tensor(f"{tensor.name}/float32", tensor.shape, _FLOAT)
                half = _halved(tensor, halves)
                body.append(Operator("DEQUANTIZE", [half], [wide], {}, operator.where))
                operator.inputs[place] = wide
        body.append(operator)
    graph.operators = body


def _is_weight(tensor: Tensor | None) -> bool:
    """Whether a tensor is worth storing as float16, and fits: single numbers are no weights."""
    if tensor is None or not tensor.weight or tensor.dtype != _FLOAT:
        return False
    assert tensor.data is not None
    return tensor.data.size > 1 and float(np.abs(tensor.data).max()) <= _LARGEST


def _picked_as_half(gather: Operator, halves: dict[int, Tensor]) -> list[Operator]:
    table, result = gather.inputs[0], gather.outputs[0]
    assert table is not None
    rows = Tensor(f"{result.name}/half", result.shape, _HALF)
    gather.inputs[0], gather.outputs[0] = _halved(table, halves), rows
    return [gather, Operator("DEQUANTIZE", [rows], [result], {}, gather.where)]


def _halved(tensor: Tensor, halves: dict[int, Tensor]) -> Tensor:
    if id(tensor) in halves:
        return halves[id(tensor)]
    assert tensor.data is not None
    data = tensor.data.astype(_HALF)
    half = Tensor(tensor.name, tensor.shape, _HALF, data, tensor.weight)
    halves[id(tensor)] = half
    return half
