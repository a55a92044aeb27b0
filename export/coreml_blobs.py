"""Reading the weight file of a Core ML package, of which nobody vouches for a single number.

A header of 64 bytes, then for each blob a record of 64 bytes and its data, all aligned to 64 bytes.
Every size is checked against the file before anything is made of it; values are views of the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
RECORD_BYTES = 64
_VERSION = 2
_SENTINEL = 0xDEADBEEF
_HEADER = struct.Struct("<II")  # number of blobs, version
_RECORD = struct.Struct("<IIQQQ")  # sentinel, type, bytes, offset of the data, bits of padding

# Element types by the number that a record holds. Types below a byte are packed, lowest bits first.
BLOB_TYPES = {
    1: "float16", 2: "float32", 3: "uint8", 4: "int8", 5: "bfloat16", 6: "int16", 7: "uint16",
    8: "int4", 9: "uint1", 10: "uint2", 11: "uint4", 12: "uint3", 13: "uint6", 14: "int32",
    15: "uint32", 16: "float8_e4m3fn", 17: "float8_e5m2",
}  # fmt: skip
BITS = {
    "bool": 8, "int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6,
    "int8": 8, "uint8": 8, "float8_e4m3fn": 8, "float8_e5m2": 8,
    "int16": 16, "uint16": 16, "float16": 16, "bfloat16": 16,
    "int32": 32, "uint32": 32, "float32": 32, "int64": 64, "uint64": 64, "float64": 64,
}  # fmt: skip


class BlobError(ValueError):
    """The weight file does not hold what is asked of it; the message says where and why."""


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """The data of one blob: its element type, where it begins in the file, and its bytes."""

    dtype: str
    offset: int
    data: NDArray[np.uint8]


class BlobFile:
    """A weight file, mapped into memory.

    Args:
        path: the weight file; an empty one holds no blob.

    Raises:
        BlobError: it is no weight file, or one of a version that is not known.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = path.stat().st_size
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self.data: NDArray[np.uint8] = np.frombuffer(whole, np.uint8)
        self._bytes = memoryview(whole)
        if self.data.size < ALIGNMENT:
            raise BlobError(f"it holds {self.data.size} bytes, fewer than a header")
        self.count, version = _HEADER.unpack_from(self._bytes, 0)
        if version != _VERSION:
            raise BlobError(f"it is of version {version}, not {_VERSION}")
        if self.count * RECORD_BYTES > self.data.size:
            raise BlobError(f"it says it holds {self.count:,} blobs, more than its size allows")

    def blob(self, offset: int) -> Blob:
        """Read the blob whose record lies at an offset.

        Raises:
            BlobError: there is no record there, or its data lies outside the file.
        """
        end = self.data.size
        if offset < ALIGNMENT or offset % ALIGNMENT or offset + RECORD_BYTES > end:
            raise BlobError(f"there is no blob at byte {offset:,} of {end:,}")
        sentinel, code, size, start, padding = _RECORD.unpack_from(self._bytes, offset)
        if sentinel != _SENTINEL:
            raise BlobError(f"there is no blob at byte {offset:,}")
        if code not in BLOB_TYPES:
            raise BlobError(f"the blob at byte {offset:,} is of type {code}, which is not known")
        if start < offset + RECORD_BYTES or start % ALIGNMENT or start + size > end:
            raise BlobError(
                f"the blob at byte {offset:,} has its data from byte {start:,} to {start + size:,} "
                f"of {end:,}"
            )
        bits = BITS[BLOB_TYPES[code]]
        if padding >= 8 or (size * 8 - padding) % bits:
            raise BlobError(f"the blob at byte {offset:,} holds a broken number of values")
        return Blob(BLOB_TYPES[code], start, self.data[start : start + size])


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Count the bytes in which values are stored."""
    return math.ceil(math.prod(shape) * BITS[dtype] / 8)


def view_values(data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """View bytes as values, without a copy where numpy has the type.

    bfloat16 and the float8 types come as unsigned integers of their width, and types below a byte
    unpacked, as int8 or uint8.

    Args:
        data: as many bytes as type and shape need.
    """
    bits = BITS[dtype]
    if bits < 8:
        return unpack(data, bits, math.prod(shape), signed=dtype.startswith("int")).reshape(shape)
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(f"u{bits // 8}")
    values: NDArray[np.generic] = data.view(kind.newbyteorder("<"))
    return values.reshape(shape)


def unpack(
    data: NDArray[np.uint8], bits: int, count: int, *, signed: bool = False
) -> NDArray[np.int8] | NDArray[np.uint8]:
    """Unpack values of fewer bits than a byte has, lowest bits first."""
    values: NDArray[np.uint8] = np.zeros(count, np.uint8)
    if 8 % bits:  # values may lie across two bytes
        single = np.unpackbits(data, count=count * bits, bitorder="little").reshape(count, bits)
        for bit in range(bits):
            values |= single[:, bit] << bit
    else:
        each = 8 // bits
        for place in range(min(each, count)):
            values[place::each] = data[: -(-(count - place) // each)] >> (place * bits)
        values &= (1 << bits) - 1
    if not signed:
        return values
    sign = 1 << (bits - 1)
    return ((values ^ sign).astype(np.int16) - sign).astype(np.int8)
