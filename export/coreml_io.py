"""Reading Core ML ML Programs that nobody vouches for: packages, and bare .mlmodel files.

The structure is read with the vendor's protobuf classes and becomes plain records; the weight file
is mapped, and constants are views of it. Core ML itself is neither needed nor run.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import math
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.coreml_blobs import BITS, Blob, BlobError, BlobFile, bytes_of
from export.coreml_records import (
    DYNAMIC,
    Argument,
    Block,
    Constant,
    CoremlFile,
    Feature,
    Function,
    Operation,
    Port,
    ValueType,
    one_line,
)
from export.errors import BadFileError, MissingExtraError

SUFFIX, BARE_SUFFIX = ".mlpackage", ".mlmodel"
MANIFEST = "Manifest.json"
MAX_RANK = 64  # numpy's
_MAX_MANIFEST_BYTES = 2**20
_MAX_MODEL_BYTES = 2**31 - 1  # what protobuf allows a message
_MODEL_PATH = "@model_path/"

# Element types by their number in MIL.
_DTYPES = {
    1: "bool", 2: "string", 10: "float16", 11: "float32", 12: "float64", 13: "bfloat16",
    21: "int8", 22: "int16", 23: "int32", 24: "int64", 25: "int4",
    31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4", 36: "uint2", 37: "uint1",
    38: "uint6", 39: "uint3", 40: "float8_e4m3fn", 41: "float8_e5m2",
}  # fmt: skip
# The field of an immediate tensor for each type; all others lie in "bytes".
_FIELDS = {
    "float32": "floats", "float64": "doubles", "bool": "bools", "string": "strings",
    "int16": "ints", "uint16": "ints", "int32": "ints", "uint32": "ints",
    "int64": "longInts", "uint64": "longInts",
}  # fmt: skip
# What a feature of the description is, and the element types of its arrays.
_ARRAY_DTYPES = {65568: "float32", 65600: "float64", 65552: "float16", 131104: "int32",
                 131080: "int8"}  # fmt: skip


class _Problem(ValueError):
    """What a file says does not fit together."""


# ---- the vendor's package -----------------------------------------------------------------------


@contextmanager
def quiet_coremltools() -> Iterator[None]:
    """Hold back what coremltools tells of itself: that Core ML is not at hand, and its progress."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def import_coremltools() -> Any:
    """Import coremltools without its warnings.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with quiet_coremltools():
            import coremltools
    except ImportError as error:
        raise MissingExtraError.of("coremltools", "coreml") from error
    return coremltools


# ---- files --------------------------------------------------------------------------------------


def is_coreml(path: Path) -> bool:
    """Whether a path looks like an ML Program: a folder with a manifest, or a .mlmodel file."""
    if path.is_dir():
        return path.suffix.lower() == SUFFIX or (path / MANIFEST).is_file()
    return path.suffix.lower() in {SUFFIX, BARE_SUFFIX}


def read_coreml(path: Path) -> CoremlFile:
    """Check a .mlpackage folder, or a .mlmodel file with its weights beside it, and read it.

    Raises:
        MissingExtraError: coremltools is not installed.
        BadFileError: it is missing, no ML Program, cut short or corrupt.
    """
    try:
        model_path = _find_model(path)
        data = _read(model_path, _MAX_MODEL_BYTES)
    except OSError as error:
        raise BadFileError(
            f"{path} cannot be read ({error.strerror or error}); give a package that can"
        ) from error
    proto = import_coremltools().proto
    from google.protobuf.message import DecodeError

    model = proto.Model_pb2.Model()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise BadFileError(
            f"{path} is corrupt or cut short: {model_path.name} is no Core ML model; "
            "copy it or export it again"
        ) from error
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise BadFileError(
            f"{path} is no ML Program but {_words(kind)}; convert it again with "
            "convert_to='mlprogram'"
        )
    try:
        return _Reader(path, model_path).file(model)
    except (_Problem, BlobError) as error:
        raise BadFileError(
            f"{path} is no sound ML Program: {one_line(error)}; export it again"
        ) from error


def _words(kind: str | None) -> str:
    return f"a model of kind {kind}" if kind else "an empty model"


def _find_model(path: Path) -> Path:
    """Find the .mlmodel file of a package by its manifest, or take the one that was given."""
    if path.suffix.lower() == ".mlmodelc":
        raise BadFileError(f"{path} is compiled; give the .mlpackage it was compiled from")
    if not path.is_dir():
        if path.is_file() and path.suffix.lower() == BARE_SUFFIX:
            return path
        raise BadFileError(
            f"{path} is neither a {SUFFIX} folder nor a {BARE_SUFFIX} file; give the path of one"
        )
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise BadFileError(f"{path} has no {MANIFEST}; give the path of a {SUFFIX} folder")
    try:
        content = json.loads(_read(manifest, _MAX_MANIFEST_BYTES))
        entry = content["itemInfoEntries"][content["rootModelIdentifier"]]
        found = _inside(path / "Data", str(entry["path"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadFileError(
            f"{manifest} is corrupt: it names no model; copy the package or export it again"
        ) from error
    if not found.is_file():
        raise BadFileError(
            f"{path} is not complete: there is no {found.relative_to(path)}; copy it again"
        )
    return found


def _inside(folder: Path, name: str) -> Path:
    """Join a name from a file to a folder, which it may not leave.

    Raises:
        ValueError: it would, or it is no name.
    """
    found = folder / name
    if not found.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} lies outside the package")
    return found


def _read(path: Path, limit: int) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadFileError(f"{path} is not a file; copy the package or export it again")
    if status.st_size > limit:
        raise BadFileError(
            f"{path} has {status.st_size:,} bytes, more than the {limit:,} that can be read; "
            "export it with its weights in a file of their own"
        )
    return path.read_bytes()


# ---- from protobuf to records -------------------------------------------------------------------


class _Reader:
    """Makes records of a model's messages; they are of the vendor's classes, hence Any."""

    def __init__(self, path: Path, model_path: Path) -> None:
        self.path = path
        self.model_path = model_path
        self.weights: dict[str, BlobFile] = {}
        self.weight_paths: dict[str, Path] = {}
        self.blobs: dict[tuple[str, int], Blob] = {}

    def file(self, model: Any) -> CoremlFile:
        program, description = model.mlProgram, model.description
        described = {each.name: each for each in description.functions}
        functions = {}
        for name in sorted(program.functions):
            told = described.get(name, description if not described else None)
            functions[name] = self.function(name, program.functions[name], told)
        if not functions:
            raise _Problem("it holds no function")
        default = description.defaultFunctionName or (
            "main" if "main" in functions else next(iter(functions))
        )
        if default not in functions:
            raise _Problem(f"it runs function {default!r}, there is none of that name")
        self.check_overlaps()
        return CoremlFile(
            self.path,
            functions,
            default,
            int(model.specificationVersion),
            self.model_path,
            self.weight_paths,
        )

    def function(self, name: str, message: Any, told: Any) -> Function:
        if message.opset not in message.block_specializations:
            raise _Problem(f"function {name!r} has no operators for {message.opset!r}")
        inputs = self.ports(message.inputs)
        known = _Names().inner((port.name for port in inputs), f"function {name!r}")
        block = self.block(
            message.block_specializations[message.opset], f"function {name!r}", known
        )
        sides = [
            tuple(_feature(each) for each in getattr(told, side)) if told is not None else ()
            for side in ("input", "output")
        ]
        # Core ML takes and gives what the description names: the program has to have it.
        for feature, names in itertools.chain(
            ((feature, {port.name for port in inputs}) for feature in sides[0]),
            ((feature, set(block.outputs)) for feature in sides[1]),
        ):
            if feature.name not in names:
                raise _Problem(f"function {name!r} has no {feature.name!r} that it is said to have")
        whole = Block(inputs, block.operations, block.outputs)
        return Function(name, message.opset, whole, sides[0], sides[1])

    def block(self, message: Any, where: str, known: _Names) -> Block:
        inputs = self.ports(message.inputs)
        known = known.inner((port.name for port in inputs), where)
        operations = []
        for number, each in enumerate(message.operations):
            operation = self.operation(each, number, where, known)
            known.add((port.name for port in operation.outputs), where)
            operations.append(operation)
        outputs = tuple(message.outputs)
        for name in outputs:
            known.need(name, f"{where} gives out")
        return Block(inputs, tuple(operations), outputs)

    def operation(self, message: Any, number: int, where: str, known: _Names) -> Operation:
        outputs = self.ports(message.outputs)
        attributes = {}
        name = outputs[0].name if outputs else f"operator {number}"
        what = f"{message.type} {name!r}"
        for key in sorted(message.attributes):
            if key != "name":
                attributes[key] = self.constant(message.attributes[key], f"{key} of {what}")
        inputs = {}
        for key in sorted(message.inputs):
            bound: list[Argument] = []
            for argument in message.inputs[key].arguments:
                if argument.WhichOneof("binding") == "value":
                    bound.append(self.constant(argument.value, f"{key} of {what}"))
                else:
                    known.need(argument.name, f"{key} of {what} is")
                    bound.append(argument.name)
            inputs[key] = tuple(bound)
        if message.type == "const":
            if "val" not in attributes or len(outputs) != 1:
                raise _Problem(f"{what} has no value")
            if attributes["val"].type != outputs[0].type:
                raise _Problem(f"the value of {what} is of another type than it is said to be")
        blocks = tuple(self.block(each, f"a block of {what}", known) for each in message.blocks)
        return Operation(message.type, name, inputs, outputs, attributes, blocks)

    def ports(self, messages: Iterable[Any]) -> tuple[Port, ...]:
        return tuple(Port(each.name, _type(each.type, repr(each.name))) for each in messages)

    def constant(self, message: Any, what: str) -> Constant:
        kind = _type(message.type, what)
        if message.WhichOneof("value") == "blobFileValue":
            return self.stored(message.blobFileValue, kind, what)
        value = message.immediateValue
        inner = value.WhichOneof("value")
        if inner != "tensor" and inner != kind.dtype:
            raise _Problem(f"{what} is {kind.dtype} and has a value that is {inner}")
        if inner in {"list", "tuple"}:
            items = tuple(self.constant(each, what) for each in getattr(value, inner).values)
            return Constant(kind, _NO_BYTES, items=items)
        if inner == "dictionary":
            pairs = value.dictionary.values
            items = tuple(self.constant(each, what) for p in pairs for each in (p.key, p.value))
            return Constant(kind, _NO_BYTES, items=items)
        return _immediate(value.tensor, kind, what)

    def stored(self, message: Any, kind: ValueType, what: str) -> Constant:
        """Take a constant from a weight file."""
        name, shape = message.fileName, kind.fixed
        if shape is None or kind.dtype not in BITS:
            raise _Problem(f"{what} lies in {name!r} and is no tensor of a known size")
        blob = self.blob(name, message.offset, what)
        size = bytes_of(kind.dtype, shape)
        if blob.dtype != kind.dtype or blob.data.size != size:
            raise _Problem(
                f"{what} is {kind.dtype} of {size:,} bytes, its blob at byte {message.offset:,} of "
                f"{name!r} is {blob.dtype} of {blob.data.size:,}"
            )
        return Constant(kind, blob.data, (name, blob.offset))

    def blob(self, name: str, offset: int, what: str) -> Blob:
        key = (name, offset)
        if key not in self.blobs:
            if name not in self.weights:
                self.weights[name] = self.open(name, what)
            try:
                self.blobs[key] = self.weights[name].blob(offset)
            except BlobError as error:
                raise _Problem(f"{what} lies in {name!r}, but {error}") from error
        return self.blobs[key]

    def open(self, name: str, what: str) -> BlobFile:
        """Open a weight file by the name that the program uses."""
        if not name.startswith(_MODEL_PATH):
            raise _Problem(f"{what} lies in {name!r}, which is outside the package")
        try:
            path = _inside(self.model_path.parent, name.removeprefix(_MODEL_PATH))
            self.weight_paths[name] = path
            if not path.is_file():
                raise _Problem(f"{what} lies in {name!r}, which is missing")
            return BlobFile(path)
        except BlobError as error:
            raise _Problem(f"{name!r} is no weight file: {error}") from error
        except OSError as error:
            raise _Problem(f"{name!r} cannot be read ({error.strerror or error})") from error
        except _Problem:
            raise
        except ValueError as error:
            raise _Problem(f"{what} lies in {name!r}, which is outside the package") from error

    def check_overlaps(self) -> None:
        """Refuse blobs that overlap in part; two that are the same bytes are one, stored once."""
        for name in self.weights:
            places = sorted(
                {(b.offset, b.offset + b.data.size) for key, b in self.blobs.items()
                 if key[0] == name and b.data.size}
            )  # fmt: skip
            for (_, end), (start, _) in itertools.pairwise(places):
                if start < end:
                    raise _Problem(
                        f"two blobs of {name!r} share a part of their bytes, at {start:,}"
                    )


_NO_BYTES: NDArray[np.uint8] = np.empty(0, np.uint8)


class _Names:
    """The names of values that can be read where an operator stands: of its block, and outside."""

    def __init__(self, outer: _Names | None = None) -> None:
        self.names: set[str] = set()
        self.outer = outer

    def inner(self, names: Iterable[str], where: str) -> _Names:
        """Go on in a block, with further names."""
        found = _Names(self)
        found.add(names, where)
        return found

    def add(self, names: Iterable[str], where: str) -> None:
        for name in names:
            if name in self:
                raise _Problem(f"{where} makes the value {name!r} twice")
            self.names.add(name)

    def need(self, name: str, words: str) -> None:
        if name not in self:
            raise _Problem(f"{words} the value {name!r}, which nothing has made by then")

    def __contains__(self, name: str) -> bool:
        return name in self.names or (self.outer is not None and name in self.outer)


def _type(message: Any, what: str) -> ValueType:
    kind = message.WhichOneof("type")
    if kind == "tensorType":
        return _tensor_type(message.tensorType, what)
    if kind == "listType":
        return ValueType("list", (_size(message.listType.length),))
    if kind == "stateType":
        return ValueType("state", _type(message.stateType.wrappedType, what).shape)
    if kind is None:
        raise _Problem(f"{what} has no type")
    return ValueType(str(kind).removesuffix("Type"), ())


def _tensor_type(message: Any, what: str) -> ValueType:
    dtype = _DTYPES.get(message.dataType)
    if dtype is None:
        raise _Problem(f"{what} is of type {message.dataType}, which is not known")
    dimensions = message.dimensions
    if any(each.unknown.variadic for each in dimensions) or message.rank < 0:
        return ValueType(dtype, None)
    if len(dimensions) != message.rank:
        raise _Problem(f"{what} has rank {message.rank} and {len(dimensions)} dimensions")
    if len(dimensions) > MAX_RANK:
        raise _Problem(f"{what} has {len(dimensions)} dimensions, more than {MAX_RANK}")
    shape = tuple(_size(each) for each in dimensions)
    if math.prod(size for size in shape if isinstance(size, int)) >= 2**62:
        raise _Problem(f"{what} has the shape {shape}, which is beyond any file")
    return ValueType(dtype, shape)


def _size(dimension: Any) -> int | str:
    constant = dimension.WhichOneof("dimension") == "constant"
    return int(dimension.constant.size) if constant else DYNAMIC


def _immediate(message: Any, kind: ValueType, what: str) -> Constant:
    """Take a constant that is written in the program itself."""
    dtype, shape = kind.dtype, kind.fixed
    if shape is None or (dtype not in BITS and dtype != "string"):
        raise _Problem(f"{what} is no tensor of a known size")
    field = message.WhichOneof("value")
    wanted = _FIELDS.get(dtype, "bytes")
    if field is None and math.prod(shape) == 0:
        return Constant(kind, _NO_BYTES)
    if field not in {wanted, "bytes"}:
        raise _Problem(f"{what} is {dtype} and has its values in {field!r}")
    values = getattr(message, field).values
    if field == "bytes":
        data = np.frombuffer(values, np.uint8)
        if dtype == "string" or data.size != bytes_of(dtype, shape):
            raise _Problem(f"{what} is {dtype} {list(shape)}, and {data.size} bytes are there")
        return Constant(kind, data)
    if len(values) != math.prod(shape):
        raise _Problem(f"{what} is {dtype} {list(shape)}, and {len(values)} values are there")
    if dtype == "string":
        return Constant(kind, _NO_BYTES, items=tuple(values))
    wide = np.array(values, np.int64 if field in {"ints", "longInts"} else dtype)
    # A number outside its type wraps around as it would in memory.
    return Constant(kind, wide.astype(dtype).reshape(-1).view(np.uint8))


def _feature(message: Any) -> Feature:
    kind = message.type.WhichOneof("Type")
    if kind is None:
        raise _Problem(f"feature {message.name!r} has no type")
    name, words = message.name, str(kind).removesuffix("Type")
    if words != "multiArray":
        return Feature(name, words)
    array = message.type.multiArrayType
    flexibility = array.WhichOneof("ShapeFlexibility")
    ranges: tuple[tuple[int, int | None], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    if flexibility == "shapeRange":
        ranges = tuple(
            (int(each.lowerBound), int(each.upperBound) if each.upperBound >= 0 else None)
            for each in array.shapeRange.sizeRanges
        )
    elif flexibility == "enumeratedShapes":
        shapes = tuple(tuple(each.shape) for each in array.enumeratedShapes.shapes)
    return Feature(name, words, _ARRAY_DTYPES.get(array.dataType), ranges, shapes)
