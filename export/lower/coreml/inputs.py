"""The inputs of a package: their sizes, and the images among them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from export.errors import LoweringError
from export.lower.coreml.options import (
    BATCH_LIMIT,
    COLOURS,
    LENGTH_LIMIT,
    CoremlOptions,
    ImageInput,
    Range,
    Sizes,
)

_LARGEST_DEFAULT = 8  # no more than this where nothing says what is usual
_CHANNELS = {"RGB": 3, "BGR": 3, "GRAYSCALE": 1}
_MOST_SHAPES = 128  # that Core ML takes as enumerated


@dataclass(frozen=True, slots=True)
class Axis:
    """A dynamic axis: the sizes it may take, and coremltools' symbol for it."""

    sizes: tuple[int, ...] | Range
    range: Any  # coremltools.RangeDim


def graph_inputs(graph: ir.Graph) -> list[ir.Value]:
    """The inputs that a caller gives."""
    return [value for value in graph.inputs if not value.is_initializer()]


def fix_sizes(graph: ir.Graph, options: CoremlOptions) -> None:
    """Write the sizes that are to be fixed into the graph.

    Raises:
        LoweringError: an option names an axis or an input that the graph has not.
    """
    names = {
        size.value
        for value in graph_inputs(graph)
        for size in value.shape or ()
        if not isinstance(size, int)
    }
    unknown = sorted(set(options.dimensions) - {name for name in names if name})
    if unknown:
        known = ", ".join(sorted(name for name in names if name)) or "none"
        raise LoweringError(f"no dynamic axis is called {unknown[0]!r}; there are: {known}")
    fixed = {name: n for name, n in options.dimensions.items() if isinstance(n, int)}
    if options.image is not None:
        fixed[axis_name(_image(graph, options.image), 0)] = 1  # an image is given alone
    for value in graph_inputs(graph):
        value.shape = ir.Shape(
            [
                size if isinstance(size, int) else fixed.get(axis_name(value, place), size)
                for place, size in enumerate(value.shape or ())
            ]
        )


def _image(graph: ir.Graph, image: ImageInput) -> ir.Value:
    found = {value.name: value for value in graph_inputs(graph)}
    value = found.get(image.name)
    if value is None:
        known = ", ".join(str(name) for name in found)
        raise LoweringError(f"no input is called {image.name!r}; there are: {known}")
    if image.colour not in COLOURS:
        raise LoweringError(f"colour layout {image.colour!r}; there are: {', '.join(COLOURS)}")
    shape, channels = list(value.shape or ()), _CHANNELS[image.colour]
    if len(shape) != 4 or shape[1] != channels or (isinstance(shape[0], int) and shape[0] != 1):
        raise LoweringError(
            f"input {image.name!r} is {value.shape}; an image in {image.colour} needs "
            f"(1, {channels}, height, width)"
        )
    return value


def dynamic_axes(ct: Any, graph: ir.Graph, dimensions: Mapping[str, Sizes]) -> dict[str, Axis]:
    """The dynamic axes by name, each with one symbol wherever it stands."""
    found: dict[str, Axis] = {}
    for value in graph_inputs(graph):
        for place, size in enumerate(value.shape or ()):
            if isinstance(size, int):
                continue
            name = axis_name(value, place)
            if name not in found:
                sizes = dimensions.get(name)
                found[name] = _axis(ct, name, sizes, BATCH_LIMIT if place == 0 else LENGTH_LIMIT)
    return found


def axis_name(value: ir.Value, place: int) -> str:
    """The name of a dynamic axis; one that has none gets its input's."""
    assert value.shape is not None
    size = value.shape[place]
    return (None if isinstance(size, int) else size.value) or f"{value.name}:{place}"


def _axis(ct: Any, name: str, sizes: Sizes | None, limit: int) -> Axis:
    if sizes is None:
        sizes = Range(1, limit)
    assert not isinstance(sizes, int)
    limits = Range(min(sizes), max(sizes), sizes[0]) if isinstance(sizes, tuple) else sizes
    usual = limits.usual
    if usual is None:
        usual = max(limits.smallest, 1 if limit == BATCH_LIMIT else min(64, limits.largest))
    if not 1 <= limits.smallest <= usual <= limits.largest:
        raise LoweringError(f"axis {name!r} cannot have the sizes {sizes}")
    return Axis(sizes, ct.RangeDim(limits.smallest, limits.largest, default=usual))


def symbolic_shape(value: ir.Value, axes: Mapping[str, Axis]) -> list[Any]:
    """An input's shape with coremltools' symbols."""
    return [
        size if isinstance(size, int) else axes[axis_name(value, place)].range.symbol
        for place, size in enumerate(value.shape or ())
    ]


def describe(
    ct: Any,
    value: ir.Value,
    name: str,
    dtype: np.dtype[Any],
    axes: Mapping[str, Axis],
    image: ImageInput | None,
) -> Any:
    """What coremltools wants to know of an input: a TensorType or an ImageType."""
    shape = _shape(ct, value, axes)
    if image is not None and image.name == value.name:
        colour = getattr(ct.colorlayout, image.colour)
        # Scale and bias are operators of the program: coremltools takes one scale for all channels.
        return ct.ImageType(name=name, shape=shape, color_layout=colour, channel_first=True)
    return ct.TensorType(name=name, shape=shape, dtype=dtype.type)


def _shape(ct: Any, value: ir.Value, axes: Mapping[str, Axis]) -> Any:
    sizes = [
        size if isinstance(size, int) else axes[axis_name(value, place)]
        for place, size in enumerate(value.shape or ())
    ]
    if not any(isinstance(size, Axis) and isinstance(size.sizes, tuple) for size in sizes):
        return ct.Shape([size.range if isinstance(size, Axis) else size for size in sizes])
    choices: list[tuple[int, ...]] = []
    for size in sizes:
        listed = size.sizes if isinstance(size, Axis) else (size,)
        if isinstance(listed, Range):
            raise LoweringError(
                f"input {value.name!r} has listed sizes on one axis and a range on another; "
                "give a list or one size for each"
            )
        choices.append(listed)
    shapes = list(itertools.product(*choices))
    if len(shapes) > _MOST_SHAPES:
        raise LoweringError(
            f"input {value.name!r} would have {len(shapes)} shapes; Core ML takes {_MOST_SHAPES}"
        )
    return ct.EnumeratedShapes(shapes) if len(shapes) > 1 else ct.Shape(shapes[0])
