"""Operators that move, cut, join and repeat elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from export.lower.coreml.lowering import (
    BOOL,
    INT32,
    MAX_RANK,
    Array,
    Constant,
    Lowering,
    Node,
    Unsupported,
    Var,
)
from export.lower.sizes import Dim, Shape, Size, is_static, product

_FAR = 2**31  # ONNX writes "to the end" as a number beyond any size


def reshape(low: Lowering, node: Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze; one to more axes than Core ML has is put off."""
    value, output = node.required(0), node.outputs[0]
    held, shape = low.held(value), low.shape(output)
    if isinstance(held, Constant) and is_static(shape):
        low.hold(output, held.reshaped([size for size in shape if isinstance(size, int)]))
        return
    var = low.const_of(held) if isinstance(held, Constant) else held.var
    if len(shape) > MAX_RANK:
        low.place(output, var, folded=True)
    elif isinstance(held, Constant) or held.folded:
        low.place(output, low.reshape(var, shape))
    else:
        low.place(output, _reshaped(low, node, var, low.shape(value), shape))


def _reshaped(low: Lowering, node: Node, var: Var, before: Shape, after: Shape) -> Var:
    """By expand_dims or squeeze where that will do: neither needs a shape."""
    if before == after:
        return var
    if node.kind in ("Squeeze", "Unsqueeze") and not is_static(after):
        longer, shorter = (before, after) if node.kind == "Squeeze" else (after, before)
        axes = _ones_between(longer, shorter)
        if axes is not None and shorter:
            kind = "squeeze" if node.kind == "Squeeze" else "expand_dims"
            return low.emit(kind, x=var, axes=axes)
    return low.reshape(var, after)


def _ones_between(longer: Shape, shorter: Shape) -> list[int] | None:
    """The axes of size 1 that the longer shape has more, or None where that is not all."""
    axes, left = [], list(shorter)
    for axis, size in enumerate(longer):
        if left and left[0] == size:
            left.pop(0)
        elif size == 1:
            axes.append(axis)
        else:
            return None
    return axes if not left else None


def transpose(low: Lowering, node: Node) -> None:
    """Transpose; axes that stay together are merged where there are more than Core ML has."""
    value, output = node.required(0), node.outputs[0]
    perm = node.integers("perm", tuple(reversed(range(low.rank(value)))))
    held = low.held(value)
    if isinstance(held, Constant):
        low.hold(output, held.transposed(perm))
        return
    if len(perm) <= MAX_RANK and not held.folded:
        low.place(output, low.emit("transpose", x=held.var, perm=list(perm)))
        return
    shape, order = merged(low.shape(value), perm)
    if len(shape) > MAX_RANK:
        raise Unsupported(f"a transpose of {len(shape)} axes; Core ML has {MAX_RANK}")
    var = low.reshape(held.var, shape)
    low.place(output, low.emit("transpose", x=var, perm=list(order)), folded=True)


def merged(shape: Shape, perm: Sequence[int]) -> tuple[Shape, tuple[int, ...]]:
    """A transpose with runs of axes that stay in order made one, and those of size 1 left out."""
    moved = [axis for axis in perm if shape[axis] != 1]
    kept = sorted(moved)
    runs: list[list[int]] = []
    for axis in moved:
        if runs and kept.index(axis) == kept.index(runs[-1][-1]) + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    in_order = sorted(runs)
    sizes = tuple(product(shape[axis] for axis in run) for run in in_order)
    return sizes, tuple(in_order.index(run) for run in runs)


def expand(low: Lowering, node: Node) -> None:
    """Expand."""
    value, output = node.required(0), node.outputs[0]
    have, want = low.shape(value), low.shape(output)
    if have == want:
        low.hold(output, low.held(value))
    else:
        low.place(output, low.broadcast_to(low.var(value), have, want))


def tile(low: Lowering, node: Node) -> None:
    """Tile."""
    repeats = low.ints(node.required(1), "the number of repeats")
    x = low.var(node.required(0))
    low.place(node.outputs[0], low.emit("tile", x=x, reps=list(repeats)))


def concat(low: Lowering, node: Node) -> None:
    """Concat; empty parts are left out."""
    values = [node.required(place) for place in range(len(node.inputs))]
    values = [value for value in values if 0 not in low.shape(value)] or values[:1]
    if len(values) == 1:
        low.hold(node.outputs[0], low.held(values[0]))
        return
    axis = node.integer("axis", 0) % low.rank(values[0])
    parts = [low.var(value) for value in values]
    low.place(node.outputs[0], low.emit("concat", values=parts, axis=axis))


def split(low: Lowering, node: Node) -> None:
    """Split."""
    value = node.required(0)
    axis = node.integer("axis", 0) % low.rank(value)
    sizes = [low.shape(output)[axis] for output in node.outputs]
    if not is_static(sizes):
        raise Unsupported("a split of an axis whose size varies")
    if len(sizes) == 1:
        low.hold(node.outputs[0], low.held(value))
        return
    parts = low.emit("split", x=low.var(value), split_sizes=sizes, axis=axis)
    for output, part in zip(node.outputs, parts, strict=True):
        low.place(output, part)


def slice_(low: Lowering, node: Node) -> None:
    """Slice; the ends may depend on sizes of the inputs."""
    value, output = node.required(0), node.outputs[0]
    shape = low.shape(value)
    starts, ends = _bounds(low, node, 1, "starts"), _bounds(low, node, 2, "ends")
    axes = low.ints(node.input(3), "the axes") if node.input(3) else tuple(range(len(starts)))
    steps = low.ints(node.input(4), "the steps") if node.input(4) else (1,) * len(starts)
    begin: list[Size] = [0] * len(shape)
    end: list[Size] = [0] * len(shape)
    stride = [1] * len(shape)
    # Bounds under a mask are not read; a constant there keeps the vectors constant.
    begin_mask, end_mask = [True] * len(shape), [True] * len(shape)
    for start, stop, place, step in zip(starts, ends, axes, steps, strict=True):
        axis = place % len(shape)
        first, last = _clamped(start, shape[axis], step), _clamped(stop, shape[axis], step)
        stride[axis] = step
        if first is not None and not (first == 0 and step > 0):
            begin[axis], begin_mask[axis] = first, False
        if last is not None and not (last == shape[axis] and step > 0):
            end[axis], end_mask[axis] = last, False
    if all(begin_mask) and all(end_mask) and all(step == 1 for step in stride):
        low.hold(output, low.held(value))
        return
    if 0 in low.shape(output):
        raise Unsupported("an empty slice; Core ML has no tensors without elements")
    bounds = {
        name: list(sizes) if is_static(sizes) else low.size_vector(sizes)
        for name, sizes in (("begin", begin), ("end", end))
    }
    low.place(
        output,
        low.emit("slice_by_index", x=low.var(value), stride=stride,
                 begin_mask=begin_mask, end_mask=end_mask, **bounds),
    )  # fmt: skip


def _bounds(low: Lowering, node: Node, place: int, name: str) -> tuple[Size, ...]:
    sizes = low.sizes(node.input(place))
    if sizes is None:
        raise Unsupported(f"{name} are computed while the model runs; they must be constant")
    return sizes


def _clamped(bound: Size, size: Size, step: int) -> Size | None:
    """A bound within the axis; None for its very end in the direction of the step."""
    if isinstance(bound, Dim):
        return None if bound == size and step > 0 else bound
    if bound >= _FAR or bound <= -_FAR:
        return None
    if isinstance(size, int):
        if bound < 0:
            bound += size
        if step > 0:
            return min(max(bound, 0), size)
        return None if bound < 0 else min(bound, size - 1)
    return bound  # below 0 it counts from the end, in Core ML as well


def pad(low: Lowering, node: Node) -> None:
    """Pad with a constant, by reflection or with the edge."""
    value = node.required(0)
    rank = low.rank(value)
    mode = {"edge": "replicate"}.get(node.text("mode", "constant"), node.text("mode", "constant"))
    amounts = low.ints(node.input(1), "the padding") if node.input(1) else node.integers("pads", ())
    axes = low.ints(node.input(3), "the axes") if node.input(3) else tuple(range(rank))
    if mode not in ("constant", "reflect", "replicate"):
        raise Unsupported(f"padding by {mode!r}")
    pads = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        pads[axis % rank] = (amounts[i], amounts[i + len(axes)])
    x, pads = _cropped(low, low.var(value), pads)
    if not any(begin or end for begin, end in pads):
        low.place(node.outputs[0], x)
        return
    dtype = low.type_of(x)
    given: dict[str, Any] = {"pad": [number for pair in pads for number in pair], "mode": mode}
    if mode != "constant":
        kept = next(i for i, pair in enumerate(pads) if any(pair))
        given["pad"] = given["pad"][2 * kept :]  # of these modes the last axes alone
    else:
        given["constant_val"] = low.float.type(_filler(low, node))
    found = low.emit("pad", x=low.cast(x, low.float), **given)
    low.place(node.outputs[0], low.cast(found, dtype))


def _filler(low: Lowering, node: Node) -> float:
    value = node.input(2)
    array: Array | None = np.zeros(()) if value is None else low.constant(value)
    if array is None:
        raise Unsupported("the fill value is computed while the model runs")
    return float(low.converted(np.asarray(array, np.float32)).item())


def _cropped(
    low: Lowering, x: Var, pads: list[tuple[int, int]]
) -> tuple[Var, list[tuple[int, int]]]:
    """Cut away what negative padding removes."""
    if all(begin >= 0 and end >= 0 for begin, end in pads):
        return x, pads
    x = low.emit(
        "slice_by_index", x=x,
        begin=[max(-begin, 0) for begin, _ in pads], end=[min(end, 0) for _, end in pads],
        end_mask=[end >= 0 for _, end in pads],
    )  # fmt: skip
    return x, [(max(begin, 0), max(end, 0)) for begin, end in pads]


def depth_to_space(low: Lowering, node: Node) -> None:
    """DepthToSpace, in either order of the channels."""
    block = node.integer("blocksize", 1)
    x = low.var(node.required(0))
    if node.text("mode", "DCR") == "CRD":
        found = low.emit("pixel_shuffle", x=x, upscale_factor=block)
    else:
        found = low.emit("depth_to_space", x=x, block_size=block)
    low.place(node.outputs[0], found)


def space_to_depth(low: Lowering, node: Node) -> None:
    """SpaceToDepth."""
    x, block = low.var(node.required(0)), node.integer("blocksize", 1)
    low.place(node.outputs[0], low.emit("space_to_depth", x=x, block_size=block))


def range_(low: Lowering, node: Node) -> None:
    """Range; its limits may depend on sizes of the inputs."""
    start, end, step = (low.var(node.required(place)) for place in range(3))
    low.place(node.outputs[0], low.emit("range_1d", start=start, end=end, step=step))


def constant_of_shape(low: Lowering, node: Node) -> None:
    """ConstantOfShape."""
    attribute = node.ir.attributes.get("value")
    fill: Array = np.zeros(1, np.float32) if attribute is None else attribute.as_tensor().numpy()
    output = node.outputs[0]
    found = low.fill(low.shape(output), float(fill.item()), low.dtype(output))
    low.place(output, found)


def trilu(low: Lowering, node: Node) -> None:
    """Trilu: rows and columns are numbered, compared, and what is cut away is 0."""
    value = node.required(0)
    offset = low.ints(node.input(1), "the diagonal")[0] if node.input(1) else 0
    x, shape = low.var(value), low.shape(value)
    down = low.emit("expand_dims", x=_count(low, shape[-2]), axes=[1])
    if offset:
        down = low.emit("add", x=down, y=low.number(offset, INT32))
    across = low.emit("expand_dims", x=_count(low, shape[-1]), axes=[0])
    kind = "greater_equal" if node.integer("upper", 1) else "less_equal"
    kept = low.emit(kind, x=across, y=down)
    if low.type_of(x) == BOOL:
        low.place(node.outputs[0], low.emit("logical_and", x=kept, y=x))
        return
    zero = low.number(0, low.type_of(x))
    low.place(node.outputs[0], low.emit("select", cond=kept, a=x, b=zero))


def _count(low: Lowering, size: Size) -> Var:
    """The integers from 0 up to a size."""
    if isinstance(size, int):
        return low.const(np.arange(size, dtype=np.int32), "count")
    end = low.size_vector([size], scalar=True)
    return low.emit("range_1d", start=np.int32(0), end=end, step=np.int32(1))


TABLE: dict[str, Any] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    "Transpose": transpose, "Expand": expand, "Tile": tile, "Concat": concat, "Split": split,
    "Slice": slice_, "Pad": pad, "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth,
    "Range": range_, "ConstantOfShape": constant_of_shape, "Trilu": trilu,
}  # fmt: skip
