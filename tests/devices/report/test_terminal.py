import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from devices.report.terminal import print_report
from devices.report.units import (
    format_bytes,
    format_error,
    format_estimate,
    format_ms,
    format_ratio,
)
from tests.devices.report.reports import with_result, without_figures


def shown(report, width, path=None, **options):
    file = io.StringIO()
    print_report(report, Console(file=file, width=width, **options), path)
    return file.getvalue()


def words_of(text):
    return " ".join(text.split())


def measured_figures(result):
    return [
        format_bytes(result.memory.weights_resident_bytes),
        format_bytes(result.memory.peak_rss_bytes),
        format_ms(result.load_ms),
        *(format_ms(latency.p50) for latency in result.latency_ms_by_size.values()),
    ]


@pytest.mark.parametrize("width", [80, 100, 120, 140, 200])
def test_every_figure_is_there(width, report):
    text = shown(report, width, Path("out/report.html"))
    words = words_of(text)
    for variant in report.variants:
        figures = [
            variant.name,
            format_bytes(variant.file_bytes),
            format_bytes(variant.weight_bytes),
            format_ratio(variant.ratio),
            format_error(variant.parity.max_rel),
            *measured_figures(report.runs[0].of(variant)),
        ]
        for figure in figures:
            assert figure in words, figure
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    assert "99.6 %" in words
    assert "91.4 %" in words


def test_the_rule_is_marked_in_words(report):
    text = shown(report, 200)
    assert "1.00x ok" in text
    assert "1.98x over" in text


def test_it_says_where_it_was_measured(report):
    words = words_of(shown(report, 80))
    assert "measured on this machine (AMD EPYC 7763), 1 thread." in words
    assert "Measured here; not a figure of the target (Raspberry Pi 5)." in words
    assert "Nothing was measured on the target (Raspberry Pi 5)." in words


@pytest.mark.parametrize("changes", [{"device": "pi-on-desk"}, {"target": "local"}])
def test_a_measured_target_is_not_disclaimed(changes, report):
    (run,) = report.runs
    run = dataclasses.replace(run, device=changes.pop("device", "local"))
    words = words_of(shown(dataclasses.replace(report, runs=(run,), **changes), 100))
    assert "not a figure of the target" not in words


def test_form_options_notes_and_path(report):
    words = words_of(shown(report, 100, Path("out/report.html")))
    assert "latency-first: MatMul, and Gemm with transB;" in words
    assert "session.disable_prepacking = 1, session.use_mmap = 1." in words
    assert "naive: two MatMuls" in words
    assert "with defaults of the runtime." in words
    assert "against torch on 256 inputs (fashion-mnist test), evaluated by onnxruntime." in words
    assert "The clock was not locked." in words
    assert "Report: out/report.html" in words


def test_an_invalid_measurement_is_said_to_be(report):
    (run,) = report.runs
    environment = dataclasses.replace(run.environment, swapped=True, throttled=True)
    run = dataclasses.replace(run, environment=environment)
    words = words_of(shown(dataclasses.replace(report, runs=(run,)), 100))
    assert "Invalid: the machine swapped and the processor throttled" in words


def test_no_colour_in_a_file(report):
    assert "\x1b" not in shown(report, 100)
    assert "\x1b[" in shown(report, 100, force_terminal=True, color_system="standard")


def test_names_are_not_markup(report):
    words = words_of(shown(dataclasses.replace(report, model="[red]net[/red] [/]"), 100))
    assert "[red]net[/red] [/] for Raspberry Pi 5" in words


def test_what_is_missing_is_said(report):
    bare = dataclasses.replace(report.variants[1], parity=None, accuracy=None)
    report = without_figures(report, 0, bare.id)
    words = words_of(shown(dataclasses.replace(report, variants=(bare,)), 80))
    assert "Not measured: latency." in words
    assert "Not measured: parity." in words
    assert "No naive export stands beside it." in words
    words = words_of(shown(dataclasses.replace(report, variants=(report.variants[0], bare)), 80))
    assert "Not measured for latency-first: memory." in words
    words = words_of(shown(dataclasses.replace(report, runs=()), 80))
    assert "Latency and memory: not measured." in words
    assert "Not measured: memory." in words


def figures_of(report, variant):
    return [
        format_bytes(variant.file_bytes),
        format_bytes(variant.weight_bytes),
        format_error(variant.parity.max_rel),
        *measured_figures(report.runs[0].of(variant)),
    ]


@pytest.mark.parametrize("width", [80, 120, 126, 140, 200])
def test_two_formats_are_shown_in_full(width, both):
    text = shown(both, width)
    words = words_of(text)
    for variant in both.variants:
        for figure in figures_of(both, variant):
            assert figure in words, figure
        assert f"{variant.format} {variant.name}: {variant.form};" in words
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width


def test_two_formats_at_80_columns_have_a_table_each(both):
    lines = shown(both, 80).splitlines()
    middle = lines.index("TFLite")
    for format_name, table in (
        ("onnx", lines[lines.index("ONNX") : middle]),
        ("tflite", lines[middle:]),
    ):
        assert table[1].split() == ["naive", "latency-first", "memory-first"]
        (row,) = (line for line in table if line.startswith("p50 batch 4"))
        medians = [
            both.runs[0].of(v).latency_ms_by_size[4].p50
            for v in both.variants
            if v.format == format_name
        ]
        assert [format_ms(median) in row for median in medians] == [True] * 3


def test_two_formats_at_140_columns_share_a_table(both):
    lines = shown(both, 140).splitlines()
    assert "ONNX" not in lines
    starts = [line for line in lines if line.startswith(("onnx ", "tflite ")) and " MB " in line]
    assert [" ".join(line.split()[:2]) for line in starts] == [
        "onnx naive", "onnx latency-first", "onnx memory-first",
        "tflite naive", "tflite latency-first", "tflite memory-first",
    ]  # fmt: skip


def test_a_table_on_its_side_holds_two_formats_where_it_fits(both):
    lines = shown(both, 120).splitlines()
    assert "ONNX" not in lines
    place = next(i for i, line in enumerate(lines) if line.split() == ["onnx"] * 3 + ["tflite"] * 3)
    assert lines[place + 1].split() == ["naive", "latency-first", "memory-first"] * 2


def test_every_runtime_that_evaluated_is_named(both):
    words = words_of(shown(both, 80))
    assert (
        "Parity: against torch on 256 inputs (fashion-mnist test), evaluated by onnxruntime and "
        "ai-edge-litert." in words
    )
    assert "Beside p50: times naive of the same format." in words


def test_parity_on_other_inputs_is_told_apart(both):
    variants = tuple(
        dataclasses.replace(v, parity=dataclasses.replace(v.parity, inputs=16))
        if v.format == "tflite"
        else v
        for v in both.variants
    )
    words = words_of(shown(dataclasses.replace(both, variants=variants), 80))
    assert "on 256 inputs (fashion-mnist test), evaluated by onnxruntime; on 16 inputs" in words


def test_a_format_without_naive_or_figures_is_named(both):
    kept = tuple(v for v in both.variants if v.id != "tflite naive")
    for variant in kept:
        if variant.format == "tflite":
            both = without_figures(both, 0, variant.id)
    text = shown(dataclasses.replace(both, variants=kept), 80)
    words = words_of(text)
    assert "No naive TFLite export stands beside ours." in words
    assert "Not measured for tflite latency-first, tflite memory-first: memory." in words
    assert text.count("p50 batch 4") == 1  # no row of dashes for the format that was not timed


def test_naive_stands_first(report):
    turned = dataclasses.replace(report, variants=report.variants[::-1])
    text = shown(turned, 200)
    assert text.index("naive") < text.index("memory-first")


def block_of(text, start):
    """The lines from the one that starts so to the next empty one."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(start))
    return lines[first : lines.index("", first)]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_each_device_has_a_block_of_rows_below_the_first(width, several):
    text = shown(several, width)
    assert max(len(line) for line in text.splitlines()) <= width
    (columns, *first) = block_of(text, "local ")
    assert columns.split() == ["local", "naive", "latency-first", "memory-first"]
    blocks = [
        first,
        block_of(text, "estimated for Raspberry Pi 5, 4 threads"),
        block_of(text, "pi-on-desk (Raspberry Pi 5 Model B Rev 1.0), 4 threads"),
        block_of(text, "virt (QEMU cortex-a76), emulated, 1 thread"),
    ]
    assert text.index("virt (QEMU") < text.index("estimated for")  # estimates stand last
    for run, block in zip(several.runs, blocks, strict=True):
        if run.kind == "measured":
            for result in run.results.values():
                for figure in measured_figures(result):
                    assert figure in "\n".join(block), figure
    assert len({len(line.rstrip()) for block in blocks for line in block[1:]}) == 1  # aligned


def test_rows_of_an_emulated_device_and_of_an_estimate_say_so(several):
    text = shown(several, 80)
    for line in block_of(text, "virt ")[1:]:
        assert ", emulated" in line
    rows = block_of(text, "estimated for")[1:]
    assert [row.split("  ")[0] for row in rows] == [
        "p50 batch 1, estimated", "p50 batch 4, estimated",
    ]  # fmt: skip
    for size, row in zip((1, 4), rows, strict=True):
        for result in several.runs[1].results.values():
            assert format_estimate(result.estimate_ms_by_size[size]) in row
        assert row.count("~") == row.count(" ms est.") == 3
        assert "x" not in row  # no ratio
    words = words_of(text)
    assert "Estimated for Raspberry Pi 5, 4 threads; not measured." in words
    assert "Estimate for Raspberry Pi 5: Scaled by the peak of its cores." in words
    assert "virt (QEMU cortex-a76), emulated, 1 thread. Emulated; its times are not" in words


def test_an_emulated_device_alone_is_said_to_be_one(several):
    text = shown(dataclasses.replace(several, runs=several.runs[3:]), 80)
    assert "p50 batch 4, emulated" in text
    assert "Nothing was measured on the target (Raspberry Pi 5)." in words_of(text)


def test_an_estimate_alone_is_no_measurement(several):
    text = shown(dataclasses.replace(several, runs=several.runs[1:2]), 160)
    assert "estimated for Raspberry Pi 5, 4 threads" in text
    assert "Not measured: latency." in text
    assert "Latency and memory: measured" not in text


def test_a_target_that_was_measured_is_not_said_to_lack_it(several):
    words = words_of(shown(several, 80))
    assert "measured on pi-on-desk (Raspberry Pi 5 Model B Rev 1.0), 4 threads." in words
    assert "pi-on-desk: The supply voltage was low once." in words
    assert "Nothing was measured on the target" not in words


def test_an_invalid_figure_has_a_mark_and_a_reason_and_no_ratio(several):
    text = shown(with_result(several, 2, "onnx naive", invalid="it throttled"), 80)
    board = block_of(text, "pi-on-desk ")
    for row in board[1:-1]:
        assert row.count(" !") == 1
        if row.startswith("p50"):
            assert "x" not in row
    assert "Invalid on pi-on-desk (Raspberry Pi 5 Model B Rev 1.0), naive: it throttled." in (
        words_of(text)
    )
    assert "!: invalid, as said below; in no ratio to naive." in words_of(text)
    assert "!" not in shown(several, 80)


def test_a_failure_stands_in_its_cells_and_in_a_sentence(several):
    report = without_figures(several, 3, "onnx naive")
    report = with_result(report, 3, "onnx naive", failure="the runtime ran out of memory")
    text = shown(report, 80)
    assert [row.count("failed") for row in block_of(text, "virt ") if row.startswith("p50")] == (
        [1] * 5
    )
    words = words_of(text)
    assert "Failed on virt (QEMU cortex-a76), emulated, naive: the runtime ran out of" in words
    assert "Not measured on virt" not in words  # said once
    for each in report.variants[1:]:
        report = without_figures(report, 3, each.id)
        report = with_result(report, 3, each.id, failure="no such file")
    rows = block_of(shown(report, 80), "virt ")[1:]
    assert [row.split() for row in rows] == [["p50,", "emulated", *["failed"] * 3]]


def test_what_a_device_did_not_measure_is_said(several):
    report = with_result(several, 2, "onnx naive", memory=None)
    assert (
        "Not measured on pi-on-desk (Raspberry Pi 5 Model B Rev 1.0) for naive: memory."
        in words_of(shown(report, 80))
    )


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_two_formats_on_several_devices_are_shown_in_full(width, everything):
    text = shown(everything, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    for run in everything.runs:
        for result in run.results.values():
            if run.kind == "measured":
                for figure in measured_figures(result):
                    assert figure in text, figure
            for estimate in result.estimate_ms_by_size.values():
                assert format_estimate(estimate) in text
    assert text.count("estimated for Raspberry Pi 5") == (2 if "\nONNX\n" in text else 1)


@pytest.mark.parametrize("width", [80, 120])
def test_two_precisions_of_a_format_are_shown_apart(width, report):
    half = tuple(
        dataclasses.replace(v, qualifier="float16", file_bytes=v.file_bytes // 2)
        for v in report.variants
    )
    (run,) = report.runs
    results = {v.id: run.results[f"onnx {v.name}"] for v in half}
    run = dataclasses.replace(run, results=run.results | results)
    two = dataclasses.replace(report, variants=(*report.variants, *half), runs=(run,))
    text = shown(two, width)
    assert max(len(line) for line in text.splitlines()) <= width
    for variant in two.variants:
        assert format_bytes(variant.file_bytes) in text
    assert "ONNX float16" in text if width == 80 else text.count("onnx float16") >= 3
