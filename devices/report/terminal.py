"""The report in a terminal: one table, and below it what a reader must know to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from devices.report.record import Report, Variant
from devices.report.units import (
    MISSING,
    RULE_LIMIT,
    format_bytes,
    format_error,
    format_ms,
    format_ratio,
    format_rule,
    format_share,
    keeps_rule,
)
from devices.report.view import (
    NAIVE,
    format_title,
    formats,
    invalid_words,
    label,
    latency_ratio,
    measured_for_target,
    measured_words,
    missing_words,
    option_words,
    ordered_variants,
    parameters_words,
    parity_words,
    resident_ratio,
    size_label,
    swept_sizes,
    variants_of,
)

Row = tuple[str, list[Text]]  # a figure's name, and a cell for each variant


def print_report(report: Report, console: Console, path: Path | None = None) -> None:
    """Print the whole report.

    Args:
        path: where the report was written; named in the last line.
    """
    console.print(_line(f"{report.model} for {report.target_title}", "bold"))
    console.print(_line(f"{parameters_words(report)}."))
    console.print()
    for part in _fitting_tables(report, console):
        console.print(part)
    _print_below(report, console)
    if path is not None:
        console.print(_line(f"Report: {path}"), soft_wrap=True)


def _fitting_tables(report: Report, console: Console) -> list[RenderableType]:
    """Choose the tables that show every cell in full on a console of this width.

    One table for all formats where it fits; otherwise one for each, below the format's title.
    """
    unbounded = console.options.update(width=10_000)
    variants = ordered_variants(report)
    tables = [_by_variant(report, _timed(report, variants))]
    if swept_sizes(report):
        tables.append(_by_variant(report, _stacked_times(report, variants)))
    several = len(formats(report)) > 1
    names = [_name(v, f"{v.format}\n{v.name}" if several else v.name) for v in variants]
    tables.append(_by_figure(report, variants, names))
    for table in tables:
        if console.measure(table, options=unbounded).maximum <= console.width:
            return [table]
    if not several:
        return [tables[-1]]
    parts: list[RenderableType] = []
    for each in formats(report):
        own = variants_of(report, each)
        names = [_name(variant, variant.name) for variant in own]
        parts += ["", _line(format_title(each), "bold"), _by_figure(report, own, names)]
    return parts[1:]


def _by_variant(report: Report, latency_rows: list[Row]) -> Table:
    table = _table()
    table.add_column("variant")
    variants = ordered_variants(report)
    rows = _rows(report, variants, latency_rows)
    for title, _ in rows:
        table.add_column(_stacked(title), justify="right")
    for index, variant in enumerate(variants):
        name = _name(variant, label(report, variant))
        table.add_row(name, *(cells[index] for _, cells in rows))
    return table


def _by_figure(report: Report, variants: Sequence[Variant], names: Sequence[Text]) -> Table:
    """Lay the table on its side, for terminals that are too narrow for a column a figure."""
    table = _table()
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for title, cells in _rows(report, variants, _timed(report, variants)):
        table.add_row(title, *(_on_one_line(cell) for cell in cells))
    return table


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _rows(report: Report, variants: Sequence[Variant], latency_rows: list[Row]) -> list[Row]:
    """Give all figures; a second line in a cell compares the first with something."""
    rows: list[Row] = [
        ("file size", [_cell(format_bytes(v.file_bytes)) for v in variants]),
        ("stored weights", [_cell(format_bytes(v.weight_bytes)) for v in variants]),
        ("ratio to unique", [_rule(v) for v in variants]),
    ]
    if any(v.memory for v in variants):
        rows += [
            ("resident weights", [_resident(report, v) for v in variants]),
            ("peak memory", [_peak(v) for v in variants]),
        ]
    if any(v.load_ms is not None for v in variants):
        rows.append(("load time", [_cell(format_ms(v.load_ms)) for v in variants]))
    rows += latency_rows
    if any(v.parity for v in variants):
        rows.append(("parity max rel", [_parity(v) for v in variants]))
    if any(v.parity and v.parity.top1_agreement is not None for v in variants):
        rows.append(("top-1 agreement", [_agreement(v) for v in variants]))
    if any(v.accuracy is not None for v in variants):
        rows.append(("accuracy", [_cell(format_share(v.accuracy)) for v in variants]))
    return rows


def _name(variant: Variant, words: str) -> Text:
    return Text(words, style="dim" if variant.name == NAIVE else "bold")


def _rule(variant: Variant) -> Text:
    return Text(format_rule(variant.ratio), style="green" if keeps_rule(variant.ratio) else "red")


def _resident(report: Report, variant: Variant) -> Text:
    if variant.memory is None:
        return _cell(MISSING)
    size = format_bytes(variant.memory.weights_resident_bytes)
    return _cell(size, format_ratio(resident_ratio(report, variant)))


def _peak(variant: Variant) -> Text:
    return _cell(format_bytes(variant.memory.peak_rss_bytes if variant.memory else None))


def _timed(report: Report, variants: Sequence[Variant]) -> list[Row]:
    """Give a row for each size that any of the variants was timed at."""
    return [
        (
            f"p50 {size_label(report, size)}",
            [_cell(*_latency(report, variant, size)) for variant in variants],
        )
        for size in swept_sizes(report)
        if any(size in variant.latency_ms_by_size for variant in variants)
    ]


def _stacked_times(report: Report, variants: Sequence[Variant]) -> list[Row]:
    """Give one row for all sizes; its cells have a line for each."""
    sizes = swept_sizes(report)
    digits = len(str(sizes[-1]))
    cells = []
    for variant in variants:
        lines = [(size, *_latency(report, variant, size)) for size in sizes]
        cells.append(
            Text("\n".join(f"{n:>{digits}}: {ms:>8} {ratio:>6}" for n, ms, ratio in lines))
        )
    return [(f"p50 by {report.axis}", cells)]


def _latency(report: Report, variant: Variant, size: int) -> tuple[str, str]:
    latency = variant.latency_ms_by_size.get(size)
    ratio = latency_ratio(report, variant, size)
    return format_ms(latency.p50 if latency else None), format_ratio(
        ratio
    ) if ratio is not None else ""


def _parity(variant: Variant) -> Text:
    return _cell(format_error(variant.parity.max_rel if variant.parity else None))


def _agreement(variant: Variant) -> Text:
    return _cell(format_share(variant.parity.top1_agreement if variant.parity else None))


def _cell(first: str, second: str = "") -> Text:
    return Text.assemble(first, ("\n" + second, "dim")) if second else Text(first)


def _on_one_line(cell: Text) -> Text:
    return Text("  ").join(cell.split("\n"))


def _stacked(name: str) -> str:
    head, _, tail = name.partition(" ")
    return f"{head}\n{tail}"


def _line(words: str, style: str = "") -> Text:
    """Make text that is printed as it stands: names of models are not markup."""
    return Text(words, style=style)


def _print_below(report: Report, console: Console) -> None:
    console.print()
    limit = format_ratio(RULE_LIMIT)
    console.print(
        _line(
            f"1 MB is 10^6 bytes. ok: at most {limit} of the unique parameters is stored; "
            "over: more. Beside resident weights: times the unique parameters. "
            f"Beside p50: times naive{' of the same format' if len(formats(report)) > 1 else ''}.",
            "dim",
        )
    )
    invalid = invalid_words(report)
    if invalid:
        console.print(_line(invalid, "bold red"))
    style = "" if measured_for_target(report) else "yellow"
    console.print(_line(measured_words(report), style))
    for variant in ordered_variants(report):
        name, options = label(report, variant), option_words(variant.session_options)
        console.print(_line(f"{name}: {variant.form}; {variant.runtime} with {options}."))
    parity = parity_words(report)
    if parity:
        console.print(_line(parity))
    for words in (*missing_words(report), *report.notes):
        console.print(_line(words))
