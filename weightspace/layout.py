"""How tensors lie in the memory of a storage, and where two of them overlap."""

from __future__ import annotations

import torch
from torch import Tensor


def layout(tensor: Tensor) -> list[tuple[int, int]]:
    """List size and stride by dimension; the stride of a size of 1 means nothing and is 1 here."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return [(size, stride if size > 1 else 1) for size, stride in pairs]


def shared_bytes(tensor: Tensor, other: Tensor) -> int:
    """Count the bytes that two views of one storage have in common.

    Exact: interleaved columns overlap in their extents, but in no byte.
    """
    (start, end), (other_start, other_end) = _extent(tensor), _extent(other)
    if end <= other_start or other_end <= start:
        return 0
    marks = torch.zeros(max(end, other_end), dtype=torch.bool)  # one a byte of the storage
    _read_as(other, marks).fill_(True)
    return int(_read_as(tensor, marks).sum())


def _read_as(tensor: Tensor, marks: Tensor) -> Tensor:
    """View the marks of the bytes that a tensor reads."""
    size = tensor.element_size()
    strides = [stride * size for stride in tensor.stride()]
    return marks.as_strided((*tensor.shape, size), (*strides, 1), tensor.storage_offset() * size)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Give the first byte in the storage and the one after the last; equal where it is empty."""
    size = tensor.element_size()
    start = int(tensor.storage_offset()) * size
    if not tensor.numel():
        return start, start
    last = sum((length - 1) * stride for length, stride in layout(tensor))
    return start, start + (last + 1) * size
