"""Whether arrays fit the inputs of a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from export.errors import MeasureError
from export.records import TensorSpec


def check_feeds(
    name: str, inputs: Sequence[TensorSpec], feeds: Mapping[str, NDArray[np.generic]]
) -> None:
    """Refuse feeds that are not the inputs of an artifact, by name, type and shape.

    Args:
        name: of the artifact, for messages.

    Raises:
        MeasureError: they do not fit.
    """
    names = [spec.name for spec in inputs]
    if feeds.keys() != set(names):
        wanted = ", ".join(map(repr, names)) or "none"
        given = ", ".join(map(repr, feeds)) or "none"
        raise MeasureError(f"{name} takes the inputs {wanted}; given were {given}")
    for spec in inputs:
        array = feeds[spec.name]
        if array.dtype.name != spec.dtype or not _fits(array.shape, spec.shape):
            raise MeasureError(
                f"input {spec.name!r} of {name} is {spec.dtype} {shape_words(spec.shape)}; "
                f"given was {array.dtype.name} {shape_words(array.shape)}"
            )


def narrowed(
    name: str, inputs: Sequence[TensorSpec], feeds: Mapping[str, NDArray[np.generic]]
) -> dict[str, NDArray[np.generic]]:
    """Give integers in 32 bits where an artifact takes them so; its graph may have taken 64.

    Args:
        name: of the artifact, for messages.

    Raises:
        MeasureError: a number does not fit.
    """
    found = dict(feeds)
    for spec in inputs:
        array = feeds.get(spec.name)
        if spec.dtype == "int32" and array is not None and array.dtype == np.int64:
            found[spec.name] = array.astype(np.int32)
            if not np.array_equal(found[spec.name], array):
                raise MeasureError(f"input {spec.name!r} of {name} is int32; given was more")
    return found


def shape_words(shape: Sequence[int | str]) -> str:
    """Write a shape as ``[1, n, 4]``."""
    return f"[{', '.join(map(str, shape))}]"


def _fits(shape: Sequence[int], wanted: Sequence[int | str]) -> bool:
    return len(shape) == len(wanted) and all(
        isinstance(size, str) or size == given for given, size in zip(shape, wanted, strict=True)
    )
