"""report.html: one page that needs nothing else, for a browser, a mail or a print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.report import units, view
from devices.report.plots import COLOURS, draw_plots, series_index, waterfall_key
from devices.report.record import Report, Variant
from export.errors import OutputError
from export.records import StoredTensor

TEMPLATE = "report.html.jinja"
TIES_SHOWN = 12  # a longer table of ties is folded


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a card: a variant's figure, and a second one with what it stands for."""

    series: int
    name: str
    value: str
    second: str = ""
    second_words: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """A key figure: of our first variant in large, of the others below it, format by format.

    Args:
        good: whether the large figure is as it should be; None where nothing says so.
    """

    title: str
    lead: Line
    others: tuple[Line, ...]
    good: bool | None = None


def write_html(report: Report, path: Path) -> None:
    """Write a report as a web page.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    page = render_html(report)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"report '{path}' cannot be written: {error.strerror}") from error


def render_html(report: Report) -> str:
    """Give the page; the same report gives the same text.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The SVG is ours and matplotlib escapes its texts; everything else is escaped by jinja.
    plots = {name: (Markup(plot.svg), plot.words) for name, plot in draw_plots(report).items()}
    return environment.get_template(TEMPLATE).render(
        report=report,
        plots=plots,
        headline=headline(report),
        summaries=summaries(report),
        cards=cards(report),
        variants=view.ordered_variants(report),
        formats=view.formats(report),
        sizes=view.swept_sizes(report),
        ties=sorted(report.ties.stored, key=lambda tensor: (not tensor.tied, -tensor.bytes)),
        ties_shown=TIES_SHOWN,
        series=lambda variant: series_index(report, variant),
        colours=COLOURS,
        waterfall_key=waterfall_key,
        uses_words=uses_words,
        band_name=_band_name(report),
        units=units,
        view=view,
    )


def headline(report: Report) -> str:
    """Say in one sentence what the file weighs, in each format."""
    formats = view.formats(report)
    if not formats:
        return "Nothing was exported."
    if len(formats) == 1:
        return _weighs(report, formats[0], "file")
    return ", ".join(_weighs(report, each, f"{view.format_title(each)} file") for each in formats)


def _weighs(report: Report, format_name: str, file: str) -> str:
    variants = view.variants_of(report, format_name)
    shown = next((v for v in variants if v.name != view.NAIVE), variants[0])
    naive = view.naive_variant(report, shown)
    size = units.format_bytes(shown.file_bytes)
    if naive is None or shown is naive:
        return f"{size} in the {file} ({shown.name})"
    return f"{size} instead of {units.format_bytes(naive.file_bytes)} in the {file}"


def summaries(report: Report) -> tuple[tuple[Variant, str], ...]:
    """Say for each variant of ours what it gains and what it costs, beside naive."""
    found = []
    for variant in view.ours(report):
        naive = view.naive_variant(report, variant)
        if naive is None:
            continue
        parts = []
        if variant.memory and naive.memory:
            mine, theirs = (
                units.format_bytes(v.memory.weights_resident_bytes)
                for v in (variant, naive)
                if v.memory
            )
            parts.append(f"{mine} of weights in memory instead of {theirs}")
        timed = sorted(set(variant.latency_ms_by_size) & set(naive.latency_ms_by_size))
        if timed:
            mine, theirs = (
                units.format_ms(v.latency_ms_by_size[timed[0]].p50) for v in (variant, naive)
            )
            size = view.size_label(report, timed[0])
            parts.append(f"{mine} a run at {size} instead of {theirs}")
        if parts:
            found.append((variant, "; ".join(parts)))
    return tuple(found)


def cards(report: Report) -> tuple[Card, ...]:
    """Give the key figures that the report has; each shows all variants, so none is picked."""
    makers: tuple[tuple[str, Callable[[Report, Variant], tuple[str, ...] | None]], ...] = (
        ("Stored weights to unique", _stored),
        ("File size", _file),
        ("Weights in memory", _resident),
        (_latency_title(report), _latency),
        (f"Largest difference to {view.reference_of(report)}", _parity),
        ("Accuracy", _accuracy),
    )
    found = (_card(report, title, make) for title, make in makers)
    return tuple(card for card in found if card is not None)


def uses_words(tensor: StoredTensor) -> str:
    """Write who reads a stored tensor, and through which view."""
    uses = [f"{use.op} {use.where} ({use.view})".replace("  ", " ") for use in tensor.uses]
    aliases = [f"also named {name} ({through})" for name, through in tensor.aliases]
    return "; ".join(uses + aliases) or "not read by an operator"


def _card(
    report: Report, title: str, make: Callable[[Report, Variant], tuple[str, ...] | None]
) -> Card | None:
    lines = []
    for variant in _naive_last(report):
        figures = make(report, variant)
        if figures is not None:
            name = view.label(report, variant)
            lines.append((variant, Line(series_index(report, variant), name, *figures)))
    if not lines:
        return None
    lead = lines[0][0]
    good = units.keeps_rule(lead.ratio) if make is _stored else None
    return Card(title, lines[0][1], tuple(line for _, line in lines[1:]), good)


def _naive_last(report: Report) -> tuple[Variant, ...]:
    order = view.formats(report)
    return tuple(
        sorted(report.variants, key=lambda v: (order.index(v.format), v.name == view.NAIVE))
    )


def _stored(_: Report, variant: Variant) -> tuple[str, ...]:
    return units.format_ratio(variant.ratio), units.format_bytes(variant.weight_bytes)


def _file(report: Report, variant: Variant) -> tuple[str, ...]:
    naive = view.naive_variant(report, variant)
    ratio = variant.file_bytes / naive.file_bytes if naive and naive.file_bytes else None
    return units.format_bytes(variant.file_bytes), *_to_naive(variant, ratio)


def _resident(report: Report, variant: Variant) -> tuple[str, ...] | None:
    if variant.memory is None:
        return None
    size = units.format_bytes(variant.memory.weights_resident_bytes)
    return size, units.format_ratio(view.resident_ratio(report, variant)), "unique"


def _latency(report: Report, variant: Variant) -> tuple[str, ...] | None:
    sizes = view.swept_sizes(report)
    if not sizes or sizes[0] not in variant.latency_ms_by_size:
        return None
    median = units.format_ms(variant.latency_ms_by_size[sizes[0]].p50)
    return median, *_to_naive(variant, view.latency_ratio(report, variant, sizes[0]))


def _latency_title(report: Report) -> str:
    sizes = view.swept_sizes(report)
    return f"Median latency, {view.size_label(report, sizes[0])}" if sizes else ""


def _parity(_: Report, variant: Variant) -> tuple[str, ...] | None:
    if variant.parity is None:
        return None
    agreement = variant.parity.top1_agreement
    second = () if agreement is None else (units.format_share(agreement), "same top-1")
    return units.format_error(variant.parity.max_rel), *second


def _accuracy(_: Report, variant: Variant) -> tuple[str, ...] | None:
    return None if variant.accuracy is None else (units.format_share(variant.accuracy),)


def _to_naive(variant: Variant, ratio: float | None) -> tuple[str, ...]:
    if ratio is None or variant.name == view.NAIVE:
        return ()
    return units.format_ratio(ratio), "naive"


def _band_name(report: Report) -> str:
    """Name the band of the latency plot, which begins at the minimum where samples are absent."""
    names: set[str] = set()
    for variant in report.variants:
        measured: Any = variant.latency_ms_by_size.values()
        names |= {view.latency_low(latency)[1] for latency in measured}
    return f"{' or '.join(sorted(names))} to p90"
