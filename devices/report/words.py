"""Sentences on what was measured where, what was not, and what must not be relied on."""

from __future__ import annotations

from collections.abc import Sequence

from devices.report.record import Report, Run, Variant
from devices.report.runs import (
    device_words,
    disturbances,
    first_measured,
    is_for_target,
    ordered_runs,
    threads_words,
)
from devices.report.view import NAIVE, format_title, formats, label, ordered_variants


def measured_words(report: Report, run: Run | None) -> str:
    """Say where a run's figures are from, and that the target is another one where it is."""
    if run is not None and run.kind == "estimated":
        return f"Estimated for {device_words(run)}, {threads_words(run)}; not measured."
    if run is None or not any(r.latency_ms_by_size or r.memory for r in run.results.values()):
        where = f" on {device_words(run)}" if run and len(report.runs) > 1 else ""
        return f"Latency and memory: not measured{where}."
    where = f"Latency and memory: measured on {device_words(run)}, {threads_words(run)}."
    if run.emulated:
        return f"{where} Emulated; its times are not those of a device."
    if is_for_target(report, run):
        return where
    return f"{where} Measured here; not a figure of the target ({report.target_title})."


def invalid_words(report: Report, run: Run) -> tuple[str, ...]:
    """Say which of a run's figures are invalid, and why: a sentence each."""
    where = f" on {device_words(run)}" if len(report.runs) > 1 else ""
    causes = disturbances(run)
    found = []
    if causes:
        found.append(
            f"Invalid{where}: {' and '.join(causes)} while it was measured; measure again."
        )
    found += [
        f"Invalid{where}, {label(report, variant)}: {_sentence(run.of(variant).invalid)}"
        for variant in ordered_variants(report)
        if run.of(variant).invalid
    ]
    return tuple(found)


def failure_words(report: Report, run: Run) -> tuple[str, ...]:
    """Say which variants have no figures on a device, and why: a sentence each."""
    where = f" on {device_words(run)}" if len(report.runs) > 1 else ""
    return tuple(
        f"Failed{where}, {label(report, variant)}: {_sentence(run.of(variant).failure)}"
        for variant in ordered_variants(report)
        if run.of(variant).failure
    )


def warning_words(report: Report, run: Run) -> tuple[str, ...]:
    """Give what a run says of itself: what makes it doubtful, what an estimate assumes."""
    warnings = run.environment.warnings if run.environment else ()
    words = [_sentence(each) for each in (*warnings, *run.notes)]
    if run.kind == "estimated":
        return tuple(f"Estimate for {device_words(run)}: {each}" for each in words)
    return tuple(f"{run.device}: {each}" if len(report.runs) > 1 else each for each in words)


def missing_words(report: Report) -> tuple[str, ...]:
    """List what was not measured, a sentence each."""
    found = []
    for run in ordered_runs(report):
        if run.kind == "measured":
            found += _lacking_on(report, run)
    if first_measured(report) is None:
        found += ["Not measured: latency.", "Not measured: memory."]
    variants = ordered_variants(report)
    found += _missing(report, "parity", [v for v in variants if v.parity is None])
    unlabelled = [v for v in variants if v.accuracy is None]
    found += _missing(report, "accuracy (no labelled samples)", unlabelled)
    found += _without_naive(report)
    if not any(is_for_target(report, run) for run in report.runs):
        found.append(f"Nothing was measured on the target ({report.target_title}).")
    return tuple(found)


def _lacking_on(report: Report, run: Run) -> list[str]:
    """List what a device did not measure; what failed there is said elsewhere."""
    where = f" on {device_words(run)}" if len(report.runs) > 1 else ""
    tried = [(v, run.of(v)) for v in ordered_variants(report) if not run.of(v).failure]
    untimed = [variant for variant, result in tried if not result.latency_ms_by_size]
    unweighed = [variant for variant, result in tried if result.memory is None]
    return [
        *_missing(report, "latency", untimed, where),
        *_missing(report, "memory", unweighed, where),
    ]


def _missing(report: Report, what: str, variants: Sequence[Variant], where: str = "") -> list[str]:
    if not variants:
        return []
    if len(variants) == len(report.variants):
        return [f"Not measured{where}: {what}."]
    names = ", ".join(label(report, variant) for variant in variants)
    return [f"Not measured{where} for {names}: {what}."]


def _without_naive(report: Report) -> list[str]:
    present = {variant.format for variant in report.variants if variant.name == NAIVE}
    if len(formats(report)) <= 1:
        return [] if present else ["No naive export stands beside it."]
    return [
        f"No naive {format_title(each)} export stands beside ours."
        for each in formats(report)
        if each not in present
    ]


def _sentence(words: str) -> str:
    return words if words.endswith((".", "!", "?")) else f"{words}."
