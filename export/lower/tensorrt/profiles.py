"""The range of shapes that an engine is built for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.errors import UserError
from export.records import TensorSpec

BATCH_LIMIT = 16
LENGTH_LIMIT = 512
_PICTURE = 64  # an axis of which nothing is known, such as a picture's height


@dataclass(frozen=True, slots=True)
class Range:
    """Sizes that an axis may take, both ends included, and the one to be fastest at."""

    smallest: int
    usual: int
    largest: int

    def up_to(self, limit: int | None) -> Range:
        """Leave out the sizes beyond a limit."""
        if limit is None:
            return self
        return Range(*(min(size, limit) for size in (self.smallest, self.usual, self.largest)))


@dataclass(frozen=True, slots=True)
class Profile:
    """The smallest, usual and largest shape of one input."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


_SEQUENCE_WORDS = ("seq", "len", "token", "time")


def profiles_of(
    inputs: Sequence[TensorSpec],
    ranges: Mapping[str, Range] | None = None,
    sizes: Sequence[int] | None = None,
    largest: Mapping[str, int] | None = None,
) -> dict[str, Profile]:
    """Choose a profile for each input that has a dynamic axis.

    Args:
        ranges: by the name of an axis; others are chosen by what the axis is.
        sizes: those that will be timed: of the sequence where any axis is one, else of the batch.
        largest: sizes that axes have at most, by the name of an axis, such as a model's positions.

    Raises:
        UserError: a range is of an axis that no input has, or is not in order.
    """
    given, limits = dict(ranges or {}), dict(largest or {})
    names = {size for spec in inputs for size in spec.shape if isinstance(size, str)}
    unknown = sorted(set(given) - names)
    if unknown:
        known = ", ".join(sorted(names)) or "none"
        raise UserError(f"no input has an axis {unknown[0]!r}; dynamic axes: {known}")
    for name, found in given.items():
        if not 1 <= found.smallest <= found.usual <= found.largest:
            raise UserError(
                f"axis {name!r}: the sizes must be in order, from 1 on, not "
                f"{found.smallest}, {found.usual}, {found.largest}"
            )
    sequence = any(_is_sequence(name) for name in names)
    profiles = {}
    for spec in inputs:
        if not any(isinstance(size, str) for size in spec.shape):
            continue
        chosen = [
            Range(size, size, size)
            if isinstance(size, int)
            else given.get(size) or _choice(size, place, sequence, sizes).up_to(limits.get(size))
            for place, size in enumerate(spec.shape)
        ]
        profiles[spec.name] = Profile(
            tuple(each.smallest for each in chosen),
            tuple(each.usual for each in chosen),
            tuple(each.largest for each in chosen),
        )
    return profiles


def _is_sequence(name: str) -> bool:
    return any(word in name.lower() for word in _SEQUENCE_WORDS)


def _choice(name: str, place: int, sequence: bool, sizes: Sequence[int] | None) -> Range:
    timed = list(sizes or ())
    if _is_sequence(name):
        return Range(1, 128 if not timed else max(timed), max([LENGTH_LIMIT, *timed]))
    if place == 0 or "batch" in name.lower():
        swept = [] if sequence else timed
        return Range(1, 1, max(swept) if swept else BATCH_LIMIT)
    return Range(1, _PICTURE, LENGTH_LIMIT)
