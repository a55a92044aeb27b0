"""Reports held against each other: what trips the gate, what does not, and what is said of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from devices.compare import GATED, GROUPS, compare, enforce, load_report
from devices.compare_pairs import MEMORY_NOISE_BYTES, within_spread
from devices.report.json_form import write_json
from devices.report.record import Result
from export.errors import BadFileError, RegressionGateError, UserError
from tests.devices.report.reports import (
    latency_of,
    make_report,
    make_several_device_report,
    make_two_format_report,
    slower,
    with_result,
    without_figures,
)

OURS = "onnx latency-first"
LIMIT = 0.05


def tripped(old, new, limit=LIMIT, gated=GATED):
    return [(row.pair.variant, row.pair.figure) for row in compare(old, new, limit, gated).tripped]


def row_of(found, variant, figure, device=None):
    (row,) = [
        row
        for row in found.rows
        if (row.pair.variant, row.pair.figure) == (variant, figure)
        and (device is None or device in row.pair.device)
    ]
    return row


def with_variant(report, name, **changes):
    variants = tuple(replace(v, **changes) if v.id == name else v for v in report.variants)
    return replace(report, variants=variants)


def times(report, name, factor, spread_of=None):
    """Multiply every sample, or give every size the same samples."""
    by_size = {}
    for size, latency in report.runs[0].results[name].latency_ms_by_size.items():
        by_size[size] = spread_of or latency_of(latency.p50 * factor, 137, 900 + size)
    return with_result(report, 0, name, latency_ms_by_size=by_size)


@pytest.mark.parametrize("make", [make_report, make_two_format_report, make_several_device_report])
def test_a_report_holds_against_itself(make):
    found = compare(make(), make(), 0.0)
    assert found.rows
    assert found.tripped == found.warnings == ()
    enforce(found, GATED)
    assert all(row.change in (0, None) for row in found.rows)


@pytest.mark.parametrize(
    ("field", "figure"),
    [("file_bytes", "file size"), ("weight_bytes", "stored weights"), ("ratio", "stored / unique")],
)
def test_sizes_trip_exactly_beyond_the_limit(field, figure):
    old = with_variant(make_report(), OURS, **{field: 1000})
    at_limit = with_variant(old, OURS, **{field: 1050})
    beyond = with_variant(old, OURS, **{field: 1051})
    assert tripped(old, at_limit) == []
    assert tripped(old, beyond) == [(OURS, figure)]
    assert tripped(beyond, old) == []


def test_a_slower_median_trips_with_its_size_and_device_in_the_message():
    old = make_report()
    new = times(old, OURS, 1.6)
    assert tripped(old, new) == [(OURS, f"p50 at batch {n}") for n in (1, 2, 4, 8, 16)]
    with pytest.raises(RegressionGateError) as caught:
        enforce(compare(old, new, LIMIT))
    message = str(caught.value)
    assert message.startswith("5 beyond the limit of 5 %: ")
    assert "onnx latency-first, p50 at batch 16 on this machine (AMD EPYC 7763): " in message
    assert "\n" not in message
    assert caught.value.exit_code == 3


def test_a_faster_median_never_trips():
    assert tripped(make_report(), times(make_report(), OURS, 0.4), 0.0) == []


def test_a_difference_within_the_spread_of_the_runs_is_noise_and_is_said_to_be():
    old = make_report()
    found = compare(old, times(old, OURS, 1.02), 0.01)
    verdicts = [r.verdict for r in found.rows if r.pair.group == "latency" and not r.pair.shown]
    assert verdicts.count("noise") >= 4
    assert found.tripped == ()
    assert any("by no more than the measurement varies" in each for each in found.warnings)


def test_medians_are_near_while_one_lies_within_the_spread_of_the_other():
    narrow = latency_of(1.0, 500, 1)
    assert within_spread(narrow, narrow)
    assert not within_spread(narrow, latency_of(1.3, 500, 2))
    wide = replace(latency_of(1.3, 500, 2), samples=(0.9, *[1.3] * 3, 2.0))
    assert not within_spread(narrow, wide)
    wider = replace(wide, samples=(*[0.9] * 4, *[1.3] * 5, 2.0))
    assert within_spread(narrow, wider)
    without_samples = replace(wider, samples=(), min=0.9)
    assert within_spread(narrow, without_samples)


def test_memory_may_differ_by_what_processes_differ_and_no_more():
    old = make_report()
    memory = old.runs[0].results[OURS].memory
    assert LIMIT * memory.weights_resident_bytes < MEMORY_NOISE_BYTES  # else this shows nothing
    for more, expected in ((0, []), (1, [(OURS, "resident weights")])):
        size = memory.weights_resident_bytes + MEMORY_NOISE_BYTES + more
        grown = replace(memory, weights_resident_bytes=size)
        assert tripped(old, with_result(old, 0, OURS, memory=grown)) == expected
    peak = replace(memory, peak_rss_bytes=2 * memory.peak_rss_bytes)
    assert tripped(old, with_result(old, 0, OURS, memory=peak)) == [(OURS, "peak memory")]


def test_load_gates_only_where_it_is_asked_for():
    old = make_report()
    new = with_result(old, 0, OURS, load_ms=99.0)
    assert tripped(old, new) == []
    assert row_of(compare(old, new, LIMIT), OURS, "load").verdict == "shown"
    assert tripped(old, new, gated=("load",)) == [(OURS, "load")]


def test_only_the_gated_groups_trip():
    old = make_report()
    new = times(with_variant(old, OURS, file_bytes=10**9), OURS, 2)
    assert tripped(old, new, gated=("size",)) == [(OURS, "file size")]
    assert len(tripped(old, new, gated=("latency",))) == 5
    assert tripped(old, new, gated=("memory", "parity")) == []


def test_the_error_may_grow_up_to_what_an_export_allows():
    old = make_report()
    parity = old.variants[1].parity
    for max_rel, expected in (
        (9.9e-5, []),
        (1.1e-4, [(OURS, "error / scale")]),
        (math.nan, [(OURS, "error / scale")]),
    ):
        new = with_variant(old, OURS, parity=replace(parity, max_rel=max_rel))
        assert tripped(old, new) == expected


def test_what_a_device_computed_itself_is_held_to_the_same_error():
    old = make_several_device_report()
    parity = old.runs[2].results[OURS].parity
    new = with_result(old, 2, OURS, parity=replace(parity, max_rel=0.5))
    assert tripped(old, new) == [(OURS, "error / scale")]


def test_fewer_right_answers_trip():
    old = make_report()
    assert tripped(old, with_variant(old, OURS, accuracy=0.9137 * 0.96)) == []
    assert tripped(old, with_variant(old, OURS, accuracy=0.9137 * 0.94)) == [(OURS, "accuracy")]


def test_what_new_lacks_trips_by_its_name():
    old = make_several_device_report()
    without_artifact = replace(old, variants=old.variants[:2])
    assert tripped(old, without_artifact) == [("onnx memory-first", "artifact")]
    without_device = replace(old, runs=(*old.runs[:2], old.runs[3]))
    found = compare(old, without_device, LIMIT)
    assert {row.pair.figure for row in found.tripped} == {"memory", "latency"}
    assert all("pi-on-desk" in row.words() for row in found.tripped)
    unmeasured = without_figures(old, 2, OURS)
    assert {name for name, _ in tripped(old, unmeasured)} == {OURS}
    fewer = old.runs[0].results[OURS].latency_ms_by_size
    fewer = {size: fewer[size] for size in (1, 2, 4, 8)}
    new = with_result(old, 0, OURS, latency_ms_by_size=fewer)
    assert tripped(old, new) == [(OURS, "p50 at batch 16")]


def test_a_lost_device_does_not_trip_where_the_gate_looks_at_sizes_alone():
    old = make_several_device_report()
    assert tripped(old, replace(old, runs=()), gated=("size",)) == []


def test_a_failure_on_a_device_is_named_with_its_reason():
    old = make_report()
    failed = Result(failure="operator Gelu is not known")
    run = old.runs[0]
    new = replace(old, runs=(replace(run, results=run.results | {OURS: failed}),))
    rows = compare(old, new, LIMIT).tripped
    assert len(rows) == 7
    assert all("operator Gelu is not known" in row.words() for row in rows)


def test_what_old_lacks_is_new_and_never_trips():
    new = make_several_device_report()
    old = replace(new, variants=new.variants[:2], runs=new.runs[:1])
    found = compare(old, new, 0.0)
    assert found.tripped == ()
    assert row_of(found, "onnx memory-first", "artifact").verdict == "new"
    assert row_of(found, OURS, "p50 at batch 1", "pi-on-desk").verdict == "new"


def test_estimates_are_shown_and_never_gate():
    old = make_several_device_report()
    new = with_result(old, 1, OURS, estimate_ms_by_size={1: 1e6, 4: 1e6})
    found = compare(old, new, LIMIT)
    assert found.tripped == ()
    rows = [row for row in found.rows if row.pair.new == 1e6]
    assert [(row.verdict, row.reason) for row in rows] == [("shown", "estimated")] * 2
    assert compare(old, replace(old, runs=(old.runs[0], *old.runs[2:])), LIMIT).tripped == ()


@pytest.mark.parametrize("side", ["old", "new"])
@pytest.mark.parametrize("cause", ["invalid", "throttled", "swapped"])
def test_invalid_runs_are_shown_and_never_gate(cause, side):
    old, new = make_report(), times(make_report(), OURS, 3)
    changed = new if side == "new" else old
    if cause == "invalid":
        changed = with_result(changed, 0, OURS, invalid="the governor changed")
    else:
        run = changed.runs[0]
        environment = replace(run.environment, **{cause: True})
        changed = replace(changed, runs=(replace(run, environment=environment),))
    found = compare(*((changed, new) if side == "old" else (old, changed)), LIMIT)
    assert found.tripped == ()
    row = row_of(found, OURS, "p50 at batch 1")
    assert row.verdict == "shown"
    assert row.reason.startswith(f"invalid in {side.upper()}")


def test_the_naive_export_is_a_reference_and_never_gates():
    old = make_report()
    new = times(with_variant(old, "onnx naive", file_bytes=10**9), "onnx naive", 3)
    assert tripped(old, new) == []
    without = replace(old, variants=old.variants[1:])
    assert tripped(old, without) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cpu": "Cortex-A72"}, "cpu AMD EPYC 7763 in OLD, Cortex-A72 in NEW"),
        ({"emulated": True}, "emulated False in OLD, True in NEW"),
        ({"power_mode": "15W"}, "power mode None in OLD, 15W in NEW"),
    ],
)
def test_another_machine_under_the_same_name_is_not_held_to_the_times_of_the_first(changes, words):
    old = make_report()
    slow = times(old, OURS, 3)
    run = slow.runs[0]
    environment = replace(run.environment, **changes)
    found = compare(old, replace(slow, runs=(replace(run, environment=environment),)), LIMIT)
    assert found.tripped == ()
    assert any(words in each for each in found.warnings)
    assert "Nothing could be held against the limit of: memory, latency." in found.warnings


def test_other_threads_are_another_machine():
    old = make_report()
    new = replace(old, runs=(replace(times(old, OURS, 3).runs[0], threads=2),))
    assert tripped(old, new) == []


def test_a_group_that_must_be_judged_and_cannot_be_fails_the_gate():
    old = make_report()
    new = replace(old, runs=(replace(old.runs[0], threads=2),))
    found = compare(old, new, LIMIT, ("latency", "size"))
    enforce(found)
    with pytest.raises(RegressionGateError, match="latency: no figure could be held"):
        enforce(found, ("latency", "size"))


def test_without_a_limit_nothing_trips():
    old = make_report()
    enforce(compare(old, times(old, OURS, 3)), GROUPS)


def test_other_models_and_other_axes_are_refused():
    with pytest.raises(UserError, match="'vit_pe_fashion' and NEW one of 'other'"):
        compare(make_report(), make_report(model="other"))
    with pytest.raises(UserError, match="OLD sweeps the batch and NEW the sequence"):
        compare(make_report(), make_report(axis="sequence"))


def test_another_target_and_other_parameters_are_said():
    old = make_report()
    fewer = replace(old.ties, stored=old.ties.stored[1:])
    warnings = compare(old, make_report(target="raspberry-pi-4", ties=fewer), LIMIT).warnings
    assert "OLD was made for raspberry-pi-5, NEW for raspberry-pi-4." in warnings
    assert any("unique parameters in OLD and" in each for each in warnings)


def test_a_bundle_or_its_report_is_read_and_nothing_else(tmp_path):
    write_json(make_report(), tmp_path / "report.json")
    assert load_report(tmp_path) == load_report(tmp_path / "report.json") == make_report()
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(BadFileError, match="give a bundle"):
            load_report(path)


# ---- the command ------------------------------------------------------------------------------


@pytest.fixture
def reports(tmp_path):
    old = make_several_device_report()
    write_json(old, tmp_path / "old.json")
    write_json(with_result(times(old, OURS, 2), 2, OURS, **_fields(old)), tmp_path / "new.json")
    return tmp_path / "old.json", tmp_path / "new.json"


def _fields(report):
    result = slower(report.runs[2].results[OURS], 2.0)
    return {"latency_ms_by_size": result.latency_ms_by_size}


def test_the_command_shows_the_table_and_fails_with_three(cli, reports):
    outcome = cli("compare", *reports, "--fail-above", "5%")
    assert outcome.code == 3
    (line,) = outcome.error_lines
    assert line.startswith("error: 10 beyond the limit of 5 %: onnx latency-first, p50 at batch 1 ")
    assert line.count("pi-on-desk") == 5
    for words in ("over the limit", "estimated", "~", " est.", "resident weights", "="):
        assert words in outcome.out


def test_the_command_without_a_limit_only_shows(cli, reports):
    outcome = cli("compare", *reports)
    assert (outcome.code, outcome.error_lines) == (0, [])
    assert "over the limit" not in outcome.out
    assert cli("compare", *reports, "--fail-above", "5", "--only", "size,memory").code == 0


def test_json_goes_to_standard_output_even_when_the_gate_trips(cli, reports):
    outcome = cli("compare", *reports, "--fail-above", "5%", "--only", "latency", "--json")
    assert outcome.code == 3
    data = json.loads(outcome.out)
    assert (data["limit"], data["gated"], len(data["tripped"])) == (0.05, ["latency"], 10)
    row = next(row for row in data["rows"] if row["figure"] == "p50 at batch 1")
    assert set(row) == {
        "group", "figure", "variant", "device", "unit", "estimated", "old", "new", "change",
        "verdict", "reason",
    }  # fmt: skip


@pytest.mark.parametrize("limit", ["five", "-1%", "nan", "inf", ""])
def test_a_limit_that_is_no_percentage_is_refused(cli, reports, limit):
    outcome = cli("compare", *reports, f"--fail-above={limit}")
    assert outcome.code == 2
    assert "give one such as 5%" in outcome.error_lines[0]


def test_an_unknown_group_and_a_gate_without_a_limit_are_refused(cli, reports):
    outcome = cli("compare", *reports, "--fail-above", "5%", "--only", "latencies")
    assert outcome.code == 2
    assert "did you mean 'latency'" in outcome.error_lines[0]
    assert cli("compare", *reports, "--only", "latency").code == 2
