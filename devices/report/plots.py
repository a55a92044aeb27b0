"""The plots of report.html: SVG text that stands in the page and takes its colours from it.

The same report gives the same bytes: ids are salted and no date is written. Colours are drawn as
placeholders and replaced by the page's CSS variables, so that a plot follows the page from light
to dark. Text stays text.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devices.report.record import Report, Variant
from devices.report.units import format_bytes, format_digits, format_ms
from devices.report.view import (
    NAIVE,
    formats,
    label,
    latency_low,
    latency_ratio,
    naive_variant,
    ordered_variants,
    size_label,
    swept_sizes,
    variants_of,
    waterfall_of,
)
from export.errors import MissingExtraError
from runtimes.records import Latency

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES = 4.7  # 338 points: about one CSS pixel a point on a phone, so text stays readable
COLOURS = 6  # the page has --v0 to --v5
NAIVE_COLOURS = (0, 5)  # the dim ones; a format each
OUR_COLOURS = (1, 2, 3, 4)
NAME_LENGTH = 24
ECDF_POINTS = 300  # enough for a curve of this width; the percentiles come from all samples

_INK, _SOFT, _GRID = "#010101", "#010102", "#010103"
_SERIES = tuple(f"#0202{i:02x}" for i in range(COLOURS))
_CSS_BY_PLACEHOLDER = {
    _INK: "var(--ink)",
    _SOFT: "var(--soft)",
    _GRID: "var(--grid)",
    **{colour: f"var(--v{i})" for i, colour in enumerate(_SERIES)},
}
_MARKERS = ("o", "s", "^", "D", "v", "X")
_LINES = ("-", "--", ":")  # a format each, for eyes that do not tell colours apart
_SETTINGS: dict[Any, Any] = {  # keys are a closed set in one version of matplotlib only
    "svg.fonttype": "none",
    "svg.hashsalt": "weightspace",
    "text.parse_math": False,  # a name with two dollar signs is a name
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _SOFT,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: its SVG, and its content in words for those who cannot see it."""

    svg: str
    words: str


def series_index(report: Report, variant: Variant) -> int:
    """Give a variant's place in the palette, where naive ones are dim and ours are not."""
    naive = variant.name == NAIVE
    places = NAIVE_COLOURS if naive else OUR_COLOURS
    ids = [v.id for v in ordered_variants(report) if (v.name == NAIVE) == naive]
    return places[ids.index(variant.id) % len(places)]


def waterfall_key(report: Report, format_name: str) -> str:
    """Name the waterfall plot of a format; the only one is ``waterfall``."""
    number = formats(report).index(format_name)
    return f"waterfall-{number + 1}" if number else "waterfall"


def draw_plots(report: Report) -> dict[str, Plot]:
    """Draw every plot that the report has figures for.

    Returns:
        Of ``size``, ``memory``, ``latency``, ``distribution`` and the ``waterfall_key`` of each
        format those that exist.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError.of("matplotlib", "report") from error
    drawings: dict[str, Callable[[Report], tuple[Figure, str] | None]] = {
        "size": _size,
        "memory": _memory,
        **{
            waterfall_key(report, each): functools.partial(_waterfall, format_name=each)
            for each in formats(report)
        },
        "latency": _latency,
        "distribution": _distribution,
    }
    plots = {}
    with matplotlib.rc_context(_SETTINGS):
        for name, draw in drawings.items():
            drawn = draw(report)
            if drawn is not None:
                plots[name] = Plot(_svg(drawn[0], name, drawn[1]), drawn[1])
    return plots


def _size(report: Report) -> tuple[Figure, str]:
    variants = ordered_variants(report)
    unique = report.ties.unique_bytes
    values = [variant.file_bytes for variant in variants]
    figure, axes = _figure(0.8 + 0.42 * len(variants))
    _bars(report, axes, variants, [float(value) for value in values])
    _unique_line(axes, unique)
    axes.set_xlabel("file size in MB")
    listing = ", ".join(
        f"{label(report, v)} {format_bytes(n)}" for v, n in zip(variants, values, strict=True)
    )
    return figure, f"File size: {listing}; unique parameters {format_bytes(unique)}."


def _memory(report: Report) -> tuple[Figure, str] | None:
    pairs = [(v, v.memory) for v in ordered_variants(report) if v.memory is not None]
    if not pairs:
        return None
    variants = tuple(variant for variant, _ in pairs)
    weights = [float(memory.weights_resident_bytes) for _, memory in pairs]
    figure, axes = _figure(0.8 + 0.42 * len(variants))
    _bars(report, axes, variants, weights)
    _unique_line(axes, report.ties.unique_bytes)
    axes.set_xlabel("weights resident in memory, in MB")
    listing = ", ".join(
        f"{label(report, v)} {format_bytes(n)}" for v, n in zip(variants, weights, strict=True)
    )
    return figure, f"Weights resident in memory: {listing}."


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
    figure, axes = _figure(1.1 + len(steps) * (0.22 + 0.19 * len(variants)))
    largest = (
        max((n for s in report.waterfall for n in s.bytes_by_variant.values()), default=0) / 1e6
    )
    for place, variant in enumerate(variants):
        colour = _SERIES[series_index(report, variant)]
        rows = [(i, s.bytes_by_variant.get(variant.id)) for i, s in enumerate(steps)]
        known = [(i + (place - (len(variants) - 1) / 2) * height, n) for i, n in rows if n]
        axes.barh(
            [y for y, _ in known],
            [n / 1e6 for _, n in known],
            height=height * 0.86,
            color=colour,
            label=_short(variant.name),
        )
        for y, count in known:
            axes.text(
                count / 1e6 + largest * 0.012, y, format_digits(count / 1e6), va="center", size=8
            )
    _unique_line(axes, report.ties.unique_bytes)
    axes.set_yticks(range(len(steps)), [_broken(step.label) for step in steps])
    axes.invert_yaxis()
    axes.set_xlim(0, largest * 1.14 or 1)
    axes.set_xlabel("MB")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    _legend(figure, axes, 3)
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


def _latency(report: Report) -> tuple[Figure, str] | None:
    sizes = swept_sizes(report)
    if not sizes:
        return None
    listing = "; ".join(
        f"{size_label(report, size)}: "
        + ", ".join(
            f"{label(report, v)} {format_ms(v.latency_ms_by_size[size].p50)}"
            for v in ordered_variants(report)
            if size in v.latency_ms_by_size
        )
        for size in sizes
    )
    words = f"Median latency. {listing}."
    return (_latency_at(report, sizes[0]) if len(sizes) == 1 else _latency_over(report)), words


def _latency_at(report: Report, size: int) -> Figure:
    """Draw the median and the band of each variant, where only one size was timed."""
    variants = [v for v in ordered_variants(report) if size in v.latency_ms_by_size]
    figure, axes = _figure(0.9 + 0.42 * len(variants))
    for y, variant in enumerate(variants):
        latency = variant.latency_ms_by_size[size]
        index = series_index(report, variant)
        low, _ = latency_low(latency)
        axes.plot([low, latency.p90], [y, y], color=_SERIES[index], lw=7, alpha=0.35)
        axes.plot([latency.p50], [y], _MARKERS[index], color=_SERIES[index], ms=7)
        axes.text(latency.p50, y - 0.24, format_ms(latency.p50), ha="center", size=8.5)
    axes.set_yticks(range(len(variants)), [_short(label(report, v)) for v in variants])
    axes.set_ylim(len(variants) - 0.5, -0.65)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"latency in ms, {_short(size_label(report, size))}")
    axes.grid(axis="x")
    return figure


def _latency_over(report: Report) -> Figure:
    """Draw the latency over the sizes, and below it the ratio to naive."""
    sizes = swept_sizes(report)
    with_ratio = any(
        naive_variant(report, variant) and len(variants_of(report, variant.format)) > 1
        for variant in report.variants
    )
    height = (4.7 if with_ratio else 3.0) + _legend_inches(report)
    figure, rows = _figures(height, (2.2, 1) if with_ratio else (1,))
    axes = rows[0]
    for variant in ordered_variants(report):
        points = sorted(variant.latency_ms_by_size.items())
        if not points:
            continue
        xs = [float(size) for size, _ in points]
        index = series_index(report, variant)
        style: dict[str, Any] = {
            "color": _SERIES[index],
            "marker": _MARKERS[index],
            "ms": 4.5,
            "ls": _line(report, variant),
        }
        axes.fill_between(
            xs,
            [latency_low(latency)[0] for _, latency in points],
            [latency.p90 for _, latency in points],
            color=_SERIES[index],
            alpha=0.18,
            lw=0,
        )
        ys = [latency.p50 for _, latency in points]
        axes.plot(xs, ys, label=_short(label(report, variant)), **style)
        ratios = [(x, latency_ratio(report, variant, int(x))) for x in xs]
        known = [(x, ratio) for x, ratio in ratios if ratio is not None]
        if with_ratio and known:
            rows[1].plot([x for x, _ in known], [ratio for _, ratio in known], **style)
    medians = [v.p50 for variant in report.variants for v in variant.latency_ms_by_size.values()]
    if min(medians) > 0 and max(medians) / min(medians) > 20:
        _plain_log_axis(axes)
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel("latency in ms")
    if with_ratio:
        rows[1].set_ylabel("p50 to naive")
        low, high = rows[1].get_ylim()
        rows[1].set_ylim(min(low, 0.9), max(high, 1.1))
    _size_axis(report, rows, sizes)
    _legend(figure, axes, _legend_columns(report))
    return figure


def _size_axis(report: Report, rows: list[Axes], sizes: tuple[int, ...]) -> None:
    for axes in rows:
        if sizes[0] > 0 and sizes[-1] / sizes[0] >= 8:
            axes.set_xscale("log", base=2)
        axes.grid()
        axes.set_xticks(list(sizes), [str(size) for size in sizes] if axes is rows[-1] else [])
        axes.minorticks_off()
    rows[-1].set_xlabel(_short(report.axis))


def _plain_log_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _distribution(report: Report) -> tuple[Figure, str] | None:
    """Draw how many of the runs took at most how long, at the first and the last size."""
    timed = [
        size
        for size in swept_sizes(report)
        if any(_samples(variant, size) for variant in report.variants)
    ]
    if not timed:
        return None
    shown = timed if len(timed) == 1 else [timed[0], timed[-1]]
    height = 0.7 + 2.0 * len(shown) + _legend_inches(report)
    figure, rows = _figures(height, (1,) * len(shown), share_x=False)
    for axes, size in zip(rows, shown, strict=True):
        for variant in ordered_variants(report):
            samples = sorted(_samples(variant, size))
            if samples:
                xs, ys = _ecdf(samples)
                axes.plot(
                    xs,
                    ys,
                    color=_SERIES[series_index(report, variant)],
                    ls=_line(report, variant),
                    drawstyle="steps-post",
                    label=_short(label(report, variant)),
                )
        axes.set_ylim(0, 103)
        axes.set_yticks([0, 50, 90, 100])
        axes.set_ylabel("% of runs")
        axes.grid()
        axes.set_xlabel(f"latency in ms at most, {_short(size_label(report, size))}")
    _legend(figure, rows[0], _legend_columns(report))
    named = " and ".join(size_label(report, size) for size in shown)
    return figure, f"Share of the runs that took at most so long, at {named}."


def _samples(variant: Variant, size: int) -> tuple[float, ...]:
    latency: Latency | None = variant.latency_ms_by_size.get(size)
    return latency.samples if latency else ()


def _ecdf(ordered: list[float]) -> tuple[list[float], list[float]]:
    count = len(ordered)
    step = max(1, count // ECDF_POINTS)
    places = sorted({*range(0, count, step), count - 1})
    return [ordered[i] for i in places], [100 * (i + 1) / count for i in places]


def _bars(
    report: Report, axes: Axes, variants: tuple[Variant, ...], sizes_bytes: list[float]
) -> None:
    largest = max(*sizes_bytes, report.ties.unique_bytes, 1.0) / 1e6
    for y, (variant, count) in enumerate(zip(variants, sizes_bytes, strict=True)):
        axes.barh(y, count / 1e6, height=0.62, color=_SERIES[series_index(report, variant)])
        axes.text(max(count, 0) / 1e6 + largest * 0.015, y, format_bytes(count), va="center")
    axes.set_yticks(range(len(variants)), [_short(label(report, variant)) for variant in variants])
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_xlim(min(0.0, *sizes_bytes) / 1e6, largest * 1.2)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _unique_line(axes: Axes, unique_bytes: int) -> None:
    axes.axvline(unique_bytes / 1e6, color=_INK, lw=1.1, ls=(0, (4, 3)))
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


def _line(report: Report, variant: Variant) -> str:
    return _LINES[formats(report).index(variant.format) % len(_LINES)]


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=min(columns, len(handles)))


def _legend_columns(report: Report) -> int:
    """Give how many names fit side by side: fewer where they begin with a format."""
    return 3 if len(formats(report)) == 1 else 2


def _legend_inches(report: Report) -> float:
    """Give the height that a legend of more than the usual one row takes."""
    rows = math.ceil(len(report.variants) / _legend_columns(report))
    return 0.0 if len(formats(report)) == 1 else 0.18 * (rows - 1)


def _short(name: str) -> str:
    """Cut a name that would push the bars out of the plot; the tables have it in full."""
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "\u2026"


def _broken(label: str) -> str:
    """Break a label before its second half, to leave the bars more room."""
    words = _short(label).split()
    half = (len(words) + 1) // 2
    return "\n".join(filter(None, (" ".join(words[:half]), " ".join(words[half:]))))


def _figure(height_inches: float) -> tuple[Figure, Axes]:
    figure, rows = _figures(height_inches, (1,))
    return figure, rows[0]


def _figures(
    height_inches: float, ratios: tuple[float, ...], share_x: bool = True
) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    grid: Any = figure.subplots(len(ratios), 1, squeeze=False, sharex=share_x, height_ratios=ratios)
    return figure, [row[0] for row in grid]


def _svg(figure: Figure, name: str, words: str) -> str:
    """Write a figure as an SVG element that can stand in a page beside others."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) xmlns="[^"]*"', r"\1", text, count=1)
    for placeholder, css in _CSS_BY_PLACEHOLDER.items():
        text = text.replace(placeholder, css)
    return text.replace("<svg", f'<svg role="img" aria-label="{_attribute(words)}"', 1)


def _attribute(words: str) -> str:
    from html import escape

    return escape(words, quote=True)
