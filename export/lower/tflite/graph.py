"""A TFLite graph while it is made: tensors, operators, and nothing of the file format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.lower.sizes import Shape


@dataclass(eq=False, slots=True)
class Tensor:
    """A value of the graph, told from others by identity.

    Args:
        data: the values of a constant, of exactly ``shape``; it may be a view of stored weights.
        weight: whether ``data`` are parameters, which a precision may store in fewer bits.
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    data: NDArray[np.generic] | None = None
    weight: bool = False

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


@dataclass(eq=False, slots=True)
class Operator:
    """One TFLite operator.

    Args:
        kind: the name in the schema's ``BuiltinOperator``.
        inputs: None stands for an optional input that is left out.
        options: fields of the operator's options table, as the schema's bindings name them.
        where: the ONNX node it comes from.
    """

    kind: str
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    where: str = ""


@dataclass(slots=True)
class Graph:
    """Operators in the order in which they run, with named inputs and outputs.

    Args:
        setup: what runs once, before the first run; it leaves its results in variables.
        unused: inputs that nothing reads, after the others; their names begin with
            ``export.records.UNUSED``.
    """

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[tuple[str, Tensor]] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    setup: Graph | None = None
    unused: list[Tensor] = field(default_factory=list)

    def add(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        options: Mapping[str, Any],
        where: str,
    ) -> None:
        """Append an operator."""
        self.operators.append(Operator(kind, list(inputs), list(outputs), dict(options), where))

    def uses(self) -> dict[Tensor, list[Operator]]:
        """List the operators that read each tensor, once for each time they do."""
        found: dict[Tensor, list[Operator]] = {}
        for operator in self.operators:
            for tensor in operator.inputs:
                if tensor is not None:
                    found.setdefault(tensor, []).append(operator)
        return found

    def makers(self) -> dict[Tensor, Operator]:
        """Give the operator that computes each tensor."""
        return {tensor: op for op in self.operators for tensor in op.outputs}

    def constants(self) -> Iterator[Tensor]:
        """List each constant that an operator or an output reads, once."""
        seen: set[int] = set()
        readers = [tensor for op in self.operators for tensor in op.inputs]
        for tensor in [*readers, *(tensor for _, tensor in self.outputs)]:
            if tensor is not None and tensor.data is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor

    def remove_unread(self) -> None:
        """Drop operators whose outputs nobody reads."""
        needed = {id(tensor) for _, tensor in self.outputs}
        kept: list[Operator] = []
        for operator in reversed(self.operators):
            if any(id(tensor) in needed for tensor in operator.outputs):
                kept.append(operator)
                needed.update(id(tensor) for tensor in operator.inputs if tensor is not None)
        self.operators = kept[::-1]
