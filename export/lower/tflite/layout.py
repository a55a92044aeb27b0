"""Layouts: which order of axes a tensor has in memory.

A layout is a permutation: axis ``i`` of the TFLite tensor holds axis ``layout[i]`` of the ONNX
value. ONNX transposes only change the layout; a TRANSPOSE is written where an operator needs
another one than the value has. So convolutions run channels last, what is between them follows,
and a model that transposes back and forth itself pays nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from export.lower.sizes import Shape, Size, largest

Layout = tuple[int, ...]
Array: TypeAlias = NDArray[np.generic]


def plain(rank: int) -> Layout:
    """The order of axes that ONNX has."""
    return tuple(range(rank))


def channels_last(rank: int) -> Layout:
    """``(N, C, ...)`` stored as ``(N, ..., C)``."""
    return (0, *range(2, rank), 1)


def stored(shape: Sequence[Size], layout: Layout) -> Shape:
    """The shape that a value of an ONNX shape has in a layout."""
    return tuple(shape[axis] for axis in layout)


def between(have: Layout, want: Layout) -> Layout:
    """The permutation that TRANSPOSE needs to go from one layout to another."""
    return tuple(have.index(axis) for axis in want)


def moves_data(shape: Sequence[Size], perm: Layout) -> bool:
    """Whether a transpose moves anything but axes of size 1."""
    moved = [axis for axis in perm if shape[axis] != 1]
    return moved != sorted(moved)


def rearranged(first: Array, other: Array) -> tuple[tuple[int, ...], Layout] | None:
    """How one order of the same elements in memory is made from another.

    Args:
        first: a view of every element of some memory, whose order of axes is at hand.
        other: another such view.

    Returns:
        A shape that ``first`` takes without a move, and the permutation that makes ``other`` of
        it, but for a last reshape; None where the views do not cover the same memory.
    """
    strides = {stride for array in (first, other) for _, stride in _steps(array)}
    atoms = sorted(strides, reverse=True)
    if first.size != other.size or not atoms or atoms[-1] != 1:
        return None
    sizes = [above // below for above, below in zip([first.size, *atoms], atoms, strict=False)]
    if math.prod(sizes) != first.size:
        return None
    orders = [_in_atoms(array, atoms) for array in (first, other)]
    if any(sorted(order, reverse=True) != atoms for order in orders):
        return None
    size_of = dict(zip(atoms, sizes, strict=True))
    shape = tuple(size_of[atom] for atom in orders[0])
    return shape, tuple(orders[0].index(atom) for atom in orders[1])


def _steps(array: Array) -> list[tuple[int, int]]:
    """Size and stride, in elements, of each axis that has more than one element."""
    return [
        (size, stride // array.itemsize)
        for size, stride in zip(array.shape, array.strides, strict=True)
        if size > 1
    ]


def _in_atoms(array: Array, atoms: Sequence[int]) -> list[int]:
    """The strides of the smallest common axes, in the order in which the array's axes hold them."""
    return [
        atom for size, stride in _steps(array) for atom in atoms if stride <= atom < stride * size
    ]


def reshaped(before: Sequence[Size], after: Sequence[Size], layout: Layout) -> Layout | None:
    """The layout after a Reshape that is done without leaving the layout, or None.

    It can be where every run of axes that the Reshape merges or splits lies side by side and in
    order in memory. Axes of size 1 take no part.
    """
    groups = _groups(before, after)
    if groups is None:
        return None
    order = [axis for axis in layout if before[axis] != 1]
    found: list[int] = []
    place = 0
    while place < len(order):
        group = next(group for group in groups if order[place] in group[0])
        if tuple(order[place : place + len(group[0])]) != group[0]:
            return None
        found.extend(group[1])
        place += len(group[0])
    return _with_ones(found, after)


def _with_ones(order: Sequence[int], shape: Sequence[Size]) -> Layout:
    """Put each axis of size 1 behind the axis before it, and the very first in front."""
    result = list(order)
    for axis, size in enumerate(shape):
        if size == 1:
            result.insert(result.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(result)


def _groups(
    before: Sequence[Size], after: Sequence[Size]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """Pair the runs of axes of two shapes that hold the same elements."""
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    while left or right:
        if not (left and right):
            return None
        taken, given = [left.pop(0)], [right.pop(0)]
        have, want = before[taken[0]], after[given[0]]
        while have != want:
            if largest(have) < largest(want) and left:
                taken.append(left.pop(0))
                have = have * before[taken[-1]]
            elif largest(have) > largest(want) and right:
                given.append(right.pop(0))
                want = want * after[given[-1]]
            else:
                return None
        groups.append((tuple(taken), tuple(given)))
    return groups
