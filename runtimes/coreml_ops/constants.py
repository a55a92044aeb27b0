"""Operators that make values, or unpack compressed ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from export.coreml_blobs import unpack
from runtimes.coreml_ops.call import ArgumentError, Call, Operator, Result, along
from runtimes.coreml_ops.elementwise import HELD_AS


def _shape(call: Call) -> Tensor:
    return torch.tensor(call.tensor().shape, dtype=torch.int32)


def _fill(call: Call) -> Tensor:
    return _full(call, call.integers("shape"))


def _fill_like(call: Call) -> Tensor:
    return _full(call, list(call.tensor("ref_tensor").shape))


def _full(call: Call, shape: list[int]) -> Tensor:
    value = call.tensor("value") if call.has("value") else torch.tensor(0.0)
    return value.reshape(()).expand(shape)


def _range(call: Call) -> Tensor:
    start, end, step = (call.tensor(key).reshape(()) for key in ("start", "end", "step"))
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def _classify(call: Call) -> Result:
    """Give the class that is most probable, and the probabilities in the order of the classes."""
    probabilities = call.tensor("probabilities").reshape(-1)
    classes = call.value("classes")
    if not isinstance(classes, tuple) or len(classes) != probabilities.numel():
        raise ArgumentError(f"it has classes that are not {probabilities.numel()}")
    best = classes[int(probabilities.argmax())]
    label = best if isinstance(best, str) else torch.tensor(best, dtype=torch.int64)
    return label, probabilities


# ---- quantized values -------------------------------------------------------------------------


def _quantize(call: Call) -> Tensor:
    x = call.tensor("input")
    scale, zero = _scale_and_zero(call, x)
    least, most = (-128, 127) if call.text("output_dtype") == "int8" else (0, 255)
    return (torch.round(x / scale) + zero).clamp(least, most).int()


def _dequantize(call: Call) -> Tensor:
    x = call.tensor("input")
    scale, zero = _scale_and_zero(call, x)
    return (x.float() - zero) * scale


def _scale_and_zero(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    axis = call.axis("axis", x.dim(), 0) if x.dim() else 0
    scale = along(call.tensor("scale"), x.dim(), axis)
    zero = call.optional("zero_point")
    return scale, torch.zeros(()) if zero is None else along(zero.float(), x.dim(), axis)


def _affine_dequantize(call: Call) -> Tensor:
    x = call.tensor("quantized_data")
    scale, zero = _scale_and_zero(call, x)
    return (x.float() - zero) * scale


def _blockwise_shift_scale(call: Call) -> Tensor:
    return _shift_scale(call, call.tensor("data"))


def _shift_scale(call: Call, data: Tensor) -> Tensor:
    values = data.float()
    offset = call.optional("offset")
    if offset is not None:
        values = values - _blocks(offset.float(), data.shape)
    return values * _blocks(call.tensor("scale"), data.shape)


def _blocks(given: Tensor, shape: torch.Size) -> Tensor:
    """Repeat each value over its block."""
    if given.dim() != len(shape):
        raise ArgumentError(f"it has blocks {list(given.shape)} for {list(shape)}")
    for axis, size in enumerate(shape):
        if size % given.shape[axis]:
            raise ArgumentError(f"it has blocks {list(given.shape)} for {list(shape)}")
        given = given.repeat_interleave(size // given.shape[axis], axis)
    return given


def _lut_to_dense(call: Call) -> Tensor:
    indices, lut = call.tensor("indices"), call.tensor("lut")
    if not call.has("shape"):
        return _look_up(call, indices, lut)
    shape = call.integers("shape")
    bits = int(math.log2(lut.numel()))
    packed = indices.to(torch.uint8).numpy()
    places = torch.from_numpy(unpack(packed, bits, math.prod(shape)).astype("int64"))
    return lut[places].reshape(shape)


def _look_up(call: Call, indices: Tensor, lut: Tensor) -> Tensor:
    """Read from the table of each group; its last axis is a vector of values."""
    groups, width = lut.shape[:-2], lut.shape[-1]
    number = _blocks(torch.arange(groups.numel()).reshape(groups), indices.shape)
    found = lut.reshape(-1, lut.shape[-2], width)[number, indices.long()]
    if width == 1:
        return found.squeeze(-1)
    axis = call.axis("vector_axis", indices.dim())
    return found.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _sparse_to_dense(call: Call) -> Tensor:
    values, mask = call.tensor("nonzero_data"), call.tensor("mask")
    if not call.has("shape"):
        return _spread(values, mask)
    shape = call.integers("shape")
    bits = unpack(mask.to(torch.uint8).numpy(), 1, math.prod(shape))
    return _spread(values, torch.from_numpy(bits).reshape(shape))


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    dense[mask != 0] = values
    return dense


def _lut_to_sparse(call: Call) -> Result:
    mask, lut = call.tensor("indices_mask"), call.tensor("lut")
    dense = _look_up(call, _spread(call.tensor("indices_nonzero_data"), mask), lut)
    if lut.shape[-1] > 1:
        mask = mask.repeat_interleave(lut.shape[-1], call.axis("vector_axis", mask.dim()))
    return mask, dense[mask != 0]


def _sparse_shift_scale(call: Call) -> Result:
    mask = call.tensor("data_mask")
    dense = _shift_scale(call, _spread(call.tensor("nonzero_data"), mask))
    return mask, dense[mask != 0]


def _constexpr_cast(call: Call) -> Tensor:
    name = call.text("output_dtype")
    if name not in HELD_AS:
        raise ArgumentError(f"it casts to {name!r}, which is not known")
    return call.tensor("source_val").to(HELD_AS[name])


OPERATORS: dict[str, Operator] = {
    "shape": _shape,
    "fill": _fill,
    "fill_like": _fill_like,
    "range_1d": _range,
    "classify": _classify,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_sparse_to_dense": _sparse_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_shift_scale,
    "constexpr_cast": _constexpr_cast,
}
