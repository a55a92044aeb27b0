"""Figures of a tool that prints a summary, and not every run, in every form of a report."""

import dataclasses

import pytest

from devices.report.csv_form import csv_rows
from devices.report.html_form import band_name, write_html
from devices.report.json_form import read_json, write_json
from devices.report.view import latency_high


def summarised(report):
    """Leave of each latency what `benchmark_model` prints."""
    gone = {"p90": None, "p99": None, "samples": ()}
    runs = []
    for run in report.runs:
        results = {
            name: dataclasses.replace(
                result,
                latency_ms_by_size={
                    size: dataclasses.replace(latency, **gone)
                    for size, latency in result.latency_ms_by_size.items()
                },
            )
            for name, result in run.results.items()
        }
        runs.append(dataclasses.replace(run, results=results))
    return dataclasses.replace(report, runs=tuple(runs))


@pytest.fixture
def short(report):
    return summarised(report)


def test_what_is_not_known_stays_empty(short, tmp_path):
    assert {row["latency_p90_ms"] for row in csv_rows(short)} == {None}
    write_json(short, tmp_path / "report.json")
    assert read_json(tmp_path / "report.json") == short


def test_the_band_of_a_plot_ends_at_the_median(short, tmp_path):
    (run,) = short.runs
    latency = next(iter(next(iter(run.results.values())).latency_ms_by_size.values()))
    assert latency_high(latency) == latency.p50
    assert band_name(run) == "min to the median"
    write_html(short, tmp_path / "report.html")
    assert "min to the median" in (tmp_path / "report.html").read_text()
