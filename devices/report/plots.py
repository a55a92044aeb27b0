"""The plots of report.html: size, memory and the size waterfall, and which there are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devices.report.drawing import (
    INK,
    SERIES,
    SETTINGS,
    add_legend,
    broken,
    one_axes,
    series_index,
    short,
    svg_of,
)
from devices.report.latency_plots import draw_distribution, draw_latency
from devices.report.record import Report, Run, Variant
from devices.report.runs import ESTIMATED, device_words, ordered_runs
from devices.report.units import format_bytes, format_digits
from devices.report.view import (
    formats,
    label,
    ordered_variants,
    setting_words,
    variants_of,
    waterfall_of,
)
from export.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: its SVG, and its content in words for those who cannot see it."""

    svg: str
    words: str


def waterfall_key(report: Report, format_name: str) -> str:
    """Name the waterfall plot of a format; the only one is ``waterfall``."""
    number = formats(report).index(format_name)
    return f"waterfall-{number + 1}" if number else "waterfall"


def run_key(report: Report, run: Run, name: str) -> str:
    """Name a plot of a device; those of the first have no number."""
    number = ordered_runs(report).index(run)
    return f"{name}-{number + 1}" if number else name


def draw_plots(report: Report) -> dict[str, Plot]:
    """Draw every plot that the report has figures for; nothing is drawn of an estimate.

    Returns:
        Of ``size``, the ``waterfall_key`` of each format, and the ``run_key`` of ``memory``,
        ``latency`` and ``distribution`` on each device those that exist.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError.of("matplotlib", "report") from error
    drawings: dict[str, Callable[[Report], tuple[Figure, str] | None]] = {"size": _size}
    for each in formats(report):
        drawings[waterfall_key(report, each)] = functools.partial(_waterfall, format_name=each)
    for run in ordered_runs(report):
        if run.kind != ESTIMATED:
            for name, draw_run in _OF_RUN.items():
                drawings[run_key(report, run, name)] = _of(draw_run, run)
    plots = {}
    with matplotlib.rc_context(SETTINGS):
        for name, draw in drawings.items():
            drawn = draw(report)
            if drawn is not None:
                plots[name] = Plot(svg_of(drawn[0], name, drawn[1]), drawn[1])
    return plots


def _of(
    draw: Callable[[Report, Run], tuple[Figure, str] | None], run: Run
) -> Callable[[Report], tuple[Figure, str] | None]:
    return lambda report: draw(report, run)


def _size(report: Report) -> tuple[Figure, str]:
    variants = ordered_variants(report)
    unique = report.ties.unique_bytes
    values = [variant.file_bytes for variant in variants]
    figure, axes = one_axes(0.8 + 0.42 * len(variants))
    _bars(report, axes, variants, [float(value) for value in values])
    _unique_line(axes, unique)
    axes.set_xlabel("file size in MB")
    listing = ", ".join(
        f"{label(report, v)} {format_bytes(n)}" for v, n in zip(variants, values, strict=True)
    )
    return figure, f"File size: {listing}; unique parameters {format_bytes(unique)}."


def _memory(report: Report, run: Run) -> tuple[Figure, str] | None:
    found = [(v, run.of(v).memory) for v in ordered_variants(report)]
    pairs = [(variant, memory) for variant, memory in found if memory is not None]
    if not pairs:
        return None
    variants = tuple(variant for variant, _ in pairs)
    weights = [float(memory.weights_resident_bytes) for _, memory in pairs]
    figure, axes = one_axes(0.8 + 0.42 * len(variants))
    _bars(report, axes, variants, weights)
    _unique_line(axes, report.ties.unique_bytes)
    axes.set_xlabel("weights resident in memory, in MB")
    listing = ", ".join(
        f"{label(report, v)} {format_bytes(n)}" for v, n in zip(variants, weights, strict=True)
    )
    return figure, f"Weights resident in memory on {device_words(run)}: {listing}."


def _waterfall(report: Report, format_name: str) -> tuple[Figure, str] | None:
    """Draw the steps of one format; all formats have the same scale."""
    steps = waterfall_of(report, format_name)
    if not steps:
        return None
    variants = [
        v
        for v in variants_of(report, format_name)
        if any(v.id in s.bytes_by_variant for s in steps)
    ]
    height = 0.8 / max(1, len(variants))
    figure, axes = one_axes(1.1 + len(steps) * (0.22 + 0.19 * len(variants)))
    largest = (
        max((n for s in report.waterfall for n in s.bytes_by_variant.values()), default=0) / 1e6
    )
    for place, variant in enumerate(variants):
        colour = SERIES[series_index(report, variant)]
        rows = [(i, s.bytes_by_variant.get(variant.id)) for i, s in enumerate(steps)]
        known = [(i + (place - (len(variants) - 1) / 2) * height, n) for i, n in rows if n]
        axes.barh(
            [y for y, _ in known],
            [n / 1e6 for _, n in known],
            height=height * 0.86,
            color=colour,
            label=short(setting_words(variant)),
        )
        for y, count in known:
            axes.text(
                count / 1e6 + largest * 0.012, y, format_digits(count / 1e6), va="center", size=8
            )
    _unique_line(axes, report.ties.unique_bytes)
    axes.set_yticks(range(len(steps)), [broken(step.label) for step in steps])
    axes.invert_yaxis()
    axes.set_xlim(0, largest * 1.14 or 1)
    axes.set_xlabel("MB")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    add_legend(figure, axes, 3)
    listing = "; ".join(
        f"{step.label}: "
        + ", ".join(
            f"{label(report, v)} {format_bytes(step.bytes_by_variant[v.id])}"
            for v in variants
            if v.id in step.bytes_by_variant
        )
        for step in steps
    )
    return figure, f"Size at each step. {listing}."


def _bars(
    report: Report, axes: Axes, variants: tuple[Variant, ...], sizes_bytes: list[float]
) -> None:
    largest = max(*sizes_bytes, report.ties.unique_bytes, 1.0) / 1e6
    for y, (variant, count) in enumerate(zip(variants, sizes_bytes, strict=True)):
        axes.barh(y, count / 1e6, height=0.62, color=SERIES[series_index(report, variant)])
        axes.text(max(count, 0) / 1e6 + largest * 0.015, y, format_bytes(count), va="center")
    axes.set_yticks(range(len(variants)), [short(label(report, variant)) for variant in variants])
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_xlim(min(0.0, *sizes_bytes) / 1e6, largest * 1.2)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _unique_line(axes: Axes, unique_bytes: int) -> None:
    axes.axvline(unique_bytes / 1e6, color=INK, lw=1.1, ls=(0, (4, 3)))
    axes.annotate(
        "unique parameters",
        (unique_bytes / 1e6, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        size=8.5,
        annotation_clip=False,
    )


_OF_RUN: dict[str, Callable[[Report, Run], tuple[Figure, str] | None]] = {
    "memory": _memory, "latency": draw_latency, "distribution": draw_distribution,
}  # fmt: skip
