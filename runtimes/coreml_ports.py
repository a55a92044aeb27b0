"""What goes into an ML Program and comes out of it, whoever runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from export.coreml_records import DYNAMIC, Constant, Feature, Function, Operation, Port, ValueType
from export.errors import MeasureError
from export.records import TensorSpec

FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})
_NUMPY_DTYPES = {"string": "str", "bfloat16": "float32"}


def types_of(function: Function) -> dict[str, ValueType]:
    """Give the declared type of every value of a function."""
    types = {port.name: port.type for port in function.block.inputs}
    for operation in function.block.operations:
        types.update({port.name: port.type for port in operation.outputs})
    return types


def input_ports(function: Function) -> dict[str, Port]:
    """Give the inputs, in the order of the description."""
    ports = {port.name: port for port in function.block.inputs}
    return {name: ports[name] for name in [each.name for each in function.inputs] or ports}


def output_types(function: Function) -> dict[str, ValueType]:
    """Give the outputs, in the order of the description.

    The probabilities of a classifier are a vector, in the order of the classes.
    """
    types = types_of(function)
    names = [feature.name for feature in function.outputs] or list(function.block.outputs)
    found = {}
    for name in names:
        classes = classes_of(function, name)
        shape = (len(classes),) if classes else (DYNAMIC,)
        is_vector = types[name].dtype == "dictionary"
        found[name] = ValueType("float32", shape) if is_vector else types[name]
    return found


def classes_of(function: Function, name: str) -> tuple[str | int, ...]:
    """Give the classes of a classifier whose probabilities have a name; empty for other outputs."""
    for operation in function.block.operations:
        if operation.type == "classify" and operation.outputs[-1].name == name:
            return tuple(_items(function, operation))
    return ()


def _items(function: Function, operation: Operation) -> Iterator[str | int]:
    for bound in operation.inputs.get("classes", ()):
        constant: Constant | None = bound if isinstance(bound, Constant) else None
        for each in function.block.operations:
            if isinstance(bound, str) and each.type == "const" and each.name == bound:
                constant = each.attributes["val"]
        for item in constant.items if constant is not None else ():
            yield item if isinstance(item, str) else item.values.item()


def spec_of(name: str, kind: ValueType) -> TensorSpec:
    """Describe an input or output."""
    return TensorSpec(name, _NUMPY_DTYPES.get(kind.dtype, kind.dtype), kind.shape or ())


def check_names(model: str, wanted: Sequence[str], feeds: Mapping[str, object]) -> None:
    """Refuse feeds that are not those of the inputs.

    Raises:
        MeasureError: one is missing, or one too many.
    """
    if feeds.keys() != set(wanted):
        names = ", ".join(map(repr, wanted)) or "none"
        given = ", ".join(map(repr, feeds)) or "none"
        raise MeasureError(f"{model} takes the inputs {names}; given were {given}")


def fit_feed(
    model: str, port: Port, feature: Feature | None, array: NDArray[np.generic]
) -> NDArray[np.generic]:
    """Cast a feed to the type that the program declares: int64 to int32, float64 to float32.

    Raises:
        MeasureError: its shape or its numbers do not fit, or it is of another kind.
    """
    kind = port.type
    words = (
        f"input {port.name!r} of {model} is {words_of(kind.dtype, kind.shape)}; "
        f"given was {words_of(array.dtype.name, array.shape)}"
    )
    if not fits(array.shape, kind.shape) or not _allowed(array.shape, feature):
        raise MeasureError(words + (_range_words(feature) if feature is not None else ""))
    if array.dtype.kind not in ("fiub" if kind.dtype in FLOATS else "iub"):
        raise MeasureError(words)
    if kind.dtype in FLOATS:
        return np.asarray(array, "float32" if kind.dtype == "bfloat16" else kind.dtype)
    if kind.dtype == "bool":
        return array.astype(np.bool_)
    limits = np.iinfo(kind.dtype)
    if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
        raise MeasureError(f"{words} with values from {array.min():,} to {array.max():,}")
    return np.asarray(array, kind.dtype)


def fits(shape: Sequence[int], wanted: Sequence[int | str] | None) -> bool:
    """Whether a shape is one that a type allows."""
    return wanted is None or (
        len(shape) == len(wanted)
        and all(
            isinstance(size, str) or size == given
            for given, size in zip(shape, wanted, strict=True)
        )
    )


def words_of(dtype: str, shape: Sequence[int | str] | None) -> str:
    """Name a type and shape."""
    return f"{dtype} [{', '.join(map(str, shape))}]" if shape is not None else dtype


def _allowed(shape: tuple[int, ...], feature: Feature | None) -> bool:
    if feature is None:
        return True
    if feature.shapes:
        return shape in feature.shapes
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
