"""Running a program operator by operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.coreml_blobs import BITS
from export.coreml_records import Constant, CoremlFile, Operation, Port, ValueType
from export.errors import BadFileError, MeasureError
from runtimes.coreml_ops import OPERATORS
from runtimes.coreml_ops.call import Call, Operator, Value
from runtimes.coreml_ops.values import given, held, kind_named, kind_of, rounded, to_numpy
from runtimes.coreml_ports import (
    FLOATS,
    check_names,
    fit_feed,
    fits,
    input_ports,
    output_types,
    spec_of,
    types_of,
    words_of,
)
from runtimes.session import Arrays

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
        self._features = {feature.name: feature for feature in self._function.inputs}
        self._held: dict[_Place, Value] = {}
        self._steps = self._prepare(file.path)
        self._ports = {
            name: Port(name, self._kept(port.type))
            for name, port in input_ports(self._function).items()
        }
        for port in self._ports.values():
            if port.type.dtype not in BITS:
                raise BadFileError(
                    f"input {port.name!r} of {file.path} is a {port.type.dtype}, which the "
                    "reference evaluation does not take; run it with Core ML on macOS"
                )
        self._given = {n: self._kept(kind) for n, kind in output_types(self._function).items()}
        self.inputs = tuple(spec_of(name, port.type) for name, port in self._ports.items())
        self.outputs = tuple(spec_of(name, kind) for name, kind in self._given.items())

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run once: input name to array in, output name to array out.

        Whole numbers are cast to the integer type that the program declares, int64 to int32, and
        floats to its float type.

        Raises:
            MeasureError: the feeds do not fit the inputs, or an operator fails on them.
            BadFileError: an operator gives something else than the program declares.
        """
        check_names(self._name, list(self._ports), feeds)
        with _threads(self._threads), torch.inference_mode():
            values = dict(self._held)
            for name, port in self._ports.items():
                array = fit_feed(self._name, port, self._features.get(name), feeds[name])
                values[name] = given(array)
            for step in self._steps:
                self._run_step(step, values)
            return {name: to_numpy(values[name], kind.dtype) for name, kind in self._given.items()}

    def close(self) -> None:
        """Free the constants."""
        self._held = {}
        self._steps = []

    # ---- making ready -------------------------------------------------------------------------

    def _prepare(self, path: Path) -> list[_Step]:
        """Hold the constants, compute those that are compressed, and order the rest."""
        block = self._function.block
        types = types_of(self._function)
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

    def _kept(self, kind: ValueType) -> ValueType:
        """Give the type in which a value goes in or comes out."""
        wide = kind.dtype == "float16" and not self._rounded
        return ValueType("float32", kind.shape) if wide else kind

    # ---- running ------------------------------------------------------------------------------

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
        if found != kind_named(port.type.dtype) or not fits(value.shape, port.type.shape):
            raise BadFileError(
                f"{operation.type} {port.name!r} of {self._name} gives "
                f"{words_of(found, tuple(value.shape))}, the program declares "
                f"{words_of(port.type.dtype, port.type.shape)}; export it again"
            )
        return rounded(value, port.type.dtype, self._rounded)


# ---- types --------------------------------------------------------------------------------------


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
