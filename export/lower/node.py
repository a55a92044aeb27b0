"""An ONNX node as the operators' functions of a backend see it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


class Unsupported(Exception):
    """What a backend, or its lowering, cannot express; the text says why."""


class Node:
    """An ONNX node with its attributes' defaults at hand."""

    def __init__(self, node: ir.Node) -> None:
        self.ir = node
        self.kind = node.op_type
        self.name = node.name or (node.outputs[0].name or node.op_type)
        self.inputs = [v if v is not None and v.name else None for v in node.inputs]
        self.outputs = list(node.outputs)

    def input(self, place: int) -> ir.Value | None:
        """An optional input."""
        return self.inputs[place] if place < len(self.inputs) else None

    def required(self, place: int) -> ir.Value:
        """An input that the operator cannot do without."""
        value = self.input(place)
        if value is None:
            raise Unsupported(f"input {place} is missing")
        return value

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        attribute = self.ir.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        attribute = self.ir.attributes.get(name)
        return default if attribute is None else attribute.as_float()

    def integers(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        attribute = self.ir.attributes.get(name)
        return tuple(default if attribute is None else attribute.as_ints())

    def is_read(self, place: int) -> bool:
        """Whether anything reads an output, or it is one of the graph's."""
        if place >= len(self.outputs):
            return False
        return bool(self.outputs[place].uses()) or self.outputs[place].is_graph_output()

    def text(self, name: str, default: str) -> str:
        """A text attribute."""
        attribute = self.ir.attributes.get(name)
        return default if attribute is None else attribute.as_string()
