import csv
import dataclasses

import pytest

from devices.report.csv_form import csv_rows, write_csv
from export.errors import OutputError


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_for_each_variant_and_size(report, tmp_path):
    path = tmp_path / "report.csv"
    write_csv(report, path)
    rows = read(path)
    assert [(row["variant"], row["size"]) for row in rows] == [
        (variant.name, str(size)) for variant in report.variants for size in (1, 2, 4, 8, 16)
    ]


def test_figures_are_exact(report, tmp_path):
    path = tmp_path / "report.csv"
    write_csv(report, path)
    row = read(path)[7]  # latency-first at batch 4
    naive, mine = report.variants[:2]
    latency = mine.latency_ms_by_size[4]
    assert float(row["latency_p50_ms"]) == latency.p50
    assert float(row["latency_p99_ms"]) == latency.p99
    assert int(row["latency_runs"]) == latency.runs
    assert float(row["latency_p50_to_naive"]) == latency.p50 / naive.latency_ms_by_size[4].p50
    assert int(row["file_bytes"]) == mine.file_bytes
    assert int(row["grown_file_backed_bytes"]) == mine.memory.file_bytes
    assert int(row["weight_bytes"]) == mine.weight_bytes
    assert int(row["weights_resident_bytes"]) == mine.memory.weights_resident_bytes
    assert float(row["parity_max_rel"]) == mine.parity.max_rel
    assert row["measured_on_target"] == "False"


def test_a_variant_without_latency_keeps_its_row(report):
    first = dataclasses.replace(
        report.variants[1], latency_ms_by_size={}, memory=None, parity=None, load_ms=None
    )
    rows = csv_rows(dataclasses.replace(report, variants=(first,)))
    assert len(rows) == 1
    assert rows[0]["file_bytes"] == first.file_bytes
    assert rows[0]["size"] is None
    assert rows[0]["latency_p50_ms"] is None
    assert rows[0]["peak_rss_bytes"] is None


def test_names_with_commas_and_lines_survive(report, tmp_path):
    path = tmp_path / "report.csv"
    write_csv(dataclasses.replace(report, model='a,"b"\nc'), path)
    assert read(path)[0]["model"] == 'a,"b"\nc'


def test_formats_are_told_apart_and_compared_within(both):
    rows = csv_rows(both)
    assert len({(row["format"], row["variant"], row["size"]) for row in rows}) == 6 * 5
    assert {row["runtime"] for row in rows if row["format"] == "tflite"} == {"ai-edge-litert 2.1.0"}
    p50 = {
        (row["format"], row["variant"]): row["latency_p50_ms"] for row in rows if row["size"] == 8
    }
    for row in rows:
        if row["size"] == 8:
            expected = row["latency_p50_ms"] / p50[row["format"], "naive"]
            assert row["latency_p50_to_naive"] == expected


def test_a_report_without_variants_is_refused(report):
    with pytest.raises(ValueError, match="at least one variant"):
        csv_rows(dataclasses.replace(report, variants=()))


def test_a_missing_folder_is_an_output_error(report, tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        write_csv(report, tmp_path / "none" / "report.csv")
