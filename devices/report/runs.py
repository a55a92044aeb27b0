"""What every form of the report says of a run: its device, its figures, and whether to trust them.

Ratios stay inside one run, and estimates have none.
"""

from __future__ import annotations

from collections.abc import Iterable

from devices.report.record import Report, Run, Variant
from devices.report.view import naive_variant, unique_bytes

LOCAL = "local"  # the device that is the machine which exports
EMULATED, ESTIMATED = "emulated", "estimated"
INVALID_MARK = "!"  # behind a figure that must not be relied on


def first_measured(report: Report) -> Run | None:
    """Give the run that leads the report: the first that was measured, whatever was estimated."""
    return next((run for run in report.runs if run.kind == "measured"), None)


def ordered_runs(report: Report) -> tuple[Run, ...]:
    """Give the measured runs, and after them the estimates."""
    return tuple(sorted(report.runs, key=lambda run: run.kind == ESTIMATED))


def swept_sizes(run: Run | None, variants: Iterable[Variant]) -> tuple[int, ...]:
    """Give all sizes that a run has latencies of, measured or estimated, of any of the variants."""
    results = [run.of(variant) for variant in variants] if run else []
    return tuple(
        sorted({n for r in results for n in (*r.latency_ms_by_size, *r.estimate_ms_by_size)})
    )


def resident_ratio(report: Report, run: Run, variant: Variant) -> float | None:
    """Give the bytes that the weights hold in memory over the unique bytes."""
    unique, memory = unique_bytes(report, variant), run.of(variant).memory
    return memory.weights_resident_bytes / unique if memory and unique else None


def latency_ratio(report: Report, run: Run, variant: Variant, size: int) -> float | None:
    """Give the median latency of a variant over that of its naive one, same run, same size.

    None for what is invalid, and for an estimate.
    """
    naive = naive_variant(report, variant)
    if naive is None or invalid_reason(run, variant) or invalid_reason(run, naive):
        return None
    mine, theirs = (run.of(v).latency_ms_by_size.get(size) for v in (variant, naive))
    return mine.p50 / theirs.p50 if mine and theirs and theirs.p50 > 0 else None


def invalid_reason(run: Run, variant: Variant) -> str:
    """Say why a variant's figures must not be relied on; empty where they may."""
    result = run.of(variant)
    if result.invalid or not (result.latency_ms_by_size or result.memory):
        return result.invalid
    return " and ".join(disturbances(run))


def mark(run: Run, variant: Variant) -> str:
    """Give what stands behind each figure of a variant on a device: nothing, if it is valid."""
    return f" {INVALID_MARK}" if invalid_reason(run, variant) else ""


def disturbances(run: Run) -> list[str]:
    """Say what went on while the whole run was measured that makes it invalid."""
    found = run.environment
    if found is None:
        return []
    causes = (("the machine swapped", found.swapped), ("the processor throttled", found.throttled))
    return [cause for cause, applies in causes if applies]


def is_for_target(report: Report, run: Run) -> bool:
    """Whether what was measured is a machine of the target: no stand-in, and not emulated."""
    own = run.device != LOCAL or report.target == LOCAL
    return own and run.kind == "measured" and not run.emulated


def device_words(run: Run) -> str:
    """Name the machine of a run, and say if it is none."""
    if run.kind == ESTIMATED or run.device == LOCAL:
        words = run.measured_on
    else:
        words = f"{run.device} ({run.measured_on})"
    return f"{words}, {EMULATED}" if run.emulated else words


def label_of_kind(run: Run) -> str:
    """Give the word that must stand beside every figure of a run; empty for a real device."""
    return ESTIMATED if run.kind == ESTIMATED else EMULATED if run.emulated else ""


def heading(run: Run) -> str:
    """Write the title of a run's part of the report."""
    words, threads = device_words(run), threads_words(run)
    return f"estimated for {words}, {threads}" if run.kind == ESTIMATED else f"{words}, {threads}"


def threads_words(run: Run) -> str:
    """Write the number of threads."""
    return f"{run.threads} thread{'' if run.threads == 1 else 's'}"
