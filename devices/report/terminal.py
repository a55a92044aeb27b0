"""The report in a terminal: one table, and below it what a reader must know to trust it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
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
    invalid_words,
    latency_ratio,
    measured_for_target,
    measured_words,
    missing_words,
    option_words,
    ordered_variants,
    parameters_words,
    resident_ratio,
    size_label,
    swept_sizes,
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
    console.print(_fitting_table(report, console))
    _print_below(report, console)
    if path is not None:
        console.print(_line(f"Report: {path}"), soft_wrap=True)


def _fitting_table(report: Report, console: Console) -> Table:
    """Choose the table that shows every cell in full on a console of this width."""
    sizes = swept_sizes(report)
    timed = [(f"p50 {size_label(report, size)}", _latencies(report, size)) for size in sizes]
    stacked = [(f"p50 by {report.axis}", _latencies_stacked(report))] if sizes else []
    unbounded = console.options.update(width=10_000)
    for latency_rows in (timed, stacked):
        table = _by_variant(report, latency_rows)
        if console.measure(table, options=unbounded).maximum <= console.width:
            return table
    return _by_figure(report, timed)


def _by_variant(report: Report, latency_rows: list[Row]) -> Table:
    table = _table()
    table.add_column("variant")
    rows = _rows(report, latency_rows)
    for name, _ in rows:
        table.add_column(_stacked(name), justify="right")
    for index, variant in enumerate(ordered_variants(report)):
        table.add_row(_name(variant), *(cells[index] for _, cells in rows))
    return table


def _by_figure(report: Report, latency_rows: list[Row]) -> Table:
    """Lay the table on its side, for terminals that are too narrow for a column a figure."""
    table = _table()
    table.add_column("")
    for variant in ordered_variants(report):
        table.add_column(_name(variant), justify="right", overflow="fold")
    for name, cells in _rows(report, latency_rows):
        table.add_row(name, *(_on_one_line(cell) for cell in cells))
    return table


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _rows(report: Report, latency_rows: list[Row]) -> list[Row]:
    """Give all figures; a second line in a cell compares the first with something."""
    variants = ordered_variants(report)
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


def _name(variant: Variant) -> Text:
    return Text(variant.name, style="dim" if variant.name == NAIVE else "bold")


def _rule(variant: Variant) -> Text:
    return Text(format_rule(variant.ratio), style="green" if keeps_rule(variant.ratio) else "red")


def _resident(report: Report, variant: Variant) -> Text:
    if variant.memory is None:
        return _cell(MISSING)
    size = format_bytes(variant.memory.weights_resident_bytes)
    return _cell(size, format_ratio(resident_ratio(report, variant)))


def _peak(variant: Variant) -> Text:
    return _cell(format_bytes(variant.memory.peak_rss_bytes if variant.memory else None))


def _latencies(report: Report, size: int) -> list[Text]:
    return [_cell(*_latency(report, variant, size)) for variant in ordered_variants(report)]


def _latencies_stacked(report: Report) -> list[Text]:
    """Give one cell for each variant, with a line for each size."""
    sizes = swept_sizes(report)
    digits = len(str(sizes[-1]))
    cells = []
    for variant in ordered_variants(report):
        lines = [(size, *_latency(report, variant, size)) for size in sizes]
        cells.append(
            Text("\n".join(f"{n:>{digits}}: {ms:>8} {ratio:>6}" for n, ms, ratio in lines))
        )
    return cells


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
            "Beside p50: times naive.",
            "dim",
        )
    )
    invalid = invalid_words(report)
    if invalid:
        console.print(_line(invalid, "bold red"))
    style = "" if measured_for_target(report) else "yellow"
    console.print(_line(measured_words(report), style))
    for variant in ordered_variants(report):
        options = option_words(variant.session_options)
        console.print(_line(f"{variant.name}: {variant.form}; {variant.runtime} with {options}."))
    parity = next((v.parity for v in report.variants if v.parity), None)
    if parity:
        console.print(
            _line(
                f"Parity: against torch on {parity.inputs} inputs ({parity.source}), "
                f"evaluated by {parity.reference}."
            )
        )
    for words in (*missing_words(report), *report.notes):
        console.print(_line(words))
