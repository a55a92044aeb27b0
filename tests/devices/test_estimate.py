"""Estimates: the arithmetic of the roofline by hand, what is refused, and what is said."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import pytest

from devices.estimate import CPU_EFFICIENCY, estimate, roofline_of
from devices.report.json_form import report_from_dict, report_to_dict
from devices.report.record import Variant
from devices.target import Figure, Target, load_targets
from export.errors import UserError
from export.records import KERNELS
from tests.devices.report.reports import make_report
from tests.devices.test_operator_costs import graph_of

ONE = "g (float[n, 64] x) => (y) { y = MatMul(x, w) }"
# A tied pair; the naive export stores the second direction as a tensor of its own.
TIED = (
    "g (float[n, 64] x) => (z) { y = MatMul(x, w) t = Transpose<perm=[1, 0]>(w) z = MatMul(y, t) }"
)
NAIVE = "g (float[n, 64] x) => (z) { y = MatMul(x, w) z = MatMul(y, v) }"


def figure(value, kind="measured"):
    return Figure(value, "a test", kind)


def machine(**changes):
    values = {
        "name": "bench", "title": "A bench", "formats": ("onnx",), "runtime": "onnxruntime",
        "precision": "float32", "cpu_cores": figure(4), "l2_bytes": figure(1),
        "memory_bandwidth_bytes_per_s": figure(1e9), "peak_flops_fp32_per_s": figure(8e9),
        "peak_flops_fp16_per_s": figure(16e9),
    }  # fmt: skip
    return Target(**values | changes)


def variant(name="memory-first", format="onnx", precision="float32"):  # noqa: A002
    return Variant(name, format, "any", precision, None, 0, 0, 1.0, "")


def times(target, variants, ours: ir.Model, naive=None, sizes=(1,), threads=4):
    run = estimate(target, variants, ours, naive, axis="batch", sizes=sizes, threads=threads)
    return {name: result.estimate_ms_by_size for name, result in run.results.items()}


def test_an_operator_takes_the_longer_of_its_arithmetic_and_its_traffic():
    target = machine()
    found = times(target, [variant()], graph_of(ONE, w=(64, 32)), sizes=(1, 10_000))
    by_bytes = 1000 * 4 * (64 + 64 * 32 + 32) / 1e9
    by_flops = 1000 * 2 * 10_000 * 64 * 32 / 8e9
    assert found["onnx memory-first"] == pytest.approx({1: by_bytes, 10_000: by_flops})


def test_a_part_of_the_cores_gives_that_part_of_the_arithmetic_and_all_of_the_bandwidth():
    model = graph_of(ONE, w=(64, 32))
    one = times(machine(), [variant()], model, sizes=(1, 10_000), threads=1)["onnx memory-first"]
    four = times(machine(), [variant()], model, sizes=(1, 10_000), threads=4)["onnx memory-first"]
    more = times(machine(), [variant()], model, sizes=(1, 10_000), threads=9)["onnx memory-first"]
    assert one[1] == four[1]
    assert one[10_000] == pytest.approx(4 * four[10_000])
    assert more == four


def test_a_peak_that_nobody_measured_is_not_counted_on_whole():
    peak = figure(8e9, "derived")
    model = graph_of(ONE, w=(64, 32))
    whole = times(machine(), [variant()], model, sizes=(10_000,))
    part = times(machine(peak_flops_fp32_per_s=peak), [variant()], model, sizes=(10_000,))
    slower = part["onnx memory-first"][10_000] / whole["onnx memory-first"][10_000]
    assert slower == pytest.approx(1 / CPU_EFFICIENCY)


def test_a_tied_weight_is_read_twice_unless_it_is_stored_once_and_fits_the_cache():
    ours, naive = graph_of(TIED, w=(64, 32)), graph_of(NAIVE, w=(64, 32), v=(32, 64))
    variants = [variant(name) for name in ("naive", "latency-first", "memory-first")]
    weight, peak = 4 * 64 * 32, figure(8e18)  # so that only the traffic counts
    small = times(machine(peak_flops_fp32_per_s=peak), variants, ours, naive)
    assert len({tuple(each.items()) for each in small.values()}) == 1
    fits_one = machine(l2_bytes=figure(weight + 1024), peak_flops_fp32_per_s=peak)
    found = {name: each[1] for name, each in times(fits_one, variants, ours, naive).items()}
    assert found["onnx naive"] == found["onnx latency-first"]
    # Only the input is left to be read; each of the copies pushes the other out.
    assert found["onnx memory-first"] == pytest.approx(1000 * 4 * 64 / 1e9)
    assert found["onnx naive"] > found["onnx memory-first"] + 1000 * weight / 1e9
    fits_both = machine(l2_bytes=figure(2 * weight + 1024), peak_flops_fp32_per_s=peak)
    assert len({each[1] for each in times(fits_both, variants, ours, naive).values()}) == 1


def test_the_one_pass_kernel_reads_the_matrix_of_a_tied_ffn_once():
    text = (
        "g (float[n, 64] x) => (float[n, 64] z) <float[n, 32] h, float[n, 32] a, float[32, 64] t> "
        "{ h = MatMul(x, w) a = Relu(h) t = Transpose<perm=[1, 0]>(w) z = MatMul(a, t) }"
    )
    kernel = replace(variant("latency-first"), session_options={KERNELS: "a library"})
    ours, weight = graph_of(text, w=(64, 32)), 4 * 64 * 32
    run = estimate(machine(), [kernel], ours, None, axis="batch", sizes=(1, 10_000), threads=4)
    found = run.results["onnx latency-first"].estimate_ms_by_size
    assert found[1] == pytest.approx(1000 * (weight + 2 * 4 * 64) / 1e9)
    assert found[10_000] == pytest.approx(1000 * 2 * 2 * 10_000 * 64 * 32 / 8e9)
    assert "The one-pass kernel reads the matrix of a tied FFN once for both products" in run.notes
    assert not any("so too low" in note for note in run.notes)


def test_the_last_cache_is_the_third_where_there_is_one():
    weight = 4 * 64 * 32
    caches = {"l2_bytes": figure(1), "l3_bytes": figure(weight + 1024)}
    target = machine(**caches, peak_flops_fp32_per_s=figure(8e18))
    found = times(target, [variant()], graph_of(TIED, w=(64, 32)))
    assert found["onnx memory-first"][1] == pytest.approx(1000 * 4 * 64 / 1e9)


def test_a_gpu_computes_in_float16_and_keeps_nothing_in_the_caches_of_its_cpu():
    target = machine(
        formats=("tensorrt",), runtime="tensorrt", precision="float16", l2_bytes=figure(10**9),
        cpu_cores=None,
    )  # fmt: skip
    tensorrt = variant("latency-first", "tensorrt", "float16")
    found = times(target, [tensorrt], graph_of(ONE, w=(64, 32)), sizes=(1, 10_000))
    by_bytes = 1000 * 2 * (64 + 64 * 32 + 32) / 1e9
    by_flops = 1000 * 2 * 10_000 * 64 * 32 / 16e9
    assert found["tensorrt latency-first"] == pytest.approx(
        {1: by_bytes, 10_000: by_flops}, rel=0.1
    )
    roofline = roofline_of(target, "tensorrt", "float16", 1)
    assert (roofline.cache_bytes, roofline.flops_per_s) == (0, 16e9)


@pytest.mark.parametrize(("format", "runtime"), [("tflite", "litert"), ("onnx", "onnxruntime")])
def test_float16_weights_are_computed_with_in_float32(format, runtime):  # noqa: A002
    target = machine(formats=(format,), runtime=runtime)
    model = graph_of(ONE, w=(64, 32))
    full = times(target, [variant("memory-first", format, "float32")], model)
    half = times(target, [variant("memory-first", format, "float16")], model)
    assert full == half
    run = estimate(target, [variant("memory-first", format, "float16")], model, None,
                   axis="batch", sizes=(1,))  # fmt: skip
    assert any("float16 weights are made float32" in note for note in run.notes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("memory_bandwidth_bytes_per_s", "memory bandwidth"),
        ("peak_flops_fp32_per_s", "float32 peak rate"),
        ("cpu_cores", "number of cores"),
    ],
)
def test_an_absent_figure_is_named_and_nothing_is_estimated(name, words):
    with pytest.raises(UserError, match=rf"'bench': no source is known for its {words} \({name}\)"):
        times(machine(**{name: None}), [variant()], graph_of(ONE, w=(64, 32)))


def test_a_format_of_another_processor_fails_and_the_others_are_estimated():
    target = machine(formats=("tensorrt", "onnx"), runtime="tensorrt")
    variants = [variant(), variant("memory-first", "tensorrt")]
    run = estimate(target, variants, graph_of(ONE, w=(64, 32)), None, axis="batch", sizes=(1,))
    assert "the figures are of its GPU" in run.results["onnx memory-first"].failure
    assert run.results["tensorrt memory-first"].estimate_ms_by_size


@pytest.mark.parametrize(("format", "precision"), [("engine", "float32"), ("onnx", "int8")])
def test_what_there_is_no_rule_for_is_refused_by_name(format, precision):  # noqa: A002
    with pytest.raises(UserError, match=f"for {format} in {precision}"):
        times(machine(), [variant(format=format, precision=precision)], graph_of(ONE, w=(64, 32)))


def test_a_graph_whose_shapes_are_not_known_before_it_runs_is_refused_by_its_node():
    model = graph_of("g (float[3] x) => (y) { y = NonZero(x) }")
    with pytest.raises(UserError, match="NonZero"):
        times(machine(), [variant()], model)


def test_a_naive_export_that_is_not_at_hand_fails_alone():
    variants = [variant("naive"), variant()]
    run = estimate(machine(), variants, graph_of(ONE, w=(64, 32)), None, axis="batch", sizes=(1,))
    assert "--keep-naive" in run.results["onnx naive"].failure
    assert run.results["onnx memory-first"].estimate_ms_by_size


def test_a_run_names_every_figure_with_its_kind_and_source():
    target = load_targets()["raspberry-pi-5"]
    model = graph_of(ONE, w=(64, 32))
    run = estimate(target, [variant()], model, None, axis="batch", sizes=(1, 4), threads=2)
    assert (run.kind, run.device, run.measured_on) == ("estimated", target.name, target.title)
    assert (run.threads, run.environment) == (2, None)
    text = " ".join(run.notes)
    used = (
        target.memory_bandwidth_bytes_per_s, target.peak_flops_fp32_per_s, target.l3_bytes,
    )  # fmt: skip
    for each in used:
        assert f"({each.kind}; {each.source}" in text
    assert "2 of 4 cores" in text
    assert "45%" in text
    report = replace(make_report(), runs=(run,))
    assert report_from_dict(report_to_dict(report)).runs == (run,)


def test_arithmetic_that_is_not_counted_is_said():
    text = "g (float[3, 1, 4] x) => (y) { y = GRU<hidden_size=2>(x, w, r) }"
    model = graph_of(text, w=(1, 6, 4), r=(1, 6, 2))
    run = estimate(machine(), [variant()], model, None, axis="batch", sizes=(3,))
    assert "Counted by their bytes alone, so too low: GRU" in run.notes


REFUSED = {
    "android", "galaxy-s24", "iphone", "iphone-15", "iphone-16", "jetson-thor", "local",
    "pixel-8", "raspberry-pi-zero-2w", "web",
}  # fmt: skip


@pytest.mark.parametrize("target", [t for t in load_targets().values() if not t.members],
                         ids=lambda target: target.name)  # fmt: skip
def test_every_target_is_estimated_or_refused_by_name(target):
    variants = [variant("memory-first", name, target.precision) for name in target.formats]
    model = graph_of(ONE, w=(64, 32))
    if target.name in REFUSED:
        with pytest.raises(UserError, match=f"target '{target.name}': no source is known for its"):
            times(target, variants, model)
        return
    for by_size in times(target, variants, model, sizes=(1, 2)).values():
        assert 0 < by_size[1] <= by_size[2] < 1
