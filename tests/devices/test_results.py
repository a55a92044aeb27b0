"""From artifacts to the records of the report and the manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.report.record import Report, Variant
from devices.results import profile_entries, variant_of, waterfall
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
    latency = Latency(50, 10, 3.1, 0.9, 1.0, 1.2, 1.3, None, 1.05, 0.1)
    values = {
        "name": setting, "format": format_name, "runtime": RUNTIMES[format_name],
        "precision": "float32", "path": f"model.{setting}.{format_name}" if kept else None,
        "file_bytes": 1_100, "weight_bytes": 1_000, "ratio": 1.0, "form": "both uses read it",
        "memory": Memory(10, 30, 35, 50, 20, 5, 15), "latency_ms_by_size": {1: latency},
    }  # fmt: skip
    return Variant(**values | changes)


def report_of(*variants):
    return Report(
        model="net", source="here", ties=TieMap(()), target="raspberry-pi-5",
        target_title="Raspberry Pi 5", device="local", measured_on="this machine", threads=1,
        axis="batch", variants=variants, waterfall=(),
        environment=Environment("h", "c", "x86_64", 2, 1, "Linux", None, "r 1", "3.11"),
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
    steps = waterfall(900, 950, [variant("onnx", "naive"), variant("onnx", "memory-first")])
    assert [step.label for step in steps] == [
        "unique parameters", "checkpoint", "ONNX", "artifact", "resident after load",
        "peak while running",
    ]  # fmt: skip
    assert steps[0].bytes_by_variant == {"onnx naive": 900, "onnx memory-first": 900}


def test_each_format_has_a_step_of_its_own_that_is_true_of_it():
    variants = [variant(each, name) for name in ("naive", "memory-first") for each in FORMATS]
    steps = {step.label: step for step in waterfall(900, None, variants)}
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
