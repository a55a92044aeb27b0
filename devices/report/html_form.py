"""report.html: one page that needs nothing else, for a browser, a mail or a print."""

from __future__ import annotations

from pathlib import Path

from devices.report import runs, units, view, words
from devices.report.cards import cards, headline, summaries
from devices.report.drawing import COLOURS, series_index
from devices.report.page import render_page
from devices.report.plots import draw_plots, run_key, waterfall_key
from devices.report.record import Report, Run
from export.errors import OutputError
from export.records import StoredTensor
from runtimes.records import Environment

TEMPLATE = "report.html.jinja"
TIES_SHOWN = 12  # a longer table of ties is folded


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
    from markupsafe import Markup

    # The SVG is ours and matplotlib escapes its texts; everything else is escaped by jinja.
    plots = {name: (Markup(plot.svg), plot.words) for name, plot in draw_plots(report).items()}
    return render_page(
        TEMPLATE,
        report=report,
        plots=plots,
        headline=headline(report),
        summaries=summaries(report),
        cards=cards(report),
        variants=view.ordered_variants(report),
        formats=view.formats(report),
        all_runs=runs.ordered_runs(report),
        ties=sorted(report.ties.stored, key=lambda tensor: (not tensor.tied, -tensor.bytes)),
        ties_shown=TIES_SHOWN,
        series=lambda variant: series_index(report, variant),
        colours=COLOURS,
        run_key=run_key,
        waterfall_key=waterfall_key,
        uses_words=uses_words,
        band_name=band_name,
        clocks_words=clocks_words,
        units=units,
        view=view,
        runs=runs,
        words=words,
    )


def uses_words(tensor: StoredTensor) -> str:
    """Write who reads a stored tensor, and through which view."""
    uses = [f"{use.op} {use.where} ({use.view})".replace("  ", " ") for use in tensor.uses]
    aliases = [f"also named {name} ({through})" for name, through in tensor.aliases]
    return "; ".join(uses + aliases) or "not read by an operator"


def band_name(run: Run) -> str:
    """Name the band of a latency plot, which begins at the minimum where samples are absent."""
    timed = [each for result in run.results.values() for each in result.latency_ms_by_size.values()]
    lows = {view.latency_low(latency)[1] for latency in timed}
    highs = {"the median" if latency.p90 is None else "p90" for latency in timed}
    return f"{' or '.join(sorted(lows))} to {' or '.join(sorted(highs))}"


def clocks_words(environment: Environment) -> str:
    """Write the clocks of all cores, before and after: ``2.40 GHz, then 1.50 to 2.40 GHz``."""
    parts = []
    for clocks in filter(None, environment.clocks_hz):
        low, high = (f"{each / 1e9:.2f}" for each in (min(clocks), max(clocks)))
        parts.append(f"{low} GHz" if low == high else f"{low} to {high} GHz")
    return ", then ".join(parts)
