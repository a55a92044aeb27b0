"""The summaries of benchmark_model, as people recorded them; see tests/data/benchmark_model."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.benchmark_model import Summary, binary_of, parse_summary
from devices.device import Device
from export.errors import BadFileError, MeasureError, UserError

LOGS = Path(__file__).parent.parent / "data" / "benchmark_model"
MIB = 1 << 20

# Read by eye from the files.
SUMMARIES = {
    "tf-1.13": Summary(31.021, 4385.333, 1, 50, 87.415, 197.387, 116.375, 28.964),
    "tf-2.3": Summary(
        0.855, 49.06, 15, 50, 32.641, 34.005, 33.2094, 0.45, growth_bytes=round(12.8672 * MIB)
    ),
    "raspberry-pi": Summary(
        18.777, 64.791, 9, 50, 53.077, 60.727, 55.0432, 1.562, growth_bytes=round(18.7227 * MIB)
    ),
    "tf-2.13": Summary(
        0.53, 124.02, 5, 50, 111.222, 121.324, 116.066, 1.906, growth_bytes=round(12.1914 * MIB)
    ),
    "logcat-2026": Summary(
        92.318, 235.158, 3, 25, 140.071, 195.121, 145.528, 13.583, 141.253, 187.533,
        growth_bytes=round(73.4102 * MIB),
    ),
    "litert-2.1": Summary(
        23744.73, 7441.04, 1, 10, 7416.40, 7448.86, 7430.20, 9.92,
        growth_bytes=round(6391.74 * MIB),
    ),
}  # fmt: skip


def log(name: str) -> str:
    return (LOGS / f"{name}.txt").read_text()


def test_every_recorded_log_is_tried():
    assert {path.stem for path in LOGS.glob("*.txt")} == set(SUMMARIES)
    sources = (LOGS / "SOURCES.md").read_text()
    assert all(f"{name}.txt" in sources for name in SUMMARIES)


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_recorded_log_is_read(name):
    found = parse_summary(log(name))
    expected = SUMMARIES[name]
    for field in Summary.__dataclass_fields__:
        assert getattr(found, field) == pytest.approx(getattr(expected, field)), field


@pytest.mark.parametrize("name", SUMMARIES)
def test_lines_may_end_as_an_old_adb_ends_them(name):
    assert parse_summary(log(name).replace("\n", "\r\n")) == parse_summary(log(name))


def test_percentiles_that_are_not_printed_stay_unknown():
    latency = parse_summary(log("logcat-2026")).latency()
    assert (latency.p50, latency.p95) == (141.253, 187.533)
    assert latency.p90 is None
    assert latency.p99 is None
    assert latency.samples == ()


def test_a_tool_that_prints_no_median_is_refused():
    with pytest.raises(MeasureError, match="prints no median; name a newer one"):
        parse_summary(log("tf-2.13")).latency()


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_log_that_was_cut_off_gives_no_figures(name):
    lines = log(name).splitlines()
    needed = next(place for place, line in enumerate(lines) if "imings in us" in line or
                  "(std)" in line)  # fmt: skip
    for count in range(needed):
        with pytest.raises(MeasureError, match=r"gave no result; it said: [^\n]+$"):
            parse_summary("\n".join(lines[:count]))
    assert parse_summary("\n".join(lines[: needed + 1])).mean_ms == SUMMARIES[name].mean_ms


def test_runs_that_all_took_the_same_are_read():
    """Stat::OutputToStream prints one value where all are equal."""
    text = log("tf-2.13").replace(
        "count=50 first=121183 curr=115199 min=111222 max=121324 avg=116066 std=1906",
        "count=50 curr=115199 (all same)",
    )
    found = parse_summary(text)
    assert found.min_ms == found.max_ms == found.mean_ms == found.median_ms == 115.199
    assert found.std_ms == 0


def test_a_phone_without_a_binary_is_told_where_it_is_published(tmp_path):
    with pytest.raises(UserError, match=r"phone is measured by LiteRT's benchmark_model, which"):
        binary_of(Device("phone", "adb://"))
    with pytest.raises(BadFileError, match="absent, is not a file"):
        binary_of(Device("phone", "adb://", benchmark_binary=str(tmp_path / "absent")))
