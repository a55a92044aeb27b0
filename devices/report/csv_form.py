"""report.csv: one row for each variant and size, units in the column names.

``variant`` is the setting; with ``format`` it tells variants apart. ``latency_p50_to_naive`` is to
the naive export of the same format.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from devices.report.record import Report, Variant
from devices.report.view import latency_ratio, measured_for_target, resident_ratio
from export.errors import OutputError
from runtimes.records import Latency

_LATENCY = ("runs", "warmup", "first", "min", "p50", "p90", "p95", "p99", "mean", "std")
_MEMORY_BY_COLUMN = {  # the file-backed part of memory must not take the column of the file size
    "baseline_rss_bytes": "baseline_rss_bytes",
    "loaded_rss_bytes": "loaded_rss_bytes",
    "settled_rss_bytes": "settled_rss_bytes",
    "peak_rss_bytes": "peak_rss_bytes",
    "grown_anonymous_bytes": "anonymous_bytes",
    "grown_file_backed_bytes": "file_bytes",
    "weights_resident_bytes": "weights_resident_bytes",
}


def write_csv(report: Report, path: Path) -> None:
    """Write a report as a table for other programs; what was not measured stays empty.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = csv_rows(report)
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise OutputError(f"report '{path}' cannot be written: {error.strerror}") from error


def csv_rows(report: Report) -> list[dict[str, Any]]:
    """Give the rows of the CSV, all with the same columns.

    Raises:
        ValueError: the report has no variants.
    """
    if not report.variants:
        raise ValueError("a report needs at least one variant")
    rows = []
    for variant in report.variants:
        timed: list[tuple[int | None, Latency | None]] = [
            *sorted(variant.latency_ms_by_size.items())
        ]
        rows += [_row(report, variant, *pair) for pair in timed or [(None, None)]]
    return rows


def _row(
    report: Report, variant: Variant, size: int | None, latency: Latency | None
) -> dict[str, Any]:
    memory, parity = variant.memory, variant.parity
    row: dict[str, Any] = {
        "model": report.model,
        "target": report.target,
        "device": report.device,
        "measured_on": report.measured_on,
        "measured_on_target": measured_for_target(report),
        "threads": report.threads,
        "variant": variant.name,
        "format": variant.format,
        "runtime": variant.runtime,
        "precision": variant.precision,
        "file_bytes": variant.file_bytes,
        "weight_bytes": variant.weight_bytes,
        "ratio_to_unique": variant.ratio,
        "load_ms": variant.load_ms,
    }
    for column, name in _MEMORY_BY_COLUMN.items():
        row[column] = getattr(memory, name) if memory else None
    row["weights_resident_to_unique"] = resident_ratio(report, variant)
    row |= {
        "parity_max_abs": parity.max_abs if parity else None,
        "parity_max_rel": parity.max_rel if parity else None,
        "parity_cosine": parity.cosine if parity else None,
        "parity_psnr_db": parity.psnr_db if parity else None,
        "parity_inputs": parity.inputs if parity else None,
        "top1_agreement": parity.top1_agreement if parity else None,
        "accuracy": variant.accuracy,
        "axis": report.axis,
        "size": size,
    }
    for name in _LATENCY:
        unit = "" if name in ("runs", "warmup") else "_ms"
        row[f"latency_{name}{unit}"] = getattr(latency, name) if latency else None
    row["latency_p50_to_naive"] = latency_ratio(report, variant, size) if size else None
    return row
