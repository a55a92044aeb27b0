import dataclasses

import pytest
from rich.console import Console

from devices.report.csv_form import write_csv
from devices.report.html_form import write_html
from devices.report.record import Result
from devices.report.runs import (
    device_words,
    first_measured,
    heading,
    invalid_reason,
    is_for_target,
    latency_ratio,
    ordered_runs,
    resident_ratio,
    swept_sizes,
)
from devices.report.terminal import print_report
from tests.devices.report.reports import make_run, with_result


def test_a_variant_is_held_against_the_naive_one_of_its_format(both):
    (run,) = both.runs
    for variant in both.variants:
        naive = run.results[f"{variant.format} naive"].latency_ms_by_size[2].p50
        mine = run.of(variant).latency_ms_by_size[2].p50
        assert latency_ratio(both, run, variant, 2) == mine / naive


def test_without_a_naive_one_of_its_format_there_is_no_ratio(both):
    kept = tuple(v for v in both.variants if v.id != "tflite naive")
    report = dataclasses.replace(both, variants=kept)
    ratios = {v.id: latency_ratio(report, report.runs[0], v, 2) for v in kept}
    assert [name for name, ratio in ratios.items() if ratio is None] == [
        "tflite latency-first", "tflite memory-first",
    ]  # fmt: skip


def test_ratios_stay_inside_a_run_and_estimates_have_none(several):
    variant = several.variants[1]
    ratios = [latency_ratio(several, run, variant, 4) for run in several.runs]
    p50s = [
        run.results["onnx latency-first"].latency_ms_by_size[4].p50
        / run.results["onnx naive"].latency_ms_by_size[4].p50
        if run.kind == "measured"
        else None
        for run in several.runs
    ]
    assert ratios == p50s
    assert resident_ratio(several, several.runs[1], variant) is None


def test_estimates_stand_last_and_never_lead(several):
    kinds = [run.kind for run in ordered_runs(several)]
    assert kinds == ["measured"] * 3 + ["estimated"]
    only = dataclasses.replace(several, runs=several.runs[1:2])
    assert first_measured(only) is None
    assert (
        first_measured(dataclasses.replace(several, runs=several.runs[1:])).device == "pi-on-desk"
    )


def test_an_emulated_device_is_named_so_and_is_not_of_the_target(several):
    assert [is_for_target(several, run) for run in several.runs] == [False, False, True, False]
    assert device_words(several.runs[3]) == "virt (QEMU cortex-a76), emulated"
    assert [heading(run) for run in several.runs[:3]] == [
        "this machine (AMD EPYC 7763), 1 thread",
        "estimated for Raspberry Pi 5, 4 threads",
        "pi-on-desk (Raspberry Pi 5 Model B Rev 1.0), 4 threads",
    ]


def test_an_invalid_figure_is_in_no_ratio(report):
    marked = with_result(report, 0, "onnx naive", invalid="it throttled")
    (run,) = marked.runs
    assert [invalid_reason(run, v) for v in marked.variants] == ["it throttled", "", ""]
    assert {latency_ratio(marked, run, v, 2) for v in marked.variants} == {None}


def test_a_machine_that_swapped_makes_all_its_figures_invalid(report):
    (run,) = report.runs
    run = dataclasses.replace(run, environment=dataclasses.replace(run.environment, swapped=True))
    assert {invalid_reason(run, v) for v in report.variants} == {"the machine swapped"}
    nothing = dataclasses.replace(run, results={v.id: Result() for v in report.variants})
    assert {invalid_reason(nothing, v) for v in report.variants} == {""}


def test_sizes_are_of_measurements_and_of_estimates(several):
    assert [swept_sizes(run, several.variants) for run in several.runs[:2]] == [
        (1, 2, 4, 8, 16), (1, 4),
    ]  # fmt: skip
    assert swept_sizes(None, several.variants) == ()


def test_measured_and_estimated_figures_are_never_mixed(report):
    (run,) = report.runs
    with pytest.raises(ValueError, match="the estimated run on 'local' has measured figures"):
        dataclasses.replace(run, kind="estimated")
    with pytest.raises(ValueError, match="the measured run on 'local' has estimated figures"):
        make_run({"onnx naive": Result(estimate_ms_by_size={1: 2.0})})


def test_two_runs_on_one_device_are_refused_but_for_its_estimate(report, several):
    with pytest.raises(ValueError, match="two runs are measured on local"):
        dataclasses.replace(report, runs=report.runs * 2)
    estimate = dataclasses.replace(several.runs[1], device="local")
    assert len(dataclasses.replace(report, runs=(*report.runs, estimate)).runs) == 2


@pytest.mark.parametrize(
    "result",
    [
        lambda old: Result(failure="no runtime reads it"),
        lambda old: dataclasses.replace(old, memory=None, load_ms=None),
    ],
    ids=["nothing was measured", "only latency was measured"],
)
def test_every_form_shows_a_second_device_that_tells_less(several, result, tmp_path, capsys):
    first, second, *others = several.runs
    less = {name: result(old) for name, old in second.results.items()}
    runs = (first, dataclasses.replace(second, results=less), *others)
    report = dataclasses.replace(several, runs=runs)
    write_html(report, tmp_path / "report.html")
    write_csv(report, tmp_path / "report.csv")
    print_report(report, Console(width=100))
    for text in ((tmp_path / "report.html").read_text(), capsys.readouterr().out):
        assert device_words(report.runs[1]) in text
