"""Running a program operator by operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.coreml_records import (
    DYNAMIC,
    Constant,
    CoremlFile,
    Feature,
    Operation,
    Port,
    ValueType,
)
from export.errors import BadFileError, MeasureError
from export.records import TensorSpec
from runtimes.coreml_ops import OPERATORS
from runtimes.coreml_ops.call import Call, Operator, Value
from runtimes.coreml_ops.values import FLOATS, held, kind_named, kind_of, rounded, to_numpy
from runtimes.session import Arrays

_NUMPY_DTYPES = {"string": "str", "bfloat16": "float32"}
# Operators that give another float type than they read.
_CONVERTING = {"cast", "quantize", "dequantize", "classify", "fill_like", "constexpr_cast"}
# Parameters whose element type is also that of the output, and must agree among themselves.
_LEADING = ("x", "y", "a", "b", "data", "updates", "values", "query", "key", "value", "on_value")
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, OverflowError, MemoryError)

_Place = str | int
"""Where a value is kept: under its name, or a number if it is a constant without one."""


@dataclass(frozen=True, slots=True)
class _Step:
    """An operator that is ready to run.

    Args:
        bound: for each parameter the places of its values.
        free: the places that are not read any more.
    """

    operation: Operation
    function: Operator
    bound: Mapping[str, tuple[_Place, ...]]
    free: tuple[_Place, ...]


class ReferenceSession:
    """A saved ML Program under reference evaluation; use ``open_session`` to make one."""

    def __init__(self, file: CoremlFile, *, threads: int, rounded: bool) -> None:
        self._name = file.path.name
        self._function = file.main
        self._threads = threads
        self._rounded = rounded
        ports = {port.name: port for port in self._function.block.inputs}
        self._features = {feature.name: feature for feature in self._function.inputs}
        self._ports = {name: ports[name] for name in self._features or ports}
        self._held: dict[_Place, Value] = {}
        self._steps = self._prepare(file.path)
        types = _types_of(self._function.block.inputs, self._function.block.operations)
        given = [each.name for each in self._function.outputs] or self._function.block.outputs
        self._given = {name: self._given_type(name, types) for name in given}
        self.inputs = tuple(self._spec(name, port.type) for name, port in self._ports.items())
        self.outputs = tuple(self._spec(name, kind) for name, kind in self._given.items())

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run once: input name to array in, output name to array out.

        Whole numbers are cast to the integer type that the program declares, int64 to int32, and
        floats to its float type.

        Raises:
            MeasureError: the feeds do not fit the inputs, or an operator fails on them.
            BadFileError: an operator gives something else than the program declares.
        """
        if feeds.keys() != self._ports.keys():
            wanted = ", ".join(map(repr, self._ports)) or "none"
            given = ", ".join(map(repr, feeds)) or "none"
            raise MeasureError(f"{self._name} takes the inputs {wanted}; given were {given}")
        with _threads(self._threads), torch.inference_mode():
            values = dict(self._held)
            for spec in self.inputs:
                values[spec.name] = self._feed(spec, feeds[spec.name])
            for step in self._steps:
                self._run_step(step, values)
            return {
                name: to_numpy(values[name], kind.dtype if self._rounded else None)
                for name, kind in self._given.items()
            }

    def close(self) -> None:
        """Free the constants."""
        self._held = {}
        self._steps = []

    # ---- making ready -------------------------------------------------------------------------

    def _prepare(self, path: Path) -> list[_Step]:
        """Hold the constants, compute those that are compressed, and order the rest."""
        block = self._function.block
        types = _types_of(block.inputs, block.operations)
        steps = []
        for operation in block.operations:
            if operation.type == "const":
                self._held[operation.name] = held(operation.attributes["val"])
                continue
            if operation.type not in OPERATORS:
                raise BadFileError(
                    f"{path} has the operator {operation.type!r} ({operation.name!r}), which the "
                    "reference evaluation does not have; run it with Core ML on macOS"
                )
            _check_float_types(path, operation, types)
            bound = {
                key: tuple(self._place(each) for each in arguments)
                for key, arguments in operation.inputs.items()
            }
            for key, constant in operation.attributes.items():
                bound.setdefault(key, (self._place(constant),))
            steps.append(_Step(operation, OPERATORS[operation.type], bound, ()))
        return self._with_frees(self._without_compressed(steps))

    def _place(self, argument: str | Constant) -> _Place:
        if isinstance(argument, str):
            return argument
        place = len(self._held)
        self._held[place] = held(argument)
        return place

    def _without_compressed(self, steps: Sequence[_Step]) -> list[_Step]:
        """Unpack compressed constants once, not in every run."""
        left = []
        for step in steps:
            if step.operation.type.startswith("constexpr_"):
                self._run_step(step, self._held)
            else:
                left.append(step)
        return left

    def _with_frees(self, steps: Sequence[_Step]) -> list[_Step]:
        """Note for each step what is read there for the last time."""
        kept = {*self._held, *self._function.block.outputs}
        found = []
        for step in reversed(steps):
            read = {place for places in step.bound.values() for place in places}
            made = {port.name for port in step.operation.outputs}
            free = tuple((read | made) - kept)
            kept |= read
            found.append(_Step(step.operation, step.function, step.bound, free))
        return found[::-1]

    def _given_type(self, name: str, types: Mapping[str, ValueType]) -> ValueType:
        kind = types[name]
        if kind.dtype != "dictionary":
            return kind
        for operation in self._function.block.operations:  # the probabilities of a classifier
            if operation.type == "classify" and operation.outputs[-1].name == name:
                (classes,) = operation.inputs["classes"]
                names = self._held[classes] if isinstance(classes, str) else held(classes)
                count = len(names) if isinstance(names, tuple) else DYNAMIC
                return ValueType("float32", (count,))
        return kind

    def _spec(self, name: str, kind: ValueType) -> TensorSpec:
        dtype = _NUMPY_DTYPES.get(kind.dtype, kind.dtype)
        if dtype == "float16" and not self._rounded:
            dtype = "float32"
        return TensorSpec(name, dtype, kind.shape or ())

    # ---- running ------------------------------------------------------------------------------

    def _feed(self, spec: TensorSpec, array: NDArray[np.generic]) -> Tensor:
        kind = self._ports[spec.name].type
        words = (
            f"input {spec.name!r} of {self._name} is {_words(spec.dtype, spec.shape)}; "
            f"given was {_words(array.dtype.name, array.shape)}"
        )
        feature = self._features.get(spec.name)
        if not _fits(array.shape, kind.shape, feature):
            raise MeasureError(words + (_range_words(feature) if feature is not None else ""))
        if kind.dtype in FLOATS:
            if array.dtype.kind not in "fiub":
                raise MeasureError(words)
            given = torch.from_numpy(np.ascontiguousarray(array, np.float32))
        elif array.dtype.kind not in "iub":
            raise MeasureError(words)
        elif kind.dtype == "bool":
            given = torch.from_numpy(array != 0)
        else:
            limits = np.iinfo(kind.dtype)
            if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
                raise MeasureError(f"{words} with values from {array.min():,} to {array.max():,}")
            given = torch.from_numpy(np.ascontiguousarray(array, np.int64))
        return rounded(given.reshape(array.shape), kind.dtype, self._rounded)

    def _run_step(self, step: _Step, values: dict[_Place, Value]) -> None:
        operation = step.operation
        call = Call(
            {key: [values[place] for place in places] for key, places in step.bound.items()},
            tuple(port.type.dtype for port in operation.outputs),
            self._function.opset,
        )
        try:
            result = step.function(call)
        except _FAILURES as error:
            raise MeasureError(
                f"{operation.type} {operation.name!r} of {self._name} failed under reference "
                f"evaluation: {_first_line(error)}"
            ) from error
        results = result if isinstance(result, tuple) else (result,)
        if len(results) != len(operation.outputs):
            raise BadFileError(
                f"{operation.type} {operation.name!r} of {self._name} gives {len(results)} "
                f"values, the program declares {len(operation.outputs)}; export it again"
            )
        for port, value in zip(operation.outputs, results, strict=True):
            values[port.name] = self._checked(operation, port, value)
        for place in step.free:
            values.pop(place, None)

    def _checked(self, operation: Operation, port: Port, value: Value) -> Value:
        """Hold an output to its declared type, and round it to that."""
        if not isinstance(value, torch.Tensor) or port.type.dtype == "dictionary":
            return value
        found = kind_of(value)
        if found != kind_named(port.type.dtype) or not _fits(value.shape, port.type.shape, None):
            raise BadFileError(
                f"{operation.type} {port.name!r} of {self._name} gives "
                f"{_words(found, tuple(value.shape))}, the program declares "
                f"{_words(port.type.dtype, port.type.shape)}; export it again"
            )
        return rounded(value, port.type.dtype, self._rounded)


# ---- types --------------------------------------------------------------------------------------


def _types_of(inputs: Sequence[Port], operations: Sequence[Operation]) -> dict[str, ValueType]:
    types = {port.name: port.type for port in inputs}
    for operation in operations:
        types.update({port.name: port.type for port in operation.outputs})
    return types


def _check_float_types(path: Path, operation: Operation, types: Mapping[str, ValueType]) -> None:
    """Refuse an operator that mixes float types: nothing converts them unsaid."""
    if operation.type in _CONVERTING or operation.type.startswith("constexpr_"):
        return
    read = [
        types[each].dtype if isinstance(each, str) else each.type.dtype
        for key in _LEADING
        for each in operation.inputs.get(key, ())
    ]
    found = {dtype for dtype in read if dtype in FLOATS}
    if found:
        found |= {port.type.dtype for port in operation.outputs if port.type.dtype in FLOATS}
    if len(found) > 1:
        raise BadFileError(
            f"{path} is no sound ML Program: {operation.type} {operation.name!r} mixes "
            f"{' and '.join(sorted(found))}; export it again"
        )


def _fits(
    shape: Sequence[int], wanted: Sequence[int | str] | None, feature: Feature | None
) -> bool:
    if wanted is not None and (
        len(shape) != len(wanted)
        or any(
            not isinstance(size, str) and size != given
            for given, size in zip(shape, wanted, strict=True)
        )
    ):
        return False
    if feature is None:
        return True
    if feature.shapes:
        return tuple(shape) in feature.shapes
    return not feature.ranges or (
        len(feature.ranges) == len(shape)
        and all(
            least <= given and (most is None or given <= most)
            for given, (least, most) in zip(shape, feature.ranges, strict=True)
        )
    )


def _range_words(feature: Feature) -> str:
    if feature.shapes:
        return f"; allowed are {', '.join(str(list(shape)) for shape in feature.shapes)}"
    if feature.ranges:
        sizes = [f"{least}..{most or ''}" for least, most in feature.ranges]
        return f"; allowed are [{', '.join(sizes)}]"
    return ""


def _words(dtype: str, shape: Sequence[int | str] | None) -> str:
    return f"{dtype} [{', '.join(map(str, shape))}]" if shape is not None else dtype


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use some threads, and after that as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
