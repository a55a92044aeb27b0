"""Pooling over windows, channels last."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.lower.sizes import Size
from export.lower.tflite.graph import Tensor
from export.lower.tflite.lowering import Lowering, Node, Unsupported
from export.lower.tflite.ops.convolution import (
    SAME,
    VALID,
    Window,
    image_of,
    is_same,
    pad_image,
    place_image,
    window_of,
)

_LOWEST = float(np.finfo(np.float32).min)


def max_pool(low: Lowering, node: Node) -> None:
    """MaxPool; padding counts as the lowest number."""
    if node.is_read(1):
        raise Unsupported("the places of the largest elements (output 1)")
    x, window, same = _prepare(low, node)
    if window.dilations != (1, 1):
        raise Unsupported("dilated pooling has no TFLite form")
    if window.padded and not same:
        x = pad_image(low, x, window, _LOWEST)
    place_image(low, node.outputs[0], _pool(low, "MAX_POOL_2D", x, window, same))


def average_pool(low: Lowering, node: Node) -> None:
    """AveragePool; where padding is not counted, the sums are divided by what was."""
    x, window, same = _prepare(low, node)
    if window.dilations != (1, 1):
        raise Unsupported("dilated pooling has no TFLite form")
    counted = bool(node.integer("count_include_pad", 0))
    if same and not (counted and window.padded):
        place_image(low, node.outputs[0], _pool(low, "AVERAGE_POOL_2D", x, window, same=True))
        return
    image = x.shape[1:3]
    if window.padded:
        x = pad_image(low, x, window)
    found = _pool(low, "AVERAGE_POOL_2D", x, window, same=False)
    factor = _correction(node, window, image, counted)
    if factor is not None:
        found = low.binary("MUL", found, low.const(factor, "pool_factor"), found.shape)
    place_image(low, node.outputs[0], found)


def _prepare(low: Lowering, node: Node) -> tuple[Tensor, Window, bool]:
    """The image, the window with the padding that ceil_mode adds, and whether that is SAME."""
    value = node.required(0)
    spatial = low.shape(value)[2:]
    window = window_of(node, node.integers("kernel_shape", ()), spatial)
    x = image_of(low, value)
    if node.integer("ceil_mode", 0):
        window = _with_ceil(window, x.shape[1:3], low, node)
    return x, window, is_same(window, x.shape[1:3])


def _with_ceil(window: Window, image: tuple[Size, ...], low: Lowering, node: Node) -> Window:
    outputs = low.shape(node.outputs[0])[2:]
    full = (1,) * (2 - len(outputs)) + tuple(outputs)
    ends = []
    for size, out, step, reach, begin, end in zip(
        image, full, window.strides, window.reach, window.begins, window.ends, strict=True
    ):
        if not (isinstance(size, int) and isinstance(out, int)):
            raise Unsupported("ceil_mode with an image size that varies")
        ends.append(max(end, (out - 1) * step + reach - size - begin))
    return Window(
        window.kernel, window.strides, window.dilations, window.begins, (ends[0], ends[1])
    )


def _pool(low: Lowering, kind: str, x: Tensor, window: Window, same: bool) -> Tensor:
    sizes: list[Size] = []
    for size, step, reach in zip(x.shape[1:3], window.strides, window.reach, strict=True):
        sizes.append((size + step - 1) // step if same else (size - reach) // step + 1)
    return low.emit(
        kind, [x], (x.shape[0], *sizes, x.shape[3]),
        padding=SAME if same else VALID,
        strideH=window.strides[0], strideW=window.strides[1],
        filterHeight=window.kernel[0], filterWidth=window.kernel[1],
    )  # fmt: skip


def _correction(
    node: Node, window: Window, image: tuple[Size, ...], counted: bool
) -> NDArray[np.generic] | None:
    """What each average must be multiplied by, so that uncounted places do not count."""
    if not window.padded:
        return None
    kernel = window.kernel[0] * window.kernel[1]
    asked = node.integers("pads", (0,) * 4)
    pads = asked if len(asked) == 4 else (0, asked[0], 0, asked[1])
    lines = []
    for axis, size in enumerate(image):
        if not isinstance(size, int):
            raise Unsupported("padded averages of an image whose size varies")
        whole = window.begins[axis] + size + window.ends[axis]
        inside = np.zeros(whole)
        start = 0 if counted else window.begins[axis]
        stop = window.begins[axis] + size + (pads[axis + 2] if counted else 0)
        inside[start:stop] = 1
        reach, step = window.kernel[axis], window.strides[axis]
        lines.append([inside[i : i + reach].sum() for i in range(0, whole - reach + 1, step)])
    counts = np.outer(lines[0], lines[1])
    if (counts == kernel).all():
        return None
    return (kernel / counts).astype(np.float32)[None, :, :, None]


TABLE: dict[str, Any] = {"MaxPool": max_pool, "AveragePool": average_pool}
