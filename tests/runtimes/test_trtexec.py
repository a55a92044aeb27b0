from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from export.errors import DeviceError, MeasureError
from export.lower.tensorrt.errors import explain
from runtimes import trtexec
from runtimes.trtexec import parse_log, parse_profile, parse_times, require_passed

DATA = Path(__file__).parents[1] / "data" / "trtexec"
LOGS = sorted(path.name for path in DATA.glob("*.log"))


def text(name):
    return (DATA / name).read_text()


def log(name):
    return parse_log(text(name))


# ---- recorded logs -------------------------------------------------------------------------------


def test_every_recorded_file_has_its_source():
    listed = text("SOURCES.md")
    names = [path.name for path in DATA.iterdir() if path.name != "SOURCES.md"]
    assert len(names) > 15
    assert [name for name in names if f"| {name} |" not in listed] == []


@pytest.mark.parametrize(
    ("name", "version", "throughput", "minimum", "median", "percentiles"),
    [
        ("8.0.1-run.log", (8, 0, 1), 24.7474, 39.795, 39.875, {99.0: 40.1282}),
        ("8.4.0-agx-xavier.log", (8, 4, 0), 41087.7, 0.375977, 0.388443, {99.0: 0.393188}),
        (
            "8.5.2-orin-nano.log", (8, 5, 2), 97.8649, 10.0343, 10.1851,
            {90.0: 10.3206, 95.0: 10.338, 99.0: 10.356},
        ),
        (
            "8.6.1-h100.log", (8, 6, 1), 484.641, 1.58716, 1.97192,
            {90.0: 3.27051, 95.0: 3.48145, 99.0: 3.66565},
        ),
        (
            "10.3.0-jetson.log", (10, 3, 0), 318.007, 3.12671, 3.14062,
            {90.0: 3.14587, 95.0: 3.14771, 99.0: 3.15039},
        ),
        (
            "11.0.0-run.log", (11, 0, 0), 23215.0, 0.0395508, 0.0402832,
            {90.0: 0.0404663, 95.0: 0.0405273, 99.0: 0.0413513},
        ),
    ],
)  # fmt: skip
def test_the_summary_of_each_version_is_read(
    name, version, throughput, minimum, median, percentiles
):
    found = log(name)
    assert (found.version, found.passed, found.error) == (version, True, None)
    assert found.summary.throughput_per_s == throughput
    assert found.summary.gpu_compute.min == minimum
    assert found.summary.gpu_compute.median == median
    assert found.summary.gpu_compute.percentiles == percentiles
    assert require_passed(found, "net.engine") is found


def test_each_duration_of_the_summary_stands_under_its_own_name():
    summary = log("8.6.1-h100.log").summary
    assert (summary.latency.min, summary.latency.max) == (2.74048, 6.60767)
    assert (summary.enqueue.mean, summary.h2d.mean) == (0.933041, 0.779499)
    assert (summary.d2h.min, summary.d2h.median) == (0.332214, 0.347412)


def test_end_to_end_host_latency_of_old_versions_is_not_taken_for_latency():
    assert log("8.0.1-run.log").summary.latency.max == 40.6343


def test_a_build_tells_the_size_of_the_engine_and_of_its_weights():
    engine = log("11.0.0-build.log").engine
    assert engine.weights_bytes == 13_098_880
    assert engine.activation_bytes == 206_336
    assert engine.engine_bytes == round(12.6512 * 2**20)
    assert (engine.build_s, engine.deserialize_s) == (4.43432, 0.0915648)


def test_version_8_prints_no_weight_bytes_and_the_engine_in_whole_mebibytes():
    engine = log("8.6.1-h100.log").engine
    assert engine.weights_bytes is None
    assert engine.engine_bytes == 21 * 2**20
    assert engine.activation_bytes == 88_883_200


def test_the_settings_that_changed_their_defaults_are_read_from_the_log():
    names = ("CUDA Graph", "Spin-wait", "Data transfers")
    old, new = log("8.6.1-h100.log"), log("11.0.0-run.log")
    assert old.settings == dict(zip(names, (False, False, True), strict=True))
    assert new.settings == dict(zip(names, (True, True, False), strict=True))
    assert (new.warmup_runs, new.runs, new.gpu) == (4628, 69647, "NVIDIA B200")


def test_a_profiling_run_has_no_summary_and_passed_all_the_same():
    found = log("10.16.0-profile.log")
    assert (found.version, found.passed, found.summary) == ((10, 16, 0), True, None)
    assert found.command.startswith("trtexec --loadEngine=./model-trained.trt --dumpProfile")


def test_an_unsteady_gpu_is_said_with_its_remedy():
    (said,) = log("8.6.1-h100.log").warnings
    assert said.startswith("GPU compute time varied by 25.6 %")
    assert "jetson_clocks" in said


def test_a_run_that_the_host_bounds_is_said():
    # The line as in NVIDIA/TensorRT, issue 4177, and sampleReporting.cpp.
    line = (
        "[10/03/2024-10:47:59] [W] * Throughput may be bound by Enqueue Time rather than GPU "
        "Compute and the GPU may be under-utilized.\n"
    )
    (said,) = parse_log(line + text("10.3.0-jetson.log")).warnings
    assert "CUDA graph" in said


def test_skipped_tactics_are_a_warning_and_no_failure():
    skipped = text("8.5-skipped-tactics.log")
    passed = parse_log(f"{skipped}&&&& PASSED TensorRT.trtexec [TensorRT v8502] # trtexec\n")
    assert passed.error is None
    assert passed.warnings == (
        "3 kernel candidates were skipped for want of memory while building, which is no failure: "
        "the engine is right, but one built with more free memory may be faster",
    )


def test_attempts_that_call_themselves_errors_do_not_fail_a_run_that_passed():
    retries = text("8-out-of-memory-retries.log")
    found = parse_log(f"{retries}&&&& PASSED TensorRT.trtexec [TensorRT v8601] # trtexec\n")
    assert (found.passed, found.error) == (True, None)
    assert len(found.warnings) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("10.0.1-other-version.log",
         "this is an engine of another kind of TensorRT (this is 10.0.1), or none; build it again "
         "on the device that runs it"),
        ("10.3.0-unknown-options.log",
         "the trtexec of TensorRT 10.3.0 does not know --workspace, --buildOnly, --explicitBatch; "
         "its versions differ in them; see trtexec --help on the device"),
        ("10.3.0-unsupported-node.log",
         "operator Tile (node 146): /OneHot: an IIOneHotLayer cannot be used to compute a shape "
         "tensor"),
        ("10.3.0-out-of-memory.log",
         "the device ran out of memory (15485030400 bytes asked for at most); close other "
         "programs, or limit the builder by --memPoolSize=workspace:MIB"),
        ("10.13.0-missing-file.log", "there is no readable file models/mc3_dynamic.onnx"),
        ("8.5-skipped-tactics.log",
         "it ended without a verdict; a process that is killed, mostly for want of memory, leaves "
         "such a log"),
    ],
)  # fmt: skip
def test_a_failure_is_one_line_that_names_its_cause(name, words):
    found = log(name)
    assert found.error == words
    with pytest.raises(DeviceError) as caught:
        require_passed(found, "orin")
    assert str(caught.value) == f"trtexec on orin: {words}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        # NVIDIA/retinanet-examples, issue 314
        ("6: The engine plan file is not compatible with this version of TensorRT, expecting "
         "library version 8.0.0 got 8.0.1, please rebuild.",
         "the engine was built by TensorRT 8.0.1 and this is 8.0.0; build it again on the device "
         "that runs it"),
        # NVIDIA/TensorRT, issue 2177
        ("6: The engine plan file is generated on an incompatible device, expecting compute 6.1 "
         "got compute 8.6, please rebuild.",
         "the engine was built for a GPU of compute capability 8.6 and this one has 6.1; build it "
         "again on the device that runs it"),
        # mingj2021/segment-anything-tensorrt, issue 2
        ("1: [stdArchiveReader.cpp::nvinfer1::rt::StdArchiveReader::StdArchiveReader::40] Error "
         "Code 1: Serialization (Serialization assertion stdVersionRead == serializationVersion "
         "failed.Version tag does not match. Note: Current Version: 213, Serialized Engine "
         "Version: 232)",
         "the engine was built by another version of TensorRT (this is 8.4.1); build it again on "
         "the device that runs it"),
    ],
)  # fmt: skip
def test_engines_from_elsewhere_are_told_from_the_words_of_each_version(line, words):
    assert explain([line], version=(8, 4, 1)) == words


def test_precision_options_that_11_removed_are_sent_to_the_onnx_file():
    said = explain(["Unknown option: --fp16 "], version=(11, 0, 0))
    assert said == (
        "the trtexec of TensorRT 11.0.0 does not know --fp16; since TensorRT 11 the ONNX file "
        "alone sets the precision: export it in that one"
    )


def test_a_log_that_says_nothing_is_no_pass():
    for empty in ("", "Killed\n", "[05/13/2025-10:36:46] [I] Starting inference\n"):
        found = parse_log(empty)
        assert (found.passed, found.summary) == (None, None)
        assert found.error.startswith("it ended without a verdict")


def test_a_log_without_end_is_not_read(monkeypatch):
    monkeypatch.setattr(trtexec, "MOST_LOG_CHARS", 1000)
    with pytest.raises(MeasureError, match=r"^a trtexec log of \d+ characters is not read; "):
        log("8.6.1-h100.log")


# ---- exported times ------------------------------------------------------------------------------


def entries(times_ms, start_ms=1000.0):
    """Write runs as sampleReporting.cpp does: six digits, one run a line."""
    lines = []
    for time_ms in times_ms:
        end_ms = start_ms + time_ms
        lines.append(
            f'{{ "startEnqMs" : {start_ms:g}, "startComputeMs" : {start_ms:g}, '
            f'"endComputeMs" : {end_ms:g}, "computeMs" : {time_ms:g}, "latencyMs" : {time_ms:g} }}'
        )
        start_ms = end_ms
    return "[\n  " + "\n, ".join(lines) + "\n]\n"


def test_recorded_times_become_the_latency_of_the_gpu():
    latency = parse_times(text("8-times.json"))
    assert (latency.runs, latency.warmup, latency.p99) == (12, 0, None)
    assert latency.samples[:3] == (0.288768, 0.263008, 0.271968)
    assert latency.first == latency.samples[0]
    assert latency.p50 == pytest.approx(0.2714075, abs=1e-9)


def test_the_warm_up_that_old_versions_export_is_left_out():
    latency = parse_times(text("7-times-jetson.json"), warmup_ms=5.0)
    assert latency.samples == (4.49846, 4.39744)
    assert (latency.warmup, latency.first) == (2, 4.49866)
    assert parse_times(text("7-times-jetson.json")).runs == 4


def test_the_warm_up_that_the_log_counts_is_kept():
    assert parse_times(text("8-times.json"), warmup_runs=96).warmup == 96


def test_stamps_that_lost_their_digits_do_not_spoil_the_times():
    times_ms = np.linspace(0.04, 0.05, 200).round(6)
    written = entries(times_ms, start_ms=2_500_000.0)
    stamps = [entry["endComputeMs"] - entry["startComputeMs"] for entry in json.loads(written)]
    assert set(stamps) == {0.0, 10.0}  # of runs of 0.04 ms
    latency = parse_times(written)
    assert latency.samples == pytest.approx(times_ms, abs=1e-9)
    assert latency.p99 == pytest.approx(np.percentile(times_ms, 99), abs=1e-9)


@pytest.mark.parametrize(
    "damaged",
    [
        "", "[", "[]", "{}", "null", "[1]", "[[]]", '[{"computeMs": 1}]', '[{"startComputeMs": 1}]',
        '[{"startComputeMs": 0, "computeMs": NaN}]', '[{"startComputeMs": 0, "computeMs": true}]',
        '[{"startComputeMs": 0, "computeMs": -1}]', '[{"startComputeMs": 0, "computeMs": 1e999}]',
        '[{"startComputeMs": 0, "computeMs": "1"}]', "[" * 100_000, '[{"computeMs": 1' + "0" * 9999,
        text("8-times.json")[:900], "<html>",
    ],
)  # fmt: skip
def test_times_that_are_damaged_are_refused_in_one_line(damaged):
    with pytest.raises(MeasureError) as caught:
        parse_times(damaged)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_times_that_end_within_the_warm_up_are_refused():
    with pytest.raises(MeasureError, match=r"hold no run after its warm-up of 200 ms"):
        parse_times(text("8-times.json"), warmup_ms=200)


# ---- exported profiles ---------------------------------------------------------------------------


def test_recorded_profiles_with_and_without_medians_are_read():
    old, new = parse_profile(text("8-profile.json")), parse_profile(text("10-profile.json"))
    assert [layer.op for layer in old][1] == "Conv_0 + PWN(Clip_3)"
    assert old[1].mean_ms == 0.0662771
    assert old[1].share == pytest.approx(41.4232 / (36.6844 + 41.4232 + 68.3092))
    assert [layer.index for layer in new] == [0, 1, 2, 3, 4]
    assert new[3].mean_ms == 59.7861
    assert all(layer.delegated for layer in old + new)
    assert sum(layer.share for layer in new) == pytest.approx(1.0)


def test_a_name_with_a_quote_which_trtexec_does_not_escape_is_read():
    written = text("8-profile.json").replace("Conv_4 + PWN", 'a "b" \\c, {d} + PWN')
    with pytest.raises(json.JSONDecodeError):
        json.loads(written)
    assert parse_profile(written)[2].op == 'a "b" \\c, {d} + PWN(Clip_7)'


@pytest.mark.parametrize(
    "damaged", ["", "[]", '[{ "count" : 3 }]', '[{"name": "a"}]', text("8-profile.json")[:300],
                '[{"name": "a", "timeMs": nan, "averageMs": 1}]'],
)  # fmt: skip
def test_profiles_that_are_damaged_are_refused_in_one_line(damaged):
    with pytest.raises(MeasureError) as caught:
        parse_profile(damaged)
    assert "\n" not in str(caught.value)


# ---- hostile text --------------------------------------------------------------------------------

PIECES = [line for name in LOGS for line in text(name).splitlines()]
PIECES += ["[05/13/2025-10:36:46] [E] Unknown option:", "Unknown option: ", "&&&& FAILED", "= ms"]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=80), max_size=25))
@example(["[05/13/2025-10:36:46] [E] Unknown option:", "&&&& FAILED TensorRT.trtexec"])
@example(["[05/13/2025-10:36:46] [I] Throughput: 1e999 qps"])
def test_any_text_is_read_as_a_log_without_a_traceback(pieces):
    found = parse_log("\n".join(pieces))
    assert (found.error is None) == (found.passed is True)
    assert found.error is None or ("\n" not in found.error and 0 < len(found.error) < 260)
    if found.summary:
        assert math.isfinite(found.summary.throughput_per_s)


@given(st.data())
def test_a_log_with_characters_lost_or_changed_is_read_without_a_traceback(data):
    whole = text(data.draw(st.sampled_from(LOGS)))
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 60)))
    parse_log(whole[:start] + data.draw(st.text(max_size=20)) + whole[end:])


@given(st.data(), st.sampled_from([parse_times, parse_profile]))
def test_an_exported_file_with_characters_changed_is_read_or_refused(data, parse):
    whole = text(data.draw(st.sampled_from(["8-times.json", "8-profile.json", "10-profile.json"])))
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 60)))
    with contextlib.suppress(MeasureError):  # anything else fails the test
        parse(whole[:start] + data.draw(st.text(max_size=20)) + whole[end:])
