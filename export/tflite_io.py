"""Reading .tflite files that nobody vouches for, without any package of the vendor.

The interpreter trusts a file's offsets and indices and crashes where they are wrong, so files are
checked here before it, or anything else, follows them.
"""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.errors import BadFileError
from export.flatbuffer import FlatBufferError, Record, read_flatbuffer
from export.tflite_schema import OPERATORS, SCHEMA, TENSOR_TYPES

IDENTIFIER = b"TFL3"
NO_TENSOR = -1  # stands where an operator leaves out an optional tensor
MAX_RANK = 64  # numpy's

_BITS = dict(TENSOR_TYPES)
_CUSTOM = OPERATORS.index("CUSTOM")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a subgraph.

    Args:
        signature: the shape with -1 for each dimension that is set when the model is run.
        dtype: the name of the element type, such as ``float32``.
        buffer: index of the buffer that holds its data; tensors may share one.
        quantized: whether it has a scale.
        sparse: whether its buffer holds only the blocks that are not zero.
        external: whether its data lies in another file.
    """

    name: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    dtype: str
    buffer: int
    quantized: bool = False
    sparse: bool = False
    external: bool = False

    @property
    def bytes(self) -> int | None:
        """Size of the data in bytes; None where shape and type do not say."""
        bits = _BITS[self.dtype]
        if not bits or self.sparse or min(self.shape, default=0) < 0:
            return None
        return math.ceil(math.prod(self.shape) * bits / 8)


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator.

    Args:
        name: its name in the format, such as ``FULLY_CONNECTED``, or its custom code.
        inputs: tensor indices; -1 where an optional one is left out.
        options: the numbers among its options; those at their default may be missing.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, float]
    custom: bool = False


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a subgraph: a tensor index, named by the signature if there is one."""

    name: str
    tensor: int


@dataclass(frozen=True, slots=True)
class Subgraph:
    """One graph; operators stand in the order in which they run."""

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """A view of the bytes of one buffer in the file, and the byte at which they begin."""

    offset: int
    data: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Signature:
    """A named way to call a subgraph (by index): its inputs and outputs as names and tensors."""

    key: str
    subgraph: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TfliteFile:
    """A .tflite file that was checked; the first subgraph is the one that runs.

    Args:
        metadata: names, each with the index of its buffer.
    """

    subgraphs: tuple[Subgraph, ...]
    buffers: tuple[Buffer, ...]
    signatures: tuple[Signature, ...]
    metadata: tuple[tuple[str, int], ...]

    def data_of(self, tensor: Tensor) -> NDArray[np.uint8] | None:
        """Give a constant's bytes as a view of the file; None for a tensor that is computed."""
        # Buffer 0 is empty by convention, and runtimes take it so whatever it holds.
        data = self.buffers[tensor.buffer].data
        return data if tensor.buffer and data.size else None

    def values_of(self, tensor: Tensor) -> NDArray[np.generic] | None:
        """Give a constant's values as a view of the file; None where there are none.

        Types that numpy lacks come as unsigned integers of their width, and those without a whole
        number of bytes, like sparse ones, as bytes.
        """
        data = self.data_of(tensor)
        if data is None:
            return None
        bits = _BITS[tensor.dtype]
        if tensor.bytes is None or bits % 8:
            return data
        try:
            dtype = np.dtype(tensor.dtype)
        except TypeError:
            dtype = np.dtype(f"u{bits // 8}")
        values: NDArray[np.generic] = data[: tensor.bytes].view(dtype.newbyteorder("<"))
        return values.reshape(tensor.shape)


class _Problem(ValueError):
    """What a file says does not fit together."""


def check_tflite(path: Path) -> None:
    """Check that a file may be handed to the interpreter: its structure, indices and sizes.

    Only the structure is read, not the data. Options are checked for where they lie, not for what
    an operator makes of them.

    Raises:
        BadFileError: the file is missing, no .tflite file, cut short or corrupt.
    """
    read_tflite(path)


def is_tflite(path: Path) -> bool:
    """Whether a file begins as a .tflite file does.

    Raises:
        BadFileError: the file cannot be read.
    """
    return _map(path)[4:8] == IDENTIFIER


def read_tflite(path: Path) -> TfliteFile:
    """Check a .tflite file and read it; buffers are views of the mapped file.

    Raises:
        BadFileError: the file is missing, no .tflite file, cut short or corrupt.
    """
    data = _map(path)
    if data[4:8] != IDENTIFIER:
        raise BadFileError(f"{path} is no TFLite file; give the path of a .tflite file")
    try:
        return _file(read_flatbuffer(data, SCHEMA, "Model"), np.frombuffer(data, np.uint8))
    except FlatBufferError as error:
        raise BadFileError(
            f"{path} is corrupt or cut short ({error}); copy it or export it again"
        ) from error
    except _Problem as error:
        raise BadFileError(f"{path} is no sound TFLite file: {error}; export it again") from error


def _map(path: Path) -> bytes | mmap.mmap:
    if not path.is_file():
        raise BadFileError(f"{path} is not a file; give the path of a .tflite file")
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                return b""  # nothing that could be mapped
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BadFileError(
            f"{path} cannot be read ({error.strerror or error}); give a file that can"
        ) from error


# ---- from records, with what the schema cannot say ----------------------------------------------


@dataclass(frozen=True, slots=True)
class _Known:
    """What operators and tensors refer to: all there is of it."""

    bytes: int
    buffers: tuple[Buffer, ...]
    operators: tuple[tuple[str, bool], ...]
    subgraphs: int


def _file(model: Record, whole: NDArray[np.uint8]) -> TfliteFile:
    buffers = tuple(
        _buffer(each, place, whole) for place, each in enumerate(_all(model, "buffers"))
    )
    _check_overlaps(buffers)
    metadata = tuple(
        (each.get("name", ""), each.get("buffer", 0)) for each in _all(model, "metadata")
    )
    for name, place in metadata:
        _check_index(place, len(buffers), f"metadata {name!r} lies in buffer")
    for place in _numbers(model, "metadata_buffer"):
        _check_index(place, len(buffers), "metadata lies in buffer")
    records = _all(model, "subgraphs")
    if not records:
        raise _Problem("it holds no graph")
    codes = tuple(_operator_code(each) for each in _all(model, "operator_codes"))
    known = _Known(whole.size, buffers, codes, len(records))
    subgraphs = tuple(_subgraph(each, place, known) for place, each in enumerate(records))
    signatures = tuple(_signature(each, subgraphs) for each in _all(model, "signature_defs"))
    return TfliteFile(_renamed(subgraphs, signatures), buffers, signatures, metadata)


def _buffer(record: Record, place: int, whole: NDArray[np.uint8]) -> Buffer:
    inside, offset, size = record.get("data"), record.get("offset", 0), record.get("size", 0)
    if inside is not None and inside.size:
        return Buffer(_address(inside) - _address(whole), inside)
    if offset <= 1:  # 1 marks a place that a writer has not filled in yet
        return Buffer(0, whole[:0])
    if offset + size > whole.size:
        raise _Problem(f"buffer {place} ends at byte {offset + size:,}, the file at {whole.size:,}")
    return Buffer(offset, whole[offset : offset + size])


def _address(array: NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])


def _check_overlaps(buffers: tuple[Buffer, ...]) -> None:
    """Refuse buffers that overlap in part; two that are the same bytes are one, stored once."""
    places = sorted({(b.offset, b.offset + b.data.size) for b in buffers if b.data.size})
    for (_, end), (start, _) in itertools.pairwise(places):
        if start < end:
            raise _Problem(f"two buffers share a part of their bytes, at {start:,}")


def _operator_code(record: Record) -> tuple[str, bool]:
    """Name an operator code; the second is whether it is a custom one."""
    # The older field has one byte, and 127 where the newer one holds the code.
    code = max(record.get("builtin_code", 0), record.get("deprecated_builtin_code", 0))
    if code == _CUSTOM:
        return record.get("custom_code", ""), True
    if code < 0:
        raise _Problem(f"it holds operator code {code}")
    return (OPERATORS[code] if code < len(OPERATORS) else f"BUILTIN_{code}"), False


def _subgraph(record: Record, place: int, known: _Known) -> Subgraph:
    name = record.get("name", "") or f"subgraph {place}"
    tensors = tuple(_tensor(each, known) for each in _all(record, "tensors"))
    operators = tuple(
        _operator(each, f"operator {number} of {name!r}", len(tensors), known)
        for number, each in enumerate(_all(record, "operators"))
    )
    ports = []
    for side in ("inputs", "outputs"):
        indices = _numbers(record, side)
        _check_indices(indices, len(tensors), f"the {side} of {name!r} name tensor")
        ports.append(tuple(Port(tensors[index].name, index) for index in indices))
    return Subgraph(name, tensors, operators, *ports)


def _tensor(record: Record, known: _Known) -> Tensor:
    name, code = record.get("name", ""), record.get("type", 0)
    if not 0 <= code < len(TENSOR_TYPES):
        raise _Problem(f"tensor {name!r} is of type {code}, which is not known")
    place = record.get("buffer", 0)
    _check_index(place, len(known.buffers), f"tensor {name!r} lies in buffer")
    shape = _numbers(record, "shape")
    quantization = record.get("quantization", {})
    tensor = Tensor(
        name=name,
        shape=shape,
        signature=_numbers(record, "shape_signature") or shape,
        dtype=TENSOR_TYPES[code][0],
        buffer=place,
        quantized=len(quantization.get("scale", ())) > 0 or "details" in quantization,
        sparse="sparsity" in record,
        external=record.get("external_buffer", 0) != 0,
    )
    held = known.buffers[place].data.size if place else 0
    if len(shape) > MAX_RANK:
        raise _Problem(f"tensor {name!r} has {len(shape)} dimensions, more than {MAX_RANK}")
    if min(shape, default=0) < (0 if held else -1):
        raise _Problem(f"tensor {name!r} has the shape {shape}")
    if held and tensor.bytes is not None and held < tensor.bytes:
        raise _Problem(
            f"tensor {name!r} needs {tensor.bytes:,} bytes, its buffer {place} holds {held:,}"
        )
    return tensor


def _operator(record: Record, what: str, tensors: int, known: _Known) -> Operator:
    code = record.get("opcode_index", 0)
    _check_index(code, len(known.operators), f"{what} has code")
    name, custom = known.operators[code]
    what = f"{what} ({name})"
    options = record.get("builtin_options", {}) | record.get("builtin_options2", {})
    for option, value in options.items():
        if "subgraph" in option:
            for each in np.atleast_1d(value):
                _check_index(int(each), known.subgraphs, f"{what} runs subgraph")
    end = record.get("large_custom_options_offset", 0) + record.get("large_custom_options_size", 0)
    if end > known.bytes:
        raise _Problem(f"the options of {what} end at byte {end:,}, the file at {known.bytes:,}")
    sides = []
    for side in ("inputs", "outputs", "intermediates"):
        sides.append(_numbers(record, side))
        _check_indices(sides[-1], tensors, f"the {side} of {what} name tensor", NO_TENSOR)
    numbers = {key: value for key, value in options.items() if isinstance(value, int | float)}
    return Operator(name, sides[0], sides[1], numbers, custom)


def _signature(record: Record, subgraphs: tuple[Subgraph, ...]) -> Signature:
    key, place = record.get("signature_key", ""), record.get("subgraph_index", 0)
    _check_index(place, len(subgraphs), f"signature {key!r} calls subgraph")
    sides = []
    for side in ("inputs", "outputs"):
        ports = tuple(
            Port(each.get("name", ""), each.get("tensor_index", 0)) for each in _all(record, side)
        )
        for port in ports:
            count = len(subgraphs[place].tensors)
            _check_index(port.tensor, count, f"signature {key!r} calls {port.name!r} tensor")
        sides.append(ports)
    return Signature(key, place, *sides)


def _renamed(
    subgraphs: tuple[Subgraph, ...], signatures: tuple[Signature, ...]
) -> tuple[Subgraph, ...]:
    """Name the inputs and outputs of each subgraph as the first signature that calls it does."""
    found = list(subgraphs)
    for signature in reversed(signatures):
        graph = found[signature.subgraph]
        sides = []
        for ports, named in ((graph.inputs, signature.inputs), (graph.outputs, signature.outputs)):
            names = {port.tensor: port.name for port in reversed(named)}
            sides.append(tuple(Port(names.get(p.tensor, p.name), p.tensor) for p in ports))
        found[signature.subgraph] = replace(graph, inputs=sides[0], outputs=sides[1])
    return tuple(found)


def _all(record: Record, field: str) -> list[Record]:
    found: list[Record] = record.get(field, [])
    return found


def _numbers(record: Record, field: str) -> tuple[int, ...]:
    found = record.get(field)
    return tuple(found.tolist()) if found is not None else ()


def _check_index(index: int, count: int, words: str) -> None:
    if not 0 <= index < count:
        raise _Problem(f"{words} {index}, there are {count}")


def _check_indices(indices: tuple[int, ...], count: int, words: str, least: int = 0) -> None:
    for index in indices:
        if index < least or index >= count:
            raise _Problem(f"{words} {index}, there are {count}")
