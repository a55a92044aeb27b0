"""Measure artifacts on this machine: latency over the sizes of one axis, and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from devices.report.record import Result
from export.errors import MeasureError
from export.records import TensorSpec
from runtimes import backend_module, open_artifact, require_measurable
from runtimes.bench import QUICK, Budget, compare
from runtimes.memory import measure_fresh
from runtimes.records import Latency, OperatorTime

BATCH, SEQUENCE = "batch", "sequence"
_OTHER_SIZE = 64
_SEQUENCE_WORDS = ("seq", "len", "token", "time")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An artifact to measure.

    Args:
        options: session options that it needs.
    """

    path: Path
    options: Mapping[str, str] = field(default_factory=dict)


def axis_of(specs: Sequence[TensorSpec]) -> tuple[str, tuple[int, ...]]:
    """Choose the axis to sweep, and its sizes, from the inputs' dynamic dimensions."""
    names = [size for spec in specs for size in spec.shape if isinstance(size, str)]
    if any(word in name.lower() for name in names for word in _SEQUENCE_WORDS):
        # What is read by number is text, which has more than one token.
        tokens = all(not spec.dtype.startswith("float") for spec in specs)
        return SEQUENCE, (16, 128) if tokens else (1, 16, 128)
    if not names:
        return BATCH, (int(specs[0].shape[0]) if specs[0].shape else 1,)
    elements = [int(size) for spec in specs for size in spec.shape if isinstance(size, int)]
    large = int(np.prod(elements)) > 10_000  # a photograph rather than a thumbnail
    return BATCH, (1, 4) if large else (1, 4, 16)


def make_feeds(
    specs: Sequence[TensorSpec], axis: str, size: int, seed: int = 0
) -> dict[str, NDArray[np.generic]]:
    """Draw inputs: normal floats, and integers 0 or 1, which any vocabulary and mask has.

    Args:
        axis: the dynamic dimension that takes ``size``; of batch and sequence the other is 1,
            and what is neither, such as an image's height, is 64.
    """
    generator = np.random.default_rng(seed)
    feeds: dict[str, NDArray[np.generic]] = {}
    for spec in specs:
        shape = shape_at(spec, axis, size)
        if spec.dtype.startswith("float"):
            feeds[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
        elif spec.dtype.startswith(("int", "uint", "bool")):
            feeds[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
        else:
            raise MeasureError(f"input {spec.name!r} has type {spec.dtype}, which cannot be drawn")
    return feeds


def shape_at(spec: TensorSpec, axis: str, size: int) -> tuple[int, ...]:
    """Give an input's shape at one size of the swept axis; see ``make_feeds``."""
    return tuple(
        dim if isinstance(dim, int) else _size_of(dim, place, axis, size)
        for place, dim in enumerate(spec.shape)
    )


def _size_of(name: str, place: int, axis: str, size: int) -> int:
    if any(word in name.lower() for word in _SEQUENCE_WORDS):
        return size if axis == SEQUENCE else 1
    if place == 0 or "batch" in name.lower():
        return size if axis == BATCH else 1
    return _OTHER_SIZE


def measure(
    candidates: Mapping[str, Candidate],
    specs: Sequence[TensorSpec],
    *,
    axis: str,
    sizes: Sequence[int],
    threads: int = 1,
    budget: Budget = QUICK,
    on_step: Callable[[str], None] | None = None,
) -> dict[str, Result]:
    """Measure candidates side by side: latency in turns, memory in a process each.

    Raises:
        MeasureError: a candidate cannot be run.
    """
    tell = on_step or (lambda _: None)
    latency = time_side_by_side(
        candidates, specs, axis=axis, sizes=sizes, threads=threads, budget=budget, on_step=tell
    )
    measured: dict[str, Result] = {}
    for name, candidate in candidates.items():
        tell(f"measuring the memory of {name}")
        feeds = make_feeds(specs, axis, min(sizes))
        fresh = measure_fresh(candidate.path, feeds, threads=threads, options=candidate.options)
        by_size = {size: values[name] for size, values in latency.items()}
        measured[name] = Result(fresh.load_ms, fresh.memory, by_size)
    return measured


def operators_of(
    path: Path, specs: Sequence[TensorSpec], *, threads: int = 1
) -> tuple[OperatorTime, ...]:
    """Time each operator of an artifact at the smallest size; none where the runtime cannot tell.

    Raises:
        MeasureError: the artifact cannot be run.
    """
    module = backend_module(path)
    if not hasattr(module, "operator_profile"):
        return ()
    axis, sizes = axis_of(specs)
    feeds = make_feeds(specs, axis, min(sizes))
    found: tuple[OperatorTime, ...] = module.operator_profile(path, feeds, threads=threads)
    return found


def time_side_by_side(
    candidates: Mapping[str, Candidate],
    specs: Sequence[TensorSpec],
    *,
    axis: str,
    sizes: Sequence[int],
    threads: int,
    budget: Budget,
    on_step: Callable[[str], None],
) -> dict[int, dict[str, Latency]]:
    """Time candidates in turns at each size; gives size to name to latency.

    Raises:
        MeasureError: the runtime of a candidate is not here, or cannot run it.
    """
    for candidate in candidates.values():
        require_measurable(candidate.path)
    sessions = {
        name: open_artifact(candidate.path, threads=threads, options=candidate.options)
        for name, candidate in candidates.items()
    }
    try:
        results: dict[int, dict[str, Latency]] = {}
        for size in sizes:
            words = f"timing {', '.join(candidates)} at {axis} {size}"
            on_step(words)

            def on_round(done: float, words: str = words) -> None:
                on_step(f"{words}: {done:.0%}")

            feeds = make_feeds(specs, axis, size)
            results[size] = compare(sessions, feeds, budget, on_round)
        return results
    finally:
        for session in sessions.values():
            session.close()
