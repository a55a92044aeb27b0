"""The plots of one device's latency: over the sizes, and the distribution of the runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devices.report.drawing import (
    MARKERS,
    SERIES,
    add_legend,
    legend_columns,
    legend_inches,
    line_style,
    one_axes,
    series_index,
    short,
    stacked_axes,
)
from devices.report.record import Report, Run, Variant
from devices.report.runs import device_words, invalid_reason, latency_ratio, swept_sizes
from devices.report.units import format_ms
from devices.report.view import (
    NAIVE,
    label,
    latency_high,
    latency_low,
    ordered_variants,
    size_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ECDF_POINTS = 300  # enough for a curve of this width; the percentiles come from all samples


def draw_latency(report: Report, run: Run) -> tuple[Figure, str] | None:
    """Draw what a device took for a run, over the sizes where there are several.

    Returns:
        The figure and its content in words; None where nothing was timed.
    """
    sizes = swept_sizes(run, report.variants)
    if not sizes:
        return None
    listing = "; ".join(
        f"{size_label(report, size)}: "
        + ", ".join(
            f"{label(report, v)} {format_ms(run.of(v).latency_ms_by_size[size].p50)}"
            for v in ordered_variants(report)
            if size in run.of(v).latency_ms_by_size
        )
        for size in sizes
    )
    words = f"Median latency on {device_words(run)}. {listing}."
    return (
        _latency_at(report, run, sizes[0]) if len(sizes) == 1 else _latency_over(report, run)
    ), words


def _latency_at(report: Report, run: Run, size: int) -> Figure:
    """Draw the median and the band of each variant, where only one size was timed."""
    variants = [v for v in ordered_variants(report) if size in run.of(v).latency_ms_by_size]
    figure, axes = one_axes(0.9 + 0.42 * len(variants))
    for y, variant in enumerate(variants):
        latency = run.of(variant).latency_ms_by_size[size]
        index = series_index(report, variant)
        low, _ = latency_low(latency)
        axes.plot([low, latency_high(latency)], [y, y], color=SERIES[index], lw=7, alpha=0.35)
        axes.plot([latency.p50], [y], MARKERS[index], color=SERIES[index], ms=7)
        axes.text(latency.p50, y - 0.24, format_ms(latency.p50), ha="center", size=8.5)
    axes.set_yticks(range(len(variants)), [_name(report, run, v) for v in variants])
    axes.set_ylim(len(variants) - 0.5, -0.65)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"latency in ms, {short(size_label(report, size))}")
    axes.grid(axis="x")
    return figure


def _latency_over(report: Report, run: Run) -> Figure:
    """Draw the latency over the sizes, and below it the ratio to naive."""
    sizes = swept_sizes(run, report.variants)
    with_ratio = any(
        latency_ratio(report, run, variant, size) is not None
        for variant in report.variants
        for size in sizes
        if variant.name != NAIVE
    )
    height = (4.7 if with_ratio else 3.0) + legend_inches(report)
    figure, rows = stacked_axes(height, (2.2, 1) if with_ratio else (1,))
    axes = rows[0]
    for variant in ordered_variants(report):
        points = sorted(run.of(variant).latency_ms_by_size.items())
        if not points:
            continue
        xs = [float(size) for size, _ in points]
        index = series_index(report, variant)
        style: dict[str, Any] = {
            "color": SERIES[index],
            "marker": MARKERS[index],
            "ms": 4.5,
            "ls": line_style(report, variant),
        }
        axes.fill_between(
            xs,
            [latency_low(latency)[0] for _, latency in points],
            [latency_high(latency) for _, latency in points],
            color=SERIES[index],
            alpha=0.18,
            lw=0,
        )
        ys = [latency.p50 for _, latency in points]
        axes.plot(xs, ys, label=_name(report, run, variant), **style)
        ratios = [(x, latency_ratio(report, run, variant, int(x))) for x in xs]
        known = [(x, ratio) for x, ratio in ratios if ratio is not None]
        if with_ratio and known:
            rows[1].plot([x for x, _ in known], [ratio for _, ratio in known], **style)
    medians = [
        latency.p50 for v in report.variants for latency in run.of(v).latency_ms_by_size.values()
    ]
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
    add_legend(figure, axes, legend_columns(report))
    return figure


def _size_axis(report: Report, rows: list[Axes], sizes: tuple[int, ...]) -> None:
    for axes in rows:
        if sizes[0] > 0 and sizes[-1] / sizes[0] >= 8:
            axes.set_xscale("log", base=2)
        axes.grid()
        axes.set_xticks(list(sizes), [str(size) for size in sizes] if axes is rows[-1] else [])
        axes.minorticks_off()
    rows[-1].set_xlabel(short(report.axis))


def _plain_log_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_distribution(report: Report, run: Run) -> tuple[Figure, str] | None:
    """Draw how many of the runs took at most how long, at the first and the last size."""
    timed = [
        size
        for size in swept_sizes(run, report.variants)
        if any(_samples(run, variant, size) for variant in report.variants)
    ]
    if not timed:
        return None
    shown = timed if len(timed) == 1 else [timed[0], timed[-1]]
    height = 0.7 + 2.0 * len(shown) + legend_inches(report)
    figure, rows = stacked_axes(height, (1,) * len(shown), share_x=False)
    for axes, size in zip(rows, shown, strict=True):
        for variant in ordered_variants(report):
            samples = sorted(_samples(run, variant, size))
            if samples:
                xs, ys = _ecdf(samples)
                axes.plot(
                    xs,
                    ys,
                    color=SERIES[series_index(report, variant)],
                    ls=line_style(report, variant),
                    drawstyle="steps-post",
                    label=_name(report, run, variant),
                )
        axes.set_ylim(0, 103)
        axes.set_yticks([0, 50, 90, 100])
        axes.set_ylabel("% of runs")
        axes.grid()
        axes.set_xlabel(f"latency in ms at most, {short(size_label(report, size))}")
    add_legend(figure, rows[0], legend_columns(report))
    named = " and ".join(size_label(report, size) for size in shown)
    return (
        figure,
        f"Share of the runs on {device_words(run)} that took at most so long, at {named}.",
    )


def _name(report: Report, run: Run, variant: Variant) -> str:
    invalid = " (invalid)" if invalid_reason(run, variant) else ""
    return f"{short(label(report, variant))}{invalid}"


def _samples(run: Run, variant: Variant, size: int) -> tuple[float, ...]:
    latency = run.of(variant).latency_ms_by_size.get(size)
    return latency.samples if latency else ()


def _ecdf(ordered: list[float]) -> tuple[list[float], list[float]]:
    count = len(ordered)
    step = max(1, count // ECDF_POINTS)
    places = sorted({*range(0, count, step), count - 1})
    return [ordered[i] for i in places], [100 * (i + 1) / count for i in places]
