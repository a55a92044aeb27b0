"""Dimensions that may vary, told apart by trial rather than by algebra.

Shapes are inferred several times with different sizes for the model's dynamic dimensions. A
dimension that came out the same each time is an ``int``; one that did not is a ``Dim``, which
keeps the size of every trial. Sums, products and comparisons work trial by trial, so two
dimensions are the same exactly when they were so in every trial.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Dim:
    """A size that differs between trials; ``values[0]`` is the one written into the file."""

    values: tuple[int, ...]

    def __add__(self, other: Size) -> Size:
        return _each(lambda a, b: a + b, self, other)

    def __radd__(self, other: Size) -> Size:
        return _each(lambda a, b: a + b, self, other)

    def __sub__(self, other: Size) -> Size:
        return _each(lambda a, b: a - b, self, other)

    def __rsub__(self, other: Size) -> Size:
        return _each(lambda a, b: b - a, self, other)

    def __mul__(self, other: Size) -> Size:
        return _each(lambda a, b: a * b, self, other)

    def __rmul__(self, other: Size) -> Size:
        return _each(lambda a, b: a * b, self, other)

    def __floordiv__(self, other: Size) -> Size:
        return _each(lambda a, b: a // b, self, other)


Size: TypeAlias = int | Dim
Shape: TypeAlias = tuple[Size, ...]


def size_of(values: Iterable[int]) -> Size:
    """Make a size from its value in every trial."""
    found = tuple(int(value) for value in values)
    return found[0] if len(set(found)) == 1 else Dim(found)


def _each(combine: Callable[[int, int], int], one: Dim, other: Size) -> Size:
    others = other.values if isinstance(other, Dim) else (other,) * len(one.values)
    return size_of(combine(a, b) for a, b in zip(one.values, others, strict=True))


def product(sizes: Iterable[Size]) -> Size:
    """Multiply sizes; 1 for none."""
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def sum_of(sizes: Iterable[Size]) -> Size:
    """Add sizes; 0 for none."""
    total: Size = 0
    for size in sizes:
        total = total + size
    return total


@dataclass(frozen=True, slots=True)
class Derivation:
    """A size as ``factor`` times the product of other sizes, and ``offset``."""

    terms: tuple[Dim, ...]
    factor: int
    offset: int = 0


def derive(size: Dim, known: Sequence[Size]) -> Derivation | None:
    """Find how a size follows from one or two others, in a way that holds in every trial."""
    dims = [other for other in known if isinstance(other, Dim)]
    for one in dims:
        rise = one.values[1] - one.values[0]
        if rise and (size.values[1] - size.values[0]) % rise == 0:
            factor = (size.values[1] - size.values[0]) // rise
            offset = size.values[0] - factor * one.values[0]
            if one * factor + offset == size:
                return Derivation((one,), factor, offset)
    for one, other in itertools.combinations_with_replacement(dims, 2):
        area = in_file([one * other])[0]
        factor = size.values[0] // area if area else 0
        if factor and one * other * factor == size:
            return Derivation((one, other), factor)
    return None


def in_file(shape: Sequence[Size]) -> tuple[int, ...]:
    """The sizes of the first trial: what a file states as the shape."""
    return tuple(size.values[0] if isinstance(size, Dim) else size for size in shape)


def signature(shape: Sequence[Size]) -> tuple[int, ...]:
    """The shape with -1 for each dimension that varies."""
    return tuple(-1 if isinstance(size, Dim) else size for size in shape)


def is_static(shape: Sequence[Size]) -> bool:
    """Whether no dimension varies."""
    return all(isinstance(size, int) for size in shape)


def largest(size: Size) -> int:
    """The size in the largest trial, to order sizes by."""
    return max(size.values) if isinstance(size, Dim) else size


def broadcast(*shapes: Sequence[Size]) -> Shape:
    """The shape that results from numpy's broadcasting.

    Raises:
        ValueError: two sizes differ and neither is 1.
    """
    rank = max(len(shape) for shape in shapes)
    result: list[Size] = []
    for axis in range(rank):
        size: Size = 1
        for shape in shapes:
            place = axis - (rank - len(shape))
            if place < 0 or shape[place] == 1:
                continue
            if size not in (1, shape[place]):
                raise ValueError(f"shapes {shapes} cannot be broadcast")
            size = shape[place]
        result.append(size)
    return tuple(result)
