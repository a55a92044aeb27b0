"""The report in a terminal: one table, and below it what a reader must know to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from devices.report.record import Report, Run, Variant
from devices.report.rows import (
    Row,
    file_rows,
    latency_rows,
    memory_rows,
    parity_rows,
    run_rows,
    stacked_latency,
)
from devices.report.runs import (
    ESTIMATED,
    INVALID_MARK,
    first_measured,
    heading,
    invalid_reason,
    is_for_target,
    ordered_runs,
    swept_sizes,
)
from devices.report.units import format_ratio
from devices.report.view import (
    NAIVE,
    format_title,
    formats,
    group_of,
    group_title,
    groups,
    label,
    option_words,
    ordered_variants,
    parameters_words,
    parity_words,
)
from devices.report.words import (
    failure_words,
    invalid_words,
    measured_words,
    missing_words,
    warning_words,
)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one device; the heading of the first, which has the files too, is a column's."""

    heading: str
    rows: list[Row]


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
    variants = ordered_variants(report)
    parts = groups(report)
    several = len(parts) > 1
    names = [_name(v, f"{_prefix(v)}\n{v.name}" if several else v.name) for v in variants]
    choices: list[list[RenderableType]] = []
    if all(run is first_measured(report) for run in report.runs):
        choices = [[table] for table in _by_variant(report, variants)]
    choices.append(_by_figure(report, variants, names))
    for tables in choices:
        if all(_fits(table, console) for table in tables if isinstance(table, Table)):
            return tables
    if not several:
        return choices[-1]
    shown: list[RenderableType] = []
    for each in parts:
        own = group_of(report, each)
        names = [_name(variant, variant.name) for variant in own]
        shown += ["", _line(group_title(each), "bold"), *_by_figure(report, own, names)]
    return shown[1:]


def _fits(table: Table, console: Console) -> bool:
    unbounded = console.options.update(width=10_000)
    return console.measure(table, options=unbounded).maximum <= console.width


def _by_variant(report: Report, variants: Sequence[Variant]) -> list[Table]:
    """Give two tables with a row a variant, the second one narrower."""
    run = first_measured(report)
    times = [latency_rows(report, run, variants) if run else []]
    if run and swept_sizes(run, variants):
        times.append(stacked_latency(report, run, variants))
    tables = []
    for each in times:
        table = _table()
        table.add_column("variant")
        rows = _first_rows(report, run, variants, each)
        for title, _ in rows:
            table.add_column(_stacked(title), justify="right")
        for index, variant in enumerate(variants):
            name = _name(variant, label(report, variant))
            table.add_row(name, *(cells[index] for _, cells in rows))
        tables.append(table)
    return tables


def _by_figure(
    report: Report, variants: Sequence[Variant], names: Sequence[Text]
) -> list[RenderableType]:
    """Lay the table on its side, with a block of rows for each device after the first."""
    blocks = _blocks(report, variants)
    cells = [
        [_on_one_line(row[1][i]).cell_len for block in blocks for row in block.rows]
        for i in range(len(variants))
    ]
    widths = [
        max([*each, *(len(line) for line in name.plain.split("\n"))])
        for each, name in zip(cells, names, strict=True)
    ]
    first = max(len(title) for block in blocks for title, _ in block.rows)
    parts: list[RenderableType] = []
    for block in blocks:
        table = _table()
        table.show_header = block is blocks[0]
        table.add_column(block.heading if block is blocks[0] else "", min_width=first)
        for name, width in zip(names, widths, strict=True):
            table.add_column(name, justify="right", overflow="fold", min_width=width)
        for title, row in block.rows:
            table.add_row(title, *(_on_one_line(cell) for cell in row))
        if block is not blocks[0]:
            parts += ["", _line(block.heading, "bold")]
        parts.append(table)
    return parts


def _blocks(report: Report, variants: Sequence[Variant]) -> list[Block]:
    """Give the files and the first measured device, then every other device that knows of them."""
    run = first_measured(report)
    times = latency_rows(report, run, variants) if run else []
    name = run.device if run and len(report.runs) > 1 else ""
    blocks = [Block(name, _first_rows(report, run, variants, times))]
    for other in ordered_runs(report):
        rows = run_rows(report, other, variants)
        if other is not run and rows:
            blocks.append(Block(heading(other), rows))
    return blocks


def _first_rows(
    report: Report, run: Run | None, variants: Sequence[Variant], times: list[Row]
) -> list[Row]:
    memory = memory_rows(report, run, variants) if run else []
    return [*file_rows(variants), *memory, *times, *parity_rows(variants)]


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _name(variant: Variant, words: str) -> Text:
    return Text(words, style="dim" if variant.name == NAIVE else "bold")


def _prefix(variant: Variant) -> str:
    return " ".join(filter(None, (variant.format, variant.qualifier)))


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
    console.print(_line(_legend(report), "dim"))
    runs = ordered_runs(report)
    for run in runs:
        for words in (*invalid_words(report, run), *failure_words(report, run)):
            console.print(_line(words, "bold red"))
    for each in runs or (None,):
        own = each is not None and is_for_target(report, each)
        console.print(_line(measured_words(report, each), "" if own else "yellow"))
        for words in warning_words(report, each) if each else ():
            console.print(_line(words, "yellow"))
            if each is not None and each.kind == ESTIMATED:
                console.print(_line("All its assumptions and sources stand in the report."))
                break
    for variant in ordered_variants(report):
        name, options = label(report, variant), option_words(variant.session_options)
        console.print(_line(f"{name}: {variant.form}; {variant.runtime} with {options}."))
    parity = parity_words(report)
    if parity:
        console.print(_line(parity))
    for words in (*missing_words(report), *report.notes):
        console.print(_line(words))


def _limits(report: Report) -> str:
    """Name the limit of the ratio: an engine has one of its own."""
    by_limit: dict[float, list[str]] = {}
    for variant in report.variants:
        title = format_title(variant.format)
        if title not in by_limit.setdefault(variant.limit, []):
            by_limit[variant.limit].append(title)
    if len(by_limit) == 1:
        return format_ratio(next(iter(by_limit)))
    parts = [f"{format_ratio(limit)} ({', '.join(names)})" for limit, names in by_limit.items()]
    return " or ".join(parts)


def _legend(report: Report) -> str:
    """Explain the words and the marks of the table."""
    words = (
        f"1 MB is 10^6 bytes. ok: at most {_limits(report)} of the unique parameters is "
        "stored; over: more. Beside resident weights: times the unique parameters. "
        f"Beside p50: times naive{' of the same format' if len(formats(report)) > 1 else ''}."
    )
    if any(invalid_reason(run, v) for run in report.runs for v in report.variants):
        words += f" {INVALID_MARK}: invalid, as said below; in no ratio to naive."
    return words
