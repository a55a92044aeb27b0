"""What an ML Program holds, as plain records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.coreml_blobs import view_values

DYNAMIC = "?"

Shape = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class ValueType:
    """The type of a value.

    Args:
        dtype: the element type of a tensor, such as ``float16``; else ``list``, ``dictionary``,
            ``tuple`` or ``state``.
        shape: ``?`` for a size that is not known; None where even the rank is not.
    """

    dtype: str
    shape: Shape | None

    @property
    def fixed(self) -> tuple[int, ...] | None:
        """The shape where every size is known."""
        if self.shape is None or any(isinstance(size, str) for size in self.shape):
            return None
        return tuple(int(size) for size in self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value that the file holds.

    Args:
        data: its bytes as they are stored: a view of the weight file, or of the program.
        place: the weight file and the byte where the data begins; None if it is in the program.
        items: those of a list, and the strings of a tensor of strings.
    """

    type: ValueType
    data: NDArray[np.uint8]
    place: tuple[str, int] | None = None
    items: tuple[Constant | str, ...] = ()

    @property
    def values(self) -> NDArray[np.generic]:
        """The values of a tensor, as `view_values` gives them; strings are an array of objects."""
        shape = self.type.fixed or ()
        if self.type.dtype == "string":
            return np.array(self.items, object).reshape(shape)
        return view_values(self.data, self.type.dtype, shape)


Argument = str | Constant
"""What an operator reads: the name of a value, or a constant written in its place."""


@dataclass(frozen=True, slots=True)
class Port:
    """A named value: an input or output of an operator, block or function."""

    name: str
    type: ValueType


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator.

    Args:
        inputs: for each parameter what is bound to it: one argument, or several for a tuple.
        attributes: constants beside the inputs; a ``const`` has its value in ``val``.
    """

    type: str
    name: str
    inputs: Mapping[str, tuple[Argument, ...]]
    outputs: tuple[Port, ...]
    attributes: Mapping[str, Constant]
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Operators in the order in which they run, and the names of the values they give out."""

    inputs: tuple[Port, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Feature:
    """An input or output as the description has it.

    Args:
        kind: ``multiArray``, ``image``, ``string``, ``dictionary``, ``state`` ...
        dtype: the element type of an array; None for other kinds.
        ranges: for each dimension of an array of flexible shape the least and the largest size,
            the largest None where there is no bound; empty if the shape is fixed or not known.
        shapes: the shapes that are allowed, where they are counted up.
    """

    name: str
    kind: str
    dtype: str | None = None
    ranges: tuple[tuple[int, int | None], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Function:
    """One function of a program; its features are empty where the description does not say."""

    name: str
    opset: str
    block: Block
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]


@dataclass(frozen=True, slots=True)
class CoremlFile:
    """An ML Program that was checked.

    Args:
        functions: by name.
        default: the name of the function that runs.
        model_path: the .mlmodel file.
        weight_paths: the weight files, by the name under which the program refers to them.
    """

    path: Path
    functions: Mapping[str, Function]
    default: str
    specification: int
    model_path: Path
    weight_paths: Mapping[str, Path]

    @property
    def main(self) -> Function:
        """The function that runs unless another is asked for."""
        return self.functions[self.default]


def one_line(text: object) -> str:
    """Write what a file names as one line: nothing that breaks it or steers a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))
