"""From artifacts to the records of the report and the manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from devices.report.record import Report, Result, Run, Variant
from devices.results import profile_entries, variant_of, waterfall, with_run
from export.records import Artifact, TieMap
from runtimes.records import Environment, Latency, Memory

FORMATS = ("onnx", "tflite")
RUNTIMES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}


def artifact_of(format_name, setting):
    return Artifact(
        path=f"model.{setting}.{format_name}", format=format_name, setting=setting,
        precision="float32", bytes=1_100, weight_bytes=1_000, unique_bytes=1_000,
        naive_bytes=2_000, sha256={}, inputs=(), outputs=(), form="both uses read it",
    )  # fmt: skip


def variant(format_name, setting, kept=True, **changes):
    values = {
        "name": setting, "format": format_name, "runtime": RUNTIMES[format_name],
        "precision": "float32", "path": f"model.{setting}.{format_name}" if kept else None,
        "file_bytes": 1_100, "weight_bytes": 1_000, "ratio": 1.0, "form": "both uses read it",
    }  # fmt: skip
    return Variant(**values | changes)


def run_of(*variants, device="local", grown=20, **changes):
    latency = Latency(50, 10, 3.1, 0.9, 1.0, 1.2, 1.3, None, 1.05, 0.1)
    result = Result(2.5, Memory(10, 10 + grown, 35, 50, 20, 5, 15), {1: latency})
    values = {
        "device": device, "measured_on": "this machine", "kind": "measured", "threads": 1,
        "environment": Environment("h", device, "x86_64", 2, 1, "Linux", None, "r 1", "3.11"),
        "results": {each.id: result for each in variants},
    }  # fmt: skip
    return Run(**values | changes)


def estimate_of(*variants):
    results = {each.id: Result(estimate_ms_by_size={1: 7.25}) for each in variants}
    return Run("raspberry-pi-5", "Raspberry Pi 5", "estimated", 4, None, results)


def report_of(*variants):
    return Report(
        model="net", source="here", ties=TieMap(()), target="raspberry-pi-5",
        target_title="Raspberry Pi 5", axis="batch", variants=variants, waterfall=(),
        runs=(run_of(*variants),),
    )  # fmt: skip


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_variant_names_the_runtime_that_it_is_told(format_name, tmp_path):
    artifact = artifact_of(format_name, "latency-first")
    inside, outside = tmp_path / "bundle" / artifact.path, tmp_path / artifact.path
    runtime = RUNTIMES[format_name]
    found = variant_of(artifact, 0.9, inside, tmp_path / "bundle", runtime)
    assert (found.id, found.runtime) == (f"{format_name} latency-first", runtime)
    assert found.path == artifact.path
    assert variant_of(artifact, None, outside, Path("bundle"), runtime).path is None


def test_the_bytes_of_one_format_are_followed():
    variants = [variant("onnx", "naive"), variant("onnx", "memory-first")]
    steps = waterfall(900, 950, variants, run_of(*variants))
    assert [step.label for step in steps] == [
        "unique parameters", "checkpoint", "ONNX", "artifact", "resident after load",
        "peak while running",
    ]  # fmt: skip
    assert steps[0].bytes_by_variant == {"onnx naive": 900, "onnx memory-first": 900}


def test_each_format_has_a_step_of_its_own_that_is_true_of_it():
    variants = [variant(each, name) for name in ("naive", "memory-first") for each in FORMATS]
    steps = {step.label: step for step in waterfall(900, None, variants, run_of(*variants))}
    assert list(steps) == [
        "unique parameters", "ONNX", "TFLite", "artifact", "resident after load",
        "peak while running",
    ]  # fmt: skip
    assert "constant folding" in steps["ONNX"].cause
    assert set(steps["ONNX"].bytes_by_variant) == {"onnx naive", "onnx memory-first"}
    assert steps["TFLite"].cause == "stored tensors in the lowered file"
    assert set(steps["TFLite"].bytes_by_variant) == {"tflite naive", "tflite memory-first"}
    assert steps["artifact"].bytes_by_variant == {v.id: 1_100 for v in variants}
    assert steps["resident after load"].bytes_by_variant == {v.id: 20 for v in variants}


def test_a_profile_entry_has_the_runtime_of_its_variant():
    entries = profile_entries(report_of(*(variant(each, "latency-first") for each in FORMATS)))
    assert [(entry["artifact"], entry["runtime"]) for entry in entries] == [
        ("model.latency-first.onnx", "onnxruntime"),
        ("model.latency-first.tflite", "ai-edge-litert"),
    ]


def test_naive_exports_outside_the_bundle_are_told_apart_by_format():
    one = profile_entries(report_of(variant("onnx", "naive", kept=False)))
    assert [entry["artifact"] for entry in one] == ["naive"]
    two = profile_entries(report_of(*(variant(each, "naive", kept=False) for each in FORMATS)))
    assert [entry["artifact"] for entry in two] == ["onnx naive", "tflite naive"]


def test_what_was_not_measured_has_no_steps_in_memory():
    labels = [step.label for step in waterfall(900, None, [variant("onnx", "naive")], None)]
    assert labels == ["unique parameters", "ONNX", "artifact"]


def test_a_run_is_added_and_takes_the_place_of_an_older_one():
    one = variant("onnx", "memory-first")
    report = with_run(report_of(one), run_of(one, device="pi", grown=21))
    report = with_run(report, estimate_of(one))
    assert [(run.device, run.kind) for run in report.runs] == [
        ("local", "measured"), ("pi", "measured"), ("raspberry-pi-5", "estimated"),
    ]  # fmt: skip
    again = with_run(report, run_of(one, grown=22))
    assert [run.device for run in again.runs] == ["local", "pi", "raspberry-pi-5"]
    assert again.runs[1:] == report.runs[1:]
    assert again.runs[0] == run_of(one, grown=22)
    # a device's own name may be the target's: its estimate stands beside what it measured
    both = with_run(again, run_of(one, device="raspberry-pi-5"))
    assert len(both.runs) == 4


def test_the_waterfall_is_of_the_first_measured_run_and_says_so():
    one = variant("onnx", "memory-first")
    report = replace(report_of(one), runs=(), waterfall=waterfall(900, 950, [one], None))
    report = with_run(report, estimate_of(one))
    assert [step.label for step in report.waterfall][-1] == "artifact"
    report = with_run(report, run_of(one, device="pi", grown=21))
    report = with_run(report, run_of(one, grown=22))
    steps = {step.label: step for step in report.waterfall}
    assert steps["checkpoint"].bytes_by_variant == {one.id: 950}
    assert steps["resident after load"].bytes_by_variant == {one.id: 21}
    for label in ("resident after load", "peak while running"):
        assert steps[label].cause.endswith("; measured on pi (this machine)")


def test_each_device_and_estimate_has_its_entries():
    one = variant("onnx", "memory-first")
    report = with_run(report_of(one), run_of(one, device="pi", threads=4))
    report = with_run(report, estimate_of(one))
    here, there, estimated = profile_entries(report)
    assert [each["device"] for each in (here, there, estimated)] == [
        "local",
        "pi",
        "raspberry-pi-5",
    ]
    assert [each["kind"] for each in (here, there, estimated)] == ["measured"] * 2 + ["estimated"]
    assert [each["environment"]["cpu"] for each in (here, there)] == ["local", "pi"]
    assert (here["load_ms"], here["runs"], here["latency_ms"]["p50"]) == (2.5, 50, 1.0)
    assert set(here) == set(estimated)
    assert estimated["latency_ms"] == {"p50": 7.25}
    for key in ("load_ms", "peak_rss_bytes", "weights_resident_bytes", "environment", "runs"):
        assert estimated[key] is None
    assert (there["threads"], estimated["threads"], estimated["batch"]) == (4, 4, 1)


def test_an_entry_says_that_it_is_invalid_and_a_failure_has_none():
    one, two = variant("onnx", "naive"), variant("onnx", "memory-first")
    run = run_of(one, two)
    results = {
        one.id: replace(run.results[one.id], invalid="it throttled"),
        two.id: Result(failure="the runtime refused it"),
    }
    report = replace(report_of(one, two), runs=(replace(run, results=results),))
    (entry,) = profile_entries(report)
    assert (entry["artifact"], entry["invalid"]) == (one.path, "it throttled")
