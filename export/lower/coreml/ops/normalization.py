"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from export.lower.coreml.lowering import Array, Lowering, Node, Unsupported, Var
from export.lower.coreml.norms import Norm
from export.lower.coreml.ops.reduction import reduced


def layer_norm(low: Lowering, node: Node) -> None:
    """LayerNormalization over the last axes."""
    if any(output.uses() for output in node.outputs[1:]):
        raise Unsupported("the mean and deviation of LayerNormalization as outputs")
    value = node.required(0)
    shape = low.shape(value)
    axes = list(range(node.integer("axis", -1) % len(shape), len(shape)))
    sizes = [shape[axis] for axis in axes]
    given = {"axes": axes, "epsilon": low.epsilon(node.number("epsilon", 1e-5))}
    for name, place in (("gamma", 1), ("beta", 2)):
        if node.input(place) is None:
            continue
        constant = low.weight(node.input(place), "a scale or bias")
        if list(constant.array.shape) != sizes:
            raise Unsupported(f"a scale of {constant.array.shape} for axes of {sizes}")
        given[name] = low.const(constant.array, constant.name)
    low.place(node.outputs[0], low.emit("layer_norm", x=low.var(value), **given))


def written_out(low: Lowering, node: Node, norm: Norm) -> bool:
    """The last node of a layer norm that is written out; the others have no readers then."""
    size = low.shape(norm.source)[-1]
    given: dict[str, Any] = {"axes": [-1], "epsilon": low.epsilon(norm.epsilon)}
    for name, value in (("gamma", norm.scale), ("beta", norm.offset)):
        if value is not None:
            held = low.weight(value, "a scale or bias")
            if held.array.shape != (size,):
                return False
            given[name] = low.const(held.array, held.name)
    low.place(node.outputs[0], low.emit("layer_norm", x=low.var(norm.source), **given))
    return True


def batch_norm(low: Lowering, node: Node) -> None:
    """BatchNormalization when a model is not trained: a scale and an offset for each channel.

    They are computed here in float64: a small variance would be 0 in float16.
    """
    scale, offset, mean, variance = (
        low.weight(node.required(place), "a statistic").array for place in range(1, 5)
    )
    spread = np.sqrt(variance.astype(np.float64) + node.number("epsilon", 1e-5))
    factor = np.asarray(scale / spread, np.float32)
    added = np.asarray(offset - mean * (scale / spread), np.float32)
    name = node.required(1).name or "scale"
    x = low.var(node.required(0))
    low.place(node.outputs[0], _by_channel(low, x, (("mul", factor), ("add", added)), name))


def _by_channel(low: Lowering, x: Var, steps: Sequence[tuple[str, Array]], name: str) -> Var:
    """Apply operators with one number a channel, the second axis."""
    for kind, vector in steps:
        column = vector.reshape(1, -1, *[1] * (x.rank - 2))
        x = low.emit(kind, x=x, y=low.const(column, name))
    return x


def instance_norm(low: Lowering, node: Node) -> None:
    """InstanceNormalization: over the image, for each channel."""
    x = low.var(node.required(0))
    scale, offset = (low.weight(node.required(place), "a scale") for place in (1, 2))
    gamma, beta = (low.const(one.array, one.name) for one in (scale, offset))
    epsilon = low.epsilon(node.number("epsilon", 1e-5))
    found = low.emit("instance_norm", x=x, gamma=gamma, beta=beta, epsilon=epsilon)
    low.place(node.outputs[0], found)


def group_norm(low: Lowering, node: Node) -> None:
    """GroupNormalization: over the image and the channels of each group."""
    value = node.required(0)
    shape = low.shape(value)
    groups, channels = node.integer("num_groups", 1), shape[1]
    assert isinstance(channels, int)
    image: Any = 1
    for size in shape[2:]:
        image = image * size
    split = low.reshape(low.var(value), (shape[0], groups, image * (channels // groups)))
    epsilon = low.epsilon(node.number("epsilon", 1e-5))
    found = low.emit("layer_norm", x=split, axes=[2], epsilon=epsilon)
    found = low.reshape(found, shape)
    vectors = [low.weight(node.required(place), "a scale").array for place in (1, 2)]
    if vectors[0].size == groups != channels:  # before opset 21 there is one a group
        vectors = [np.repeat(vector, channels // groups) for vector in vectors]
    steps = tuple(zip(("mul", "add"), vectors, strict=True))
    low.place(node.outputs[0], _by_channel(low, found, steps, node.required(1).name or "scale"))


def lp_norm(low: Lowering, node: Node) -> None:
    """LpNormalization of order 1 or 2."""
    axis = node.integer("axis", -1)
    kind = "reduce_l2_norm" if node.integer("p", 2) == 2 else "reduce_l1_norm"
    x = low.var(node.required(0))
    length = reduced(low, kind, x, [axis], True)
    low.place(node.outputs[0], low.emit("real_div", x=x, y=length))


def rms_norm(low: Lowering, node: Node) -> None:
    """RMSNormalization over the last axes."""
    value = node.required(0)
    rank = low.rank(value)
    axes = list(range(node.integer("axis", -1) % rank, rank))
    x = low.var(value)
    square = low.emit("reduce_mean", x=low.emit("mul", x=x, y=x), axes=axes, keep_dims=True)
    factor = low.emit("rsqrt", x=square, epsilon=low.epsilon(node.number("epsilon", 1e-5)))
    found = low.emit("mul", x=x, y=factor)
    scale = low.const_of(low.weight(node.required(1), "a scale"))
    low.place(node.outputs[0], low.emit("mul", x=found, y=scale))


TABLE: dict[str, Any] = {
    "LayerNormalization": layer_norm, "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm, "GroupNormalization": group_norm,
    "LpNormalization": lp_norm, "RMSNormalization": rms_norm,
}  # fmt: skip
