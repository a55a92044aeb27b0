"""Whether an input is large enough for a node: ONNX's shape inference does not always ask.

A trial with sizes that do not fit is given up, so that none of them is written into a file: the
runtime plans for them when it loads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Shapes = Mapping[str, tuple[int, ...]]
Known = Mapping[str, NDArray[np.generic]]


def misfit(node: ir.Node, shapes: Shapes, known: Known) -> str | None:
    """Say why a node cannot take inputs of these shapes; None where it can."""
    check = _CHECKS.get(node.op_type) if node.domain == "" else None
    first = node.inputs[0] if node.inputs else None
    if check is None or first is None:
        return None
    return check(node, shapes[first.name or ""], shapes, known)


def _gather(node: ir.Node, shape: tuple[int, ...], _shapes: Shapes, known: Known) -> str | None:
    places = _content(node, 1, known)
    if places is None or not places.size or not shape:
        return None
    size = shape[_integers(node, "axis", (0,))[0] % len(shape)]
    if -size <= int(places.min()) <= int(places.max()) < size:
        return None
    return f"reads a place beyond the {size} that there are"


def _window(node: ir.Node, shape: tuple[int, ...], shapes: Shapes, _known: Known) -> str | None:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    kernel = _integers(node, "kernel_shape", shapes[weight.name or ""][2:] if weight else ())
    axes = len(kernel)
    dilations, pads = (
        _integers(node, name, (fill,) * count)
        for name, fill, count in (("dilations", 1, axes), ("pads", 0, 2 * axes))
    )
    auto = node.attributes.get("auto_pad")
    if auto is not None and auto.as_string().startswith("SAME"):
        return None
    for axis, size in enumerate(shape[2:]):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        if size + pads[axis] + pads[axis + axes] < reach:
            return f"moves a window of {reach} over {size}"
    return None


def _pad(node: ir.Node, shape: tuple[int, ...], _shapes: Shapes, known: Known) -> str | None:
    amounts = _content(node, 1, known)
    if amounts is None:
        return None
    chosen = _content(node, 3, known)
    axes = [int(axis) for axis in chosen] if chosen is not None else list(range(len(shape)))
    mode = node.attributes.get("mode")
    reflects = mode is not None and mode.as_string() == "reflect"
    for place, axis in enumerate(axes):
        size, pair = shape[axis], (int(amounts[place]), int(amounts[place + len(axes)]))
        if size + sum(min(amount, 0) for amount in pair) < 0:
            return f"cuts more than the {size} that there are"
        if reflects and max(pair) >= size:
            return f"reflects more than the {size} that there are"
    return None


def _blocks(node: ir.Node, shape: tuple[int, ...], _shapes: Shapes, _known: Known) -> str | None:
    block = _integers(node, "blocksize", (1,))[0]
    odd = [size for size in shape[2:] if size % block]
    return f"cuts {odd[0]} into blocks of {block}" if odd else None


_CHECKS: dict[str, Callable[[ir.Node, tuple[int, ...], Shapes, Known], str | None]] = {
    "Gather": _gather, "Conv": _window, "MaxPool": _window, "AveragePool": _window, "Pad": _pad,
    "SpaceToDepth": _blocks,
}  # fmt: skip


def _content(node: ir.Node, place: int, known: Known) -> NDArray[np.int64] | None:
    value = node.inputs[place] if place < len(node.inputs) else None
    array = known.get(value.name or "") if value is not None else None
    return None if array is None else np.asarray(array, np.int64)


def _integers(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    if attribute is None:
        return tuple(default)
    single = attribute.type == ir.AttributeType.INT
    return (attribute.as_int(),) if single else tuple(attribute.as_ints())
