"""Figures that stand in a page and take their colours from it, and what all plots share.

The same figure gives the same bytes: ids are salted and no date is written. Colours are drawn as
placeholders and replaced by the page's CSS variables, so that a plot follows the page from light
to dark. Text stays text.
"""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any

from devices.report.record import Report, Variant
from devices.report.view import NAIVE, formats, ordered_variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES = 4.7  # 338 points: about one CSS pixel a point on a phone, so text stays readable
COLOURS = 6  # the page has --v0 to --v5
NAME_LENGTH = 24
NAIVE_COLOURS = (0, 5)  # the dim ones; a format each
OUR_COLOURS = (1, 2, 3, 4)
MARKERS = ("o", "s", "^", "D", "v", "X")
_LINES = ("-", "--", ":")

INK, SOFT, GRID = "#010101", "#010102", "#010103"
SERIES = tuple(f"#0202{i:02x}" for i in range(COLOURS))
_CSS_BY_PLACEHOLDER = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    GRID: "var(--grid)",
    **{colour: f"var(--v{i})" for i, colour in enumerate(SERIES)},
}
SETTINGS: dict[Any, Any] = {  # keys are a closed set in one version of matplotlib only
    "svg.fonttype": "none",
    "svg.hashsalt": "weightspace",
    "text.parse_math": False,  # a name with two dollar signs is a name
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


def series_index(report: Report, variant: Variant) -> int:
    """Give a variant's place in the palette, where naive ones are dim and ours are not."""
    naive = variant.name == NAIVE
    places = NAIVE_COLOURS if naive else OUR_COLOURS
    ids = [v.id for v in ordered_variants(report) if (v.name == NAIVE) == naive]
    return places[ids.index(variant.id) % len(places)]


def line_style(report: Report, variant: Variant) -> str:
    """Give a dash pattern a format each, for eyes that do not tell colours apart."""
    return _LINES[formats(report).index(variant.format) % len(_LINES)]


def legend_columns(report: Report) -> int:
    """Give how many names fit side by side: fewer where they begin with a format."""
    return 3 if len(formats(report)) == 1 else 2


def legend_inches(report: Report) -> float:
    """Give the height that a legend of more than the usual one row takes."""
    rows = math.ceil(len(report.variants) / legend_columns(report))
    return 0.0 if len(formats(report)) == 1 else 0.18 * (rows - 1)


def add_legend(figure: Figure, axes: Axes, columns: int) -> None:
    """Put the names of what the axes show above the plot."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=min(columns, len(handles)))


def short(name: str) -> str:
    """Cut a name that would push the bars out of the plot; the tables have it in full."""
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "\u2026"


def broken(label: str) -> str:
    """Break a label before its second half, to leave the bars more room."""
    words = short(label).split()
    half = (len(words) + 1) // 2
    return "\n".join(filter(None, (" ".join(words[:half]), " ".join(words[half:]))))


def one_axes(height_inches: float) -> tuple[Figure, Axes]:
    """Make a figure of one plot."""
    figure, rows = stacked_axes(height_inches, (1,))
    return figure, rows[0]


def stacked_axes(
    height_inches: float, ratios: tuple[float, ...], share_x: bool = True
) -> tuple[Figure, list[Axes]]:
    """Make a figure of plots below each other, with heights in these ratios."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    grid: Any = figure.subplots(len(ratios), 1, squeeze=False, sharex=share_x, height_ratios=ratios)
    return figure, [row[0] for row in grid]


def svg_of(figure: Figure, name: str, words: str) -> str:
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
