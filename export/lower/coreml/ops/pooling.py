"""Pooling over windows."""

from __future__ import annotations

from typing import Any

from export.lower.coreml.lowering import Lowering, Node, Unsupported, Var
from export.lower.coreml.ops.convolution import interleaved, padding


def max_pool(low: Lowering, node: Node) -> None:
    """MaxPool; padding counts as the lowest number."""
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise Unsupported("the places of the largest elements (output 1)")
    low.place(
        node.outputs[0], low.emit("max_pool", x=low.var(node.required(0)), **_window(low, node))
    )


def average_pool(low: Lowering, node: Node) -> None:
    """AveragePool; where padding counts, but not that of ceil_mode, it is put on first."""
    x = low.var(node.required(0))
    window = _window(low, node)
    counted = bool(node.integer("count_include_pad", 0))
    asked = interleaved(node.integers("pads", ()))
    if counted and "pad" in window and window["pad"] != asked:
        x, window = _padded(low, x, asked), _less(window, asked)
        counted = False
    found = low.emit("avg_pool", x=x, exclude_padding_from_average=not counted, **window)
    low.place(node.outputs[0], found)


def _padded(low: Lowering, x: Var, pads: list[int]) -> Var:
    return low.emit("pad", x=x, pad=pads) if any(pads) else x


def _less(window: dict[str, Any], pads: list[int]) -> dict[str, Any]:
    pads = pads or [0] * len(window["pad"])
    return window | {"pad": [have - off for have, off in zip(window["pad"], pads, strict=True)]}


def _window(low: Lowering, node: Node) -> dict[str, Any]:
    """The inputs that say where windows lie; what ceil_mode adds becomes padding at the end."""
    kernel = node.integers("kernel_shape", ())
    axes = len(kernel)
    strides = node.integers("strides", [1] * axes)
    if any(step != 1 for step in node.integers("dilations", ())):
        raise Unsupported("dilated pooling has no Core ML form")
    given: dict[str, Any] = {
        "kernel_sizes": list(kernel), "strides": list(strides), **padding(node, axes)
    }  # fmt: skip
    if not node.integer("ceil_mode", 0) or given["pad_type"] in ("same", "same_lower"):
        return given
    pads = given.get("pad", [0] * (2 * axes))
    before, after = low.shape(node.required(0))[2:], low.shape(node.outputs[0])[2:]
    for axis in range(axes):
        size, out = before[axis], after[axis]
        if not (isinstance(size, int) and isinstance(out, int)):
            raise Unsupported("ceil_mode with an image size that varies")
        needed = (out - 1) * strides[axis] + kernel[axis] - size - pads[2 * axis]
        pads[2 * axis + 1] = max(pads[2 * axis + 1], needed)
    return given | ({"pad_type": "custom", "pad": pads} if any(pads) else {})


TABLE: dict[str, Any] = {"MaxPool": max_pool, "AveragePool": average_pool}
