"""Matrix products and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from runtimes.coreml_ops.call import ArgumentError, Call, Operator, along

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def _linear(call: Call) -> Tensor:
    y = torch.matmul(call.tensor(), call.tensor("weight").t())
    bias = call.optional("bias")
    return y if bias is None else y + bias


def _matmul(call: Call) -> Tensor:
    x, y = call.tensor("x"), call.tensor("y")
    if call.flag("transpose_x"):
        x = x.transpose(-1, -2)
    if call.flag("transpose_y"):
        y = y.transpose(-1, -2)
    return torch.matmul(x, y)


def _einsum(call: Call) -> Tensor:
    product: Tensor = torch.einsum(call.text("equation"), *call.tensors())
    return product


def _attention(call: Call) -> Tensor:
    query, key, value = (call.tensor(name) for name in ("query", "key", "value"))
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    mask = call.optional("attn_mask")
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ value


def pads_of(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Give the padding before and after each spatial axis, for convolutions and pools.

    Args:
        kernel: sizes of the kernel with its dilation.
    """
    kind = call.text("pad_type", "valid")
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        pad = call.integers("pad", [0] * (2 * len(sizes)))
        return [(pad[2 * axis], pad[2 * axis + 1]) for axis in range(len(sizes))]
    if kind not in {"same", "same_lower"}:
        raise ArgumentError(f"it has pad_type {kind!r}, which is not known")
    pads = []
    for size, width, stride in zip(sizes, kernel, strides, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + width - size)
        half = total // 2
        pads.append((half, total - half) if kind == "same" else (total - half, half))
    return pads


def pad_spatial(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the last axes."""
    return F.pad(x, [each for pair in reversed(pads) for each in pair], value=value)


def _conv(call: Call) -> Tensor:
    x, weight = call.tensor(), call.tensor("weight")
    count = x.dim() - 2
    ones = [1] * count
    strides, dilations = call.integers("strides", ones), call.integers("dilations", ones)
    kernel = _dilated(weight, dilations)
    x = pad_spatial(x, pads_of(call, x.shape[2:], kernel, strides))
    y: Tensor = _CONVOLUTIONS[count - 1](
        x, weight, call.optional("bias"), strides, 0, dilations, call.integer("groups", 1)
    )
    return y


def _conv_transpose(call: Call) -> Tensor:
    """The adjoint of ``conv`` in full, of which padding cuts off the edges."""
    x, weight = call.tensor(), call.tensor("weight")
    count = x.dim() - 2
    ones = [1] * count
    strides, dilations = call.integers("strides", ones), call.integers("dilations", ones)
    y: Tensor = _TRANSPOSED[count - 1](
        x, weight, None, strides, 0, 0, call.integer("groups", 1), dilations
    )
    kind = call.text("pad_type", "valid")
    pad = call.integers("pad", [0] * (2 * count)) if kind == "custom" else [0] * (2 * count)
    wanted = call.integers("output_shape", [])[2:]
    for axis in range(count):
        full, before, after = y.shape[2 + axis], pad[2 * axis], pad[2 * axis + 1]
        size = full - before - after
        if kind.startswith("same"):
            size = x.shape[2 + axis] * strides[axis]
        if wanted:
            size = wanted[axis]
        if kind.startswith("same"):
            total = max(0, full - size)
            before = total // 2 if kind == "same" else total - total // 2
        missing = before + size - full
        if missing > 0:  # nothing was summed up there
            y = pad_spatial(y, [(0, missing if place == axis else 0) for place in range(count)])
        y = y.narrow(2 + axis, before, size)
    bias = call.optional("bias")
    return y if bias is None else y + along(bias, y.dim(), 1)


def _dilated(weight: Tensor, dilations: Sequence[int]) -> list[int]:
    sizes = weight.shape[2:]
    return [(size - 1) * step + 1 for size, step in zip(sizes, dilations, strict=True)]


OPERATORS: dict[str, Operator] = {
    "linear": _linear,
    "matmul": _matmul,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
}
