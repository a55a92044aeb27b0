"""Two reports of one model, figure by figure, and the gate that a regression trips."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from devices.compare_pairs import OTHER_MACHINE, Group, Pair, pairs_of
from devices.report.json_form import read_json
from devices.report.record import Report
from devices.report.units import (
    format_bytes,
    format_error,
    format_estimate,
    format_ms,
    format_ratio,
    format_share,
)
from export.errors import BadFileError, RegressionGateError, UserError

REPORT = "report.json"
GROUPS: tuple[Group, ...] = get_args(Group)
# A load is one cold start, whose spread nobody knows: it gates only where it is asked for.
GATED: tuple[Group, ...] = ("size", "memory", "latency", "parity")

Verdict = Literal["ok", "over", "missing", "noise", "shown", "new"]
_FORMATS = {
    "bytes": format_bytes, "ms": format_ms, "ratio": format_ratio, "error": format_error,
    "share": format_share,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of both reports with what the gate says of it.

    Args:
        verdict: ``over`` and ``missing`` trip the gate; ``noise`` is worse by more than the limit,
            but by no more than the measurement varies; ``shown`` was not held against it.
        reason: why, where the figures alone do not tell.
    """

    pair: Pair
    verdict: Verdict
    reason: str = ""

    @property
    def change(self) -> float | None:
        """New over old, less one; None where one is missing or the old one is zero."""
        old, new = self.pair.old, self.pair.new
        return new / old - 1 if old and new is not None else None

    @property
    def trips(self) -> bool:
        """Whether it fails the gate."""
        return self.verdict in ("over", "missing")

    def words(self) -> str:
        """Say in one line what became of a figure."""
        pair = self.pair
        where = " on ".join(filter(None, [pair.figure, pair.device]))
        if self.verdict == "missing":
            return f"{pair.variant}, {where}: {self.reason}"
        change = f" ({format_change(self.change)})" if self.change is not None else ""
        return (
            f"{pair.variant}, {where}: {shown(pair, pair.old)} -> {shown(pair, pair.new)}{change}"
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures of two reports, and what the gate says.

    Args:
        limit: the share by which a figure may be worse; None without a gate.
        gated: the groups that the gate looks at.
        warnings: what a reader should know of the two, a sentence each.
    """

    model: str
    limit: float | None
    gated: tuple[Group, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]

    @property
    def tripped(self) -> tuple[Row, ...]:
        """The figures that fail the gate; none without a limit."""
        return tuple(row for row in self.rows if row.trips) if self.limit is not None else ()


def load_report(path: Path) -> Report:
    """Read the report of a bundle, or a report.json file.

    Raises:
        BadFileError: it is neither, or is damaged.
    """
    file = path / REPORT if path.is_dir() else path
    if not file.is_file():
        raise BadFileError(f"{file} is not a file; give a bundle of `export` or its {REPORT}")
    return read_json(file)


def compare(
    old: Report, new: Report, limit: float | None = None, gated: Collection[Group] = GATED
) -> Comparison:
    """Hold each figure of a report against the same figure of an older one.

    Args:
        limit: the share by which a gated figure may be worse, such as 0.05.
        gated: the groups that may trip.

    Raises:
        UserError: the reports are of different models, or sweep different axes.
    """
    if old.model != new.model:
        raise UserError(
            f"OLD is a report of {old.model!r} and NEW one of {new.model!r}; compare reports of "
            "one model"
        )
    if old.axis != new.axis:
        raise UserError(
            f"OLD sweeps the {old.axis} and NEW the {new.axis}; export both with the same inputs"
        )
    rows = tuple(_judged(pair, limit, gated) for pair in pairs_of(old, new))
    return Comparison(
        model=new.model,
        limit=limit,
        gated=tuple(group for group in GROUPS if group in gated),
        rows=rows,
        warnings=tuple(_warnings(old, new, rows, gated)),
    )


def enforce(found: Comparison, must_judge: Collection[Group] = ()) -> None:
    """Fail where a figure is worse by more than the limit, or is gone.

    Args:
        must_judge: groups of which at least one figure must have been held against the limit.

    Raises:
        RegressionGateError: every figure that tripped is named.
    """
    if found.limit is None:
        return
    words = [row.words() for row in found.tripped]
    words += [
        f"{group}: no figure could be held against the limit"
        for group in _idle(found.rows, must_judge)
    ]
    if words:
        raise RegressionGateError(
            f"{len(words)} beyond the limit of {format_limit(found.limit)}: {'; '.join(words)}"
        )


def shown(pair: Pair, value: float | None) -> str:
    """Write one of a pair's figures for people."""
    return format_estimate(value) if pair.estimated else _FORMATS[pair.unit](value)


def format_change(change: float) -> str:
    """Write a change as percent with its sign: ``+3.2 %``; ``=`` where there is none."""
    return f"{100 * change:+.1f} %" if change else "="


def format_limit(limit: float) -> str:
    """Write a limit as percent: ``5 %``."""
    return f"{100 * limit:g} %"


def _judged(pair: Pair, limit: float | None, gated: Collection[Group]) -> Row:
    """Decide what a pair means for the gate."""
    if pair.shown:
        return Row(pair, "shown", pair.shown)
    if pair.new is None:
        reason = pair.lost or "NEW lacks it"
        return Row(pair, "missing" if pair.group in gated else "shown", reason)
    if pair.old is None:
        return Row(pair, "new", "new")
    if pair.group not in gated:
        return Row(pair, "shown")
    if limit is None or not _is_worse(pair, pair.old, pair.new, limit):
        return Row(pair, "ok")
    return Row(pair, "noise", "within the spread") if pair.near else Row(pair, "over")


def _is_worse(pair: Pair, old: float, new: float, limit: float) -> bool:
    """Whether a figure is worse by more than the limit; one that is no number is."""
    if pair.unit == "share":
        return not new >= old * (1 - limit)
    return not new <= max(pair.ceiling, old * (1 + limit))


def _idle(rows: Sequence[Row], groups: Collection[Group]) -> list[Group]:
    """List the groups of which no figure was held against the limit."""
    judged = {row.pair.group for row in rows if row.verdict not in ("shown", "new")}
    return [group for group in GROUPS if group in groups and group not in judged]


def _warnings(
    old: Report, new: Report, rows: Sequence[Row], gated: Collection[Group]
) -> Iterator[str]:
    if old.target != new.target:
        yield f"OLD was made for {old.target}, NEW for {new.target}."
    counts = [report.ties.unique_parameters for report in (old, new)]
    if counts[0] != counts[1]:
        yield f"The model has {counts[0]:,} unique parameters in OLD and {counts[1]:,} in NEW."
    others = [(row.pair.device, row.reason) for row in rows if row.reason.startswith(OTHER_MACHINE)]
    for device, reason in dict.fromkeys(others):
        yield f"{device} was not held against the limit: {reason}."
    noisy = sum(row.verdict == "noise" for row in rows)
    if noisy:
        yield (
            f"{noisy} worse by more than the limit, but by no more than the measurement varies: "
            "measure both with --full, with nothing else running."
        )
    idle = _idle(rows, gated)
    if idle:
        yield f"Nothing could be held against the limit of: {', '.join(idle)}."
