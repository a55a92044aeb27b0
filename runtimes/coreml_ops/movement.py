"""Operators that only move values: shapes, slices, joins and padding."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from runtimes.coreml_ops.call import LEFT_ALIGNED_OPSETS, ArgumentError, Call, Operator


def _reshape(call: Call) -> Tensor:
    x = call.tensor()
    shape = call.integers("shape")
    if call.opset in LEFT_ALIGNED_OPSETS:
        known = list(x.shape) + [1] * len(shape)
    else:
        known = ([1] * len(shape) + list(x.shape))[x.dim() :]
    return x.reshape([known[place] if size == 0 else size for place, size in enumerate(shape)])


def _reshape_like(call: Call) -> Tensor:
    shape: list[int] = []
    parts = (call.tensors(key) for key in ("ref_tensors", "begins", "ends", "end_masks"))
    for reference, begin, end, mask in zip(*parts, strict=True):
        stop = None if bool(mask.item()) else int(end.item())
        shape.extend(reference.shape[int(begin.item()) : stop])
    return call.tensor().reshape(shape)


def _transpose(call: Call) -> Tensor:
    return call.tensor().permute(call.integers("perm"))


def _expand_dims(call: Call) -> Tensor:
    x = call.tensor()
    rank = x.dim() + len(call.integers("axes"))
    for axis in call.axes("axes", rank):
        x = x.unsqueeze(axis)
    return x


def _squeeze(call: Call) -> Tensor:
    x = call.tensor()
    ones = [axis for axis, size in enumerate(x.shape) if size == 1]
    chosen = call.axes("axes", x.dim(), ones)
    return x.reshape([s for axis, s in enumerate(x.shape) if axis not in chosen or s != 1])


def _flatten2d(call: Call) -> Tensor:
    x = call.tensor()
    axis = call.integer("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


# ---- slices -----------------------------------------------------------------------------------


def _index(call: Call, rank: int) -> tuple[int | slice, ...]:
    begin, end = call.integers("begin"), call.integers("end")
    stride = call.integers("stride", [1] * rank)
    from_start, to_end = call.flags("begin_mask", rank), call.flags("end_mask", rank)
    alone = call.flags("squeeze_mask", rank)
    index: list[int | slice] = []
    for axis in range(rank):
        start = None if from_start[axis] else begin[axis]
        if alone[axis]:
            index.append(start or 0)
        else:
            index.append(slice(start, None if to_end[axis] else end[axis], stride[axis]))
    return tuple(index)


def _slice_by_index(call: Call) -> Tensor:
    x = call.tensor()
    # By numpy, as torch takes no negative strides.
    return torch.from_numpy(np.array(x.numpy()[_index(call, x.dim())], order="C"))


def _slice_by_size(call: Call) -> Tensor:
    x = call.tensor()
    for axis, (begin, size) in enumerate(
        zip(call.integers("begin"), call.integers("size"), strict=True)
    ):
        begin = begin + x.shape[axis] if begin < 0 else begin
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


def _slice_update(call: Call) -> Tensor:
    x = call.tensor()
    order = np.arange(x.numel()).reshape(x.shape)
    places = torch.from_numpy(np.array(order[_index(call, x.dim())], order="C"))
    update = call.tensor("update")
    if update.shape != places.shape:
        raise ArgumentError(f"it writes {list(update.shape)} to {list(places.shape)}")
    found = x.reshape(-1).clone()
    found[places.reshape(-1)] = update.reshape(-1)
    return found.reshape(x.shape)


def _crop(call: Call) -> Tensor:
    x = call.tensor()
    (top, bottom), (left, right) = call.integers("crop_height"), call.integers("crop_width")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _sliding_windows(call: Call) -> Tensor:
    x = call.tensor()
    axis = call.axis("axis", x.dim())
    windows = x.unfold(axis, call.integer("size"), call.integer("stride", 1))
    return windows.movedim(-1, axis + 1)


def _band_part(call: Call) -> Tensor:
    x = call.tensor()
    lower, upper = call.integer("lower", -1), call.integer("upper", -1)
    below = torch.arange(x.shape[-2]).unsqueeze(1) - torch.arange(x.shape[-1])
    inside = torch.ones_like(below, dtype=torch.bool)
    if lower >= 0:
        inside &= below <= lower
    if upper >= 0:
        inside &= -below <= upper
    return torch.where(inside, x, torch.zeros_like(x))


# ---- joins ------------------------------------------------------------------------------------


def _concat(call: Call) -> Tensor:
    # Converters join sizes that are scalars to a shape.
    values = [each.reshape(1) if each.dim() == 0 else each for each in call.tensors()]
    axis = call.axis("axis", values[0].dim())
    if not call.flag("interleave"):
        return torch.cat(values, axis)
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def _stack(call: Call) -> Tensor:
    return torch.stack(call.tensors(), call.integer("axis"))


def _split(call: Call) -> tuple[Tensor, ...]:
    x = call.tensor()
    axis = call.axis("axis", x.dim())
    if call.has("split_sizes"):
        return tuple(torch.split(x, call.integers("split_sizes"), axis))
    count = call.integer("num_splits")
    if x.shape[axis] % count:
        raise ArgumentError(f"it splits {x.shape[axis]} into {count} parts")
    return tuple(torch.split(x, x.shape[axis] // count, axis))


def _tile(call: Call) -> Tensor:
    return call.tensor().repeat(call.integers("reps"))


def _pad(call: Call) -> Tensor:
    x, pad, mode = call.tensor(), call.integers("pad"), call.text("mode", "constant")
    first = x.dim() - len(pad) // 2
    pairs = [(first + place, pad[2 * place : 2 * place + 2]) for place in range(len(pad) // 2)]
    if mode == "constant":
        value = call.number("constant_val", 0.0)
        shape = list(x.shape)
        for axis, (before, after) in pairs:
            shape[axis] += before + after
        y = torch.full(shape, value, dtype=x.dtype)
        inside = y
        for axis, (before, _) in pairs:
            inside = inside.narrow(axis, before, x.shape[axis])
        inside.copy_(x)
        return y
    if mode not in {"reflect", "replicate"}:
        raise ArgumentError(f"it has mode {mode!r}, which is not known")
    for axis, pair in pairs:
        places = np.arange(x.shape[axis])
        places = np.pad(places, pair, mode="reflect" if mode == "reflect" else "edge")
        x = x.index_select(axis, torch.from_numpy(places))
    return x


def _reverse(call: Call) -> Tensor:
    x = call.tensor()
    return x.flip(call.axes("axes", x.dim(), range(x.dim())))


def _reverse_sequence(call: Call) -> Tensor:
    x, lengths = call.tensor(), call.tensor("lengths").long()
    sequence, batch = call.axis("seq_axis", x.dim(), 0), call.axis("batch_axis", x.dim(), 0)
    moved = x.movedim((batch, sequence), (0, 1))
    place = torch.arange(moved.shape[1]).expand(moved.shape[0], -1)
    end = lengths.unsqueeze(1)
    place = torch.where(place < end, end - 1 - place, place)
    rows = torch.arange(moved.shape[0]).unsqueeze(1)
    return moved[rows, place].movedim((0, 1), (batch, sequence))


# ---- between space, depth and batch -----------------------------------------------------------


def _depth_to_space(call: Call) -> Tensor:
    x, block = call.tensor(), call.integer("block_size")
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(call: Call) -> Tensor:
    x, block = call.tensor(), call.integer("block_size")
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block**2, h // block, w // block)


def _batch_to_space(call: Call) -> Tensor:
    x, (high, wide) = call.tensor(), call.integers("block_shape")
    top, bottom, left, right = call.integers("crops")
    n, c, h, w = x.shape
    parts = x.reshape(high, wide, n // (high * wide), c, h, w).permute(2, 3, 4, 0, 5, 1)
    y = parts.reshape(n // (high * wide), c, h * high, w * wide)
    return y[..., top : y.shape[-2] - bottom, left : y.shape[-1] - right]


def _space_to_batch(call: Call) -> Tensor:
    x, (high, wide) = call.tensor(), call.integers("block_shape")
    top, bottom, left, right = call.integers("paddings")
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // high, high, w // wide, wide).permute(3, 5, 0, 1, 2, 4)
    return parts.reshape(n * high * wide, c, h // high, w // wide)


def _pixel_shuffle(call: Call) -> Tensor:
    return torch.pixel_shuffle(call.tensor(), call.integer("upscale_factor"))


def _pixel_unshuffle(call: Call) -> Tensor:
    return torch.pixel_unshuffle(call.tensor(), call.integer("downscale_factor"))


OPERATORS: dict[str, Operator] = {
    "reshape": _reshape,
    "reshape_like": _reshape_like,
    "transpose": _transpose,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "flatten2d": _flatten2d,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "slice_update": _slice_update,
    "crop": _crop,
    "sliding_windows": _sliding_windows,
    "band_part": _band_part,
    "concat": _concat,
    "stack": _stack,
    "split": _split,
    "tile": _tile,
    "pad": _pad,
    "reverse": _reverse,
    "reverse_sequence": _reverse_sequence,
    "depth_to_space": _depth_to_space,
    "space_to_depth": _space_to_depth,
    "batch_to_space": _batch_to_space,
    "space_to_batch": _space_to_batch,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
}
