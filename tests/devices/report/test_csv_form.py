import csv
import dataclasses

import pytest

from devices.report.csv_form import csv_rows, write_csv
from export.errors import OutputError
from tests.devices.report.reports import with_result, without_figures


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_for_each_variant_and_size(report, tmp_path):
    path = tmp_path / "report.csv"
    write_csv(report, path)
    rows = read(path)
    assert [(row["setting"], row["size"]) for row in rows] == [
        (variant.name, str(size)) for variant in report.variants for size in (1, 2, 4, 8, 16)
    ]


def test_figures_are_exact(report, tmp_path):
    path = tmp_path / "report.csv"
    write_csv(report, path)
    row = read(path)[7]  # latency-first at batch 4
    naive, mine = report.variants[:2]
    (run,) = report.runs
    latency = run.of(mine).latency_ms_by_size[4]
    assert float(row["latency_p50_ms"]) == latency.p50
    assert float(row["latency_p99_ms"]) == latency.p99
    assert int(row["latency_runs"]) == latency.runs
    assert (
        float(row["latency_p50_to_naive"]) == latency.p50 / run.of(naive).latency_ms_by_size[4].p50
    )
    assert int(row["file_bytes"]) == mine.file_bytes
    assert int(row["grown_file_backed_bytes"]) == run.of(mine).memory.file_bytes
    assert int(row["weight_bytes"]) == mine.weight_bytes
    assert int(row["weights_resident_bytes"]) == run.of(mine).memory.weights_resident_bytes
    assert float(row["parity_max_rel"]) == mine.parity.max_rel
    assert row["measured_on_target"] == "False"


def test_a_variant_without_latency_keeps_its_row(report):
    first = dataclasses.replace(report.variants[1], parity=None)
    report = without_figures(report, 0, first.id)
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
    assert len({(row["format"], row["setting"], row["size"]) for row in rows}) == 6 * 5
    assert {row["runtime"] for row in rows if row["format"] == "tflite"} == {"ai-edge-litert 2.1.0"}
    p50 = {
        (row["format"], row["setting"]): row["latency_p50_ms"] for row in rows if row["size"] == 8
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


def test_each_device_has_its_rows_and_an_estimate_its_own_column(several):
    rows = csv_rows(several)
    assert len(rows) == 3 * 3 * 5 + 3 * 2
    kinds = {(row["device"], row["kind"], row["emulated"], row["threads"]) for row in rows}
    assert kinds == {
        ("local", "measured", False, 1), ("pi-on-desk", "measured", False, 4),
        ("virt", "measured", True, 1), ("raspberry-pi-5", "estimated", False, 4),
    }  # fmt: skip
    for row in rows:
        estimated = row["kind"] == "estimated"
        assert (row["estimate_ms"] is not None) == estimated
        assert (row["latency_p50_ms"] is None) == estimated
        assert (row["latency_p50_to_naive"] is None) == estimated
        assert row["measured_on_target"] == (row["device"] == "pi-on-desk")
    (there,) = {row["device_parity_max_rel"] for row in rows} - {None}
    assert there == 6.13e-06


def test_what_is_invalid_or_failed_says_why(several):
    report = with_result(several, 2, "onnx naive", invalid="it throttled")
    report = without_figures(report, 3, "onnx naive")
    report = with_result(report, 3, "onnx naive", failure="no memory")
    rows = [row for row in csv_rows(report) if row["setting"] == "naive"]
    assert {row["invalid"] for row in rows if row["device"] == "pi-on-desk"} == {"it throttled"}
    assert [row["failure"] for row in rows if row["device"] == "virt"] == ["no memory"]
    for row in csv_rows(report):
        if row["device"] == "pi-on-desk":
            assert row["latency_p50_to_naive"] is None


def test_a_variant_that_no_device_tried_keeps_its_row(report):
    rows = csv_rows(dataclasses.replace(report, runs=()))
    assert [row["setting"] for row in rows] == [v.name for v in report.variants]
    assert {(row["device"], row["size"]) for row in rows} == {(None, None)}
