"""One operator at work: its arguments, by the names of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Value = Tensor | str | tuple[object, ...]
"""A tensor, a text, or the items of a list.

Tensors are float32, int32 (int64 where that is too narrow) or bool, whatever the program declares:
what an operator gives out is rounded to the declared type.
"""
Result = Tensor | tuple[Value, ...]

# The last opset in which `reshape` reads a 0 as the size at the same place from the left.
LEFT_ALIGNED_OPSETS = frozenset({"CoreML5", "CoreML6"})


class ArgumentError(ValueError):
    """An operator lacks a parameter, or has one that it cannot have."""


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one operator.

    Args:
        values: for each parameter what is bound to it, one value or those of a tuple.
        dtypes: the declared element type of each output.
    """

    values: Mapping[str, Sequence[Value]]
    dtypes: tuple[str, ...]
    opset: str

    def has(self, key: str) -> bool:
        """Whether a parameter is given."""
        return key in self.values

    def value(self, key: str) -> Value:
        """Give a parameter that has one value."""
        found = self.values.get(key, ())
        if len(found) != 1:
            raise ArgumentError(f"its parameter {key!r} has {len(found)} values, not 1")
        return found[0]

    def tensor(self, key: str = "x") -> Tensor:
        """Give a parameter that has to be a tensor."""
        return _tensor(self.value(key), key)

    def tensors(self, key: str = "values") -> list[Tensor]:
        """Give the tensors of a tuple."""
        return [_tensor(each, key) for each in self.values.get(key, ())]

    def optional(self, key: str) -> Tensor | None:
        """Give a tensor, or None where the parameter is left out."""
        return self.tensor(key) if self.has(key) else None

    def number(self, key: str, default: float | None = None) -> float:
        """Give a scalar as a number."""
        if default is not None and not self.has(key):
            return default
        return float(self.tensor(key).item())

    def integer(self, key: str, default: int | None = None) -> int:
        """Give a scalar as a whole number."""
        if default is not None and not self.has(key):
            return default
        return int(self.tensor(key).item())

    def integers(self, key: str, default: Sequence[int] | None = None) -> list[int]:
        """Give a vector as whole numbers."""
        if default is not None and not self.has(key):
            return list(default)
        return [int(each) for each in self.tensor(key).reshape(-1).tolist()]

    def flag(self, key: str, default: bool = False) -> bool:
        """Give a scalar as true or false."""
        return bool(self.tensor(key).item()) if self.has(key) else default

    def flags(self, key: str, count: int) -> list[bool]:
        """Give a vector of truth values; all false where it is left out."""
        return [bool(each) for each in self.integers(key, [0] * count)]

    def text(self, key: str, default: str | None = None) -> str:
        """Give a text."""
        if default is not None and not self.has(key):
            return default
        found = self.value(key)
        if not isinstance(found, str):
            raise ArgumentError(f"its parameter {key!r} is no text")
        return found

    def axis(self, key: str, rank: int, default: int | None = None) -> int:
        """Give an axis, counted from the left."""
        return _from_left(self.integer(key, default), rank)

    def axes(self, key: str, rank: int, default: Sequence[int] | None = None) -> list[int]:
        """Give axes in rising order, counted from the left."""
        return sorted(_from_left(axis, rank) for axis in self.integers(key, default))


Operator = Callable[[Call], Result]


def _tensor(value: Value, key: str) -> Tensor:
    if not isinstance(value, torch.Tensor):
        raise ArgumentError(f"its parameter {key!r} is no tensor")
    return value


def _from_left(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ArgumentError(f"it has axis {axis} for {rank} dimensions")
    return axis % rank


def along(vector: Tensor, rank: int, axis: int) -> Tensor:
    """Stretch a vector along one axis of several, to broadcast; a scalar is left as it is."""
    if vector.dim() == 0:
        return vector
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)
