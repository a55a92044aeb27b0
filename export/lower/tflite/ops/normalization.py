"""Normalisations, written out: TFLite has none for floating point."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from export.lower.sizes import Size
from export.lower.tflite.graph import Tensor
from export.lower.tflite.layout import Layout, plain
from export.lower.tflite.lowering import Constant, Lowering, Node, Unsupported
from export.lower.tflite.ops.elementwise import aligned

_TINY = float(np.finfo(np.float32).tiny)


def normalised(low: Lowering, x: Tensor, places: list[int], epsilon: float) -> Tensor:
    """Subtract the mean over some axes of the tensor's own layout, divide by the deviation."""
    kept = tuple(1 if place in places else size for place, size in enumerate(x.shape))
    axes = low.vector(places)
    mean = low.emit("MEAN", [x, axes], kept, keepDims=True)
    centred = low.binary("SUB", x, mean, x.shape)
    square = low.emit("SQUARE", [centred], x.shape)
    variance = low.emit("MEAN", [square, axes], kept, keepDims=True)
    safe = low.binary("ADD", variance, low.scalar(epsilon), kept)
    return low.binary("MUL", centred, low.emit("RSQRT", [safe], kept), x.shape)


def layer_norm(low: Lowering, node: Node) -> None:
    """LayerNormalization over the last axes."""
    if node.is_read(1) or node.is_read(2):
        raise Unsupported("the mean and deviation of LayerNormalization as outputs")
    value = node.required(0)
    rank = len(low.shape(value))
    axes = range(node.integer("axis", -1) % rank, rank)
    held = low.held(value)
    layout = plain(rank) if isinstance(held, Constant) else held.layout
    x = low.tensor(value, layout)
    found = normalised(low, x, [layout.index(a) for a in axes], node.number("epsilon", 1e-5))
    found = _scaled(low, found, layout, node.input(1), "MUL")
    found = _scaled(low, found, layout, node.input(2), "ADD")
    low.place(node.outputs[0], found, layout)


def _scaled(low: Lowering, x: Tensor, layout: Layout, value: ir.Value | None, kind: str) -> Tensor:
    """Multiply by, or add, a parameter that spans the last axes of the ONNX value."""
    if value is None:
        return x
    array = low.constant(value)
    if array is None:
        raise Unsupported("a scale or bias that is computed while the model runs")
    held = low.held(value)
    assert isinstance(held, Constant)
    full = array.reshape((1,) * (x.rank - array.ndim) + array.shape).transpose(layout)
    return low.binary(kind, x, low.const(_trimmed(full), held.name, weight=held.weight), x.shape)


def _trimmed(array: Any) -> Any:
    """Drop leading axes of size 1: broadcasting puts them back."""
    leading = next((i for i, size in enumerate(array.shape) if size != 1), array.ndim - 1)
    return array.reshape(array.shape[leading:])


def batch_norm(low: Lowering, node: Node) -> None:
    """BatchNormalization when a model is not trained: a scale and an offset for each channel."""
    if node.integer("training_mode", 0):
        raise Unsupported("BatchNormalization that is training")
    scale, offset, mean, variance = (low.constant(node.required(i)) for i in range(1, 5))
    if scale is None or offset is None or mean is None or variance is None:
        raise Unsupported("statistics that are computed while the model runs")
    spread = np.sqrt(variance.astype(np.float64) + node.number("epsilon", 1e-5))
    factor = (scale / spread).astype(np.float32)
    added = (offset - mean * (scale / spread)).astype(np.float32)
    (x,), layout = aligned(low, [node.required(0)])
    name = node.required(1).name or "scale"
    found = low.binary("MUL", x, _channelwise(low, factor, layout, name), x.shape)
    found = low.binary("ADD", found, _channelwise(low, added, layout, name), x.shape)
    low.place(node.outputs[0], found, layout)


def _channelwise(low: Lowering, array: Any, layout: Layout, name: str) -> Tensor:
    shape = [array.size if axis == 1 else 1 for axis in layout]
    return low.const(_trimmed(array.reshape(shape)), name, weight=True)


def instance_norm(low: Lowering, node: Node) -> None:
    """InstanceNormalization: over the image, for each channel."""
    (x,), layout = aligned(low, [node.required(0)])
    places = [place for place, axis in enumerate(layout) if axis >= 2]
    found = normalised(low, x, places, node.number("epsilon", 1e-5))
    for kind, value in (("MUL", node.required(1)), ("ADD", node.required(2))):
        array = low.constant(value)
        if array is None:
            raise Unsupported("a scale that is computed while the model runs")
        found = low.binary(kind, found, _channelwise(low, array, layout, value.name or ""), x.shape)
    low.place(node.outputs[0], found, layout)


def group_norm(low: Lowering, node: Node) -> None:
    """GroupNormalization: over the image and the channels of each group."""
    value = node.required(0)
    shape = low.shape(value)
    groups, channels = node.integer("num_groups", 1), shape[1]
    if not isinstance(channels, int):
        raise Unsupported("channels whose number varies")
    x = low.tensor(value)
    per_group = channels // groups
    split: tuple[Size, ...] = (shape[0], groups, per_group, *shape[2:])
    places = list(range(2, len(split)))
    found = normalised(low, low.reshape(x, split), places, node.number("epsilon", 1e-5))
    found = low.reshape(found, shape)
    for kind, parameter in (("MUL", node.required(1)), ("ADD", node.required(2))):
        array = low.constant(parameter)
        if array is None:
            raise Unsupported("a scale that is computed while the model runs")
        if array.size == groups:  # before opset 21 there is one a group
            array = np.repeat(array, per_group)
        layout = plain(len(shape))
        vector = _channelwise(low, array, layout, parameter.name or "")
        found = low.binary(kind, found, vector, shape)
    low.place(node.outputs[0], found)


def lp_norm(low: Lowering, node: Node) -> None:
    """LpNormalization of order 2; what is 0 stays 0."""
    if node.integer("p", 2) != 2:
        raise Unsupported("LpNormalization of another order than 2")
    value = node.required(0)
    axis = node.integer("axis", -1) % len(low.shape(value))
    (x,), layout = aligned(low, [value])
    place = layout.index(axis)
    kept = tuple(1 if i == place else size for i, size in enumerate(x.shape))
    square = low.emit("SQUARE", [x], x.shape)
    length = low.emit("SUM", [square, low.vector([place])], kept, keepDims=True)
    length = low.emit("SQRT", [length], kept)
    length = low.binary("MAXIMUM", length, low.scalar(_TINY), kept)
    low.place(node.outputs[0], low.binary("DIV", x, length, x.shape), layout)


TABLE: dict[str, Any] = {
    "LayerNormalization": layer_norm, "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm, "GroupNormalization": group_norm,
    "LpNormalization": lp_norm,
}  # fmt: skip
