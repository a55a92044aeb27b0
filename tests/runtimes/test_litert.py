from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import ai_edge_litert.interpreter as vendor
import numpy as np
import pytest

from export.errors import BadFileError, MeasureError, MissingExtraError, UnknownNameError
from export.records import TensorSpec
from runtimes.litert import open_session, operator_profile, warm_up_model
from runtimes.memory import measure_fresh
from tests.runtimes import tflite_models
from tests.runtimes.models import random_weight
from tests.runtimes.tflite_models import (
    Builder,
    cast,
    linear,
    lookup,
    sum_of_two,
    tied_ffn,
    two_and_two,
    unary,
)

WEIGHT = random_weight(4, 6)
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="/proc/self/smaps_rollup is not there"
)


@pytest.fixture
def path(tmp_path):
    return linear(tmp_path / "net.tflite", WEIGHT)


@pytest.fixture
def settings_given(monkeypatch):
    """Note the settings with which the runtime's own interpreter is made."""
    given, real = [], vendor.Interpreter

    def noted(**settings):
        given.append(settings)
        return real(**settings)

    monkeypatch.setattr(vendor, "Interpreter", noted)
    return given


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


# ---- running ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", [True, False])
def test_a_model_without_a_signature_is_run_by_the_names_of_its_tensors(tmp_path, optimize):
    session = open_session(sum_of_two(tmp_path / "net.tflite"), optimize=optimize)
    assert session.inputs == (
        TensorSpec("x", "float32", (2, 3)),
        TensorSpec("y", "float32", (2, 3)),
    )
    assert session.outputs == (TensorSpec("sum", "float32", (2, 3)),)
    x = random_weight(2, 3)
    outputs = session.run({"y": x + 1, "x": x})
    assert list(outputs) == ["sum"]
    np.testing.assert_allclose(outputs["sum"], 2 * x + 1, rtol=1e-6)


@pytest.mark.parametrize("optimize", [True, False])
def test_outputs_are_right_while_sizes_go_up_and_down(path, optimize):
    session = open_session(path, optimize=optimize)
    assert session.inputs == (TensorSpec("x", "float32", ("?", 6)),)
    assert session.outputs == (TensorSpec("y", "float32", ("?", 4)),)
    kept = []
    for size in (1, 7, 2, 7, 1, 128, 3):
        x = random_weight(size, 6) * size
        kept.append((x, session.run({"x": x})["y"]))
    # after all the runs: no output may live in memory that a later run uses
    for x, y in kept:
        np.testing.assert_allclose(y, x @ WEIGHT.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("optimize", [True, False])
def test_a_buffer_that_is_read_both_ways_gives_the_right_values(tmp_path, threads, optimize):
    weight = random_weight(64, 32) / 8
    path = tied_ffn(tmp_path / "net.tflite", weight)
    session = open_session(path, threads=threads, optimize=optimize)
    for size in (3, 1, 5):
        x = random_weight(size, 32)
        expected = gelu(x @ weight.T) @ weight
        np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


def test_memory_is_planned_anew_only_when_a_shape_changed(path, monkeypatch):
    session = open_session(path)
    planned, real = [], vendor.Interpreter.allocate_tensors
    monkeypatch.setattr(
        vendor.Interpreter, "allocate_tensors", lambda it: planned.append(1) or real(it)
    )
    counts = []
    for size in (1, 1, 4, 4, 4, 1):
        session.run({"x": np.ones((size, 6), np.float32)})
        counts.append(len(planned))
    assert counts == [0, 0, 1, 1, 1, 2]


def test_integers_of_64_bits_look_up_rows(tmp_path):
    session = open_session(lookup(tmp_path / "net.tflite", WEIGHT))
    assert session.inputs == (TensorSpec("ids", "int64", ("?",)),)
    for ids in ([3, 0, 0], [1]):
        rows = session.run({"ids": np.array(ids, np.int64)})["rows"]
        assert np.array_equal(rows, WEIGHT[ids])


@pytest.mark.parametrize("before", ["bool", "float16", "float32", "int32", "int64"])
@pytest.mark.parametrize("after", ["bool", "float16", "float32", "int32", "int64"])
def test_every_type_goes_in_and_out_as_itself(tmp_path, before, after):
    if before == after:
        return
    session = open_session(cast(tmp_path / "net.tflite", before, after))
    assert session.inputs == (TensorSpec("x", before, ("?", 3)),)
    assert session.outputs == (TensorSpec("y", after, ("?", 3)),)
    x = np.array([[0, 1, 1], [1, 0, 1]], before)
    y = session.run({"x": x})["y"]
    assert y.dtype.name == after
    assert np.array_equal(y, x.astype(after))


def test_a_scalar_is_an_array_without_dimensions(tmp_path):
    path = unary(tmp_path / "net.tflite", "NEG", "float32", "float32", shape=())
    session = open_session(path)
    assert session.inputs == (TensorSpec("x", "float32", ()),)
    assert session.run({"x": np.array(2.5, np.float32)})["y"] == -2.5


def test_an_array_that_is_not_contiguous_is_taken_as_it_reads(path):
    x = random_weight(6, 3).T
    assert not x.flags.c_contiguous
    np.testing.assert_allclose(
        open_session(path).run({"x": x})["y"], x @ WEIGHT.T, rtol=1e-5, atol=1e-5
    )


def test_an_output_is_a_copy_of_its_own(path):
    session = open_session(path)
    y = session.run({"x": np.ones((1, 6), np.float32)})["y"]
    y += 1000
    again = session.run({"x": np.ones((1, 6), np.float32)})["y"]
    np.testing.assert_allclose(again, WEIGHT.sum(1)[None], rtol=1e-5)


def test_a_closed_session_cannot_be_run(path):
    session = open_session(path)
    session.close()
    with pytest.raises(AttributeError):
        session.run({"x": np.ones((1, 6), np.float32)})


# ---- names ------------------------------------------------------------------------------------


def run_two_and_two(path):
    session = open_session(path)
    a, b = np.array([1, 2], np.float32), np.array([[10, 20], [30, 40], [5, 5]], np.float32)
    given = {"a": a, "b": b, "p": a, "q": b}
    return session, session.run({spec.name: given[spec.name] for spec in session.inputs}), a, b


def test_names_are_the_signatures_and_their_order_is_the_graphs(tmp_path):
    session, outputs, a, b = run_two_and_two(two_and_two(tmp_path / "net.tflite"))
    assert [spec.name for spec in session.inputs] == ["b", "a"]
    assert [spec.shape for spec in session.inputs] == [("?", 2), (2,)]
    assert [spec.name for spec in session.outputs] == list(outputs) == ["late", "early"]
    assert np.array_equal(outputs["early"], a + b)
    assert np.array_equal(outputs["late"], b - a)


def test_a_signature_of_any_key_is_taken(tmp_path):
    session, *_ = run_two_and_two(two_and_two(tmp_path / "net.tflite", key="a key"))
    assert [spec.name for spec in session.inputs] == ["b", "a"]


def test_the_serving_signature_goes_before_others(tmp_path):
    net = Builder()
    x = net.tensor([3])
    y = net.op("NEG", [x], [3])
    for key in ("another", "serving_default", "z"):
        net.signature({f"x of {key}": x}, {f"y of {key}": y}, key=key)
    session = open_session(net.save(tmp_path / "net.tflite", [x], [y]))
    assert session.inputs[0].name == "x of serving_default"
    assert list(session.run({"x of serving_default": np.ones(3, np.float32)})) == [
        "y of serving_default"
    ]


def test_a_signature_that_leaves_an_input_out_is_not_used(tmp_path):
    net = Builder()
    x, y = net.tensor([2], name="x"), net.tensor([2], name="y")
    out = net.op("ADD", [x, y], [2], tflite_models.schema.AddOptionsT(), name="sum")
    net.signature({"only": x}, {"out": out})
    session = open_session(net.save(tmp_path / "net.tflite", [x, y], [out]))
    assert [spec.name for spec in session.inputs] == ["x", "y"]


def test_a_tensor_that_is_two_outputs_comes_back_under_both_names(tmp_path):
    net = Builder()
    x = net.tensor([3])
    y = net.op("NEG", [x], [3])
    net.signature({"x": x}, {"one": y, "other": y})
    session = open_session(net.save(tmp_path / "net.tflite", [x], [y, y]))
    outputs = session.run({"x": np.ones(3, np.float32)})
    assert {name: value.tolist() for name, value in outputs.items()} == {
        "one": [-1] * 3,
        "other": [-1] * 3,
    }


@pytest.mark.parametrize("names", [("same", "same"), ("", "y")])
def test_tensors_whose_names_do_not_tell_them_apart_are_numbered(tmp_path, names):
    net = Builder()
    x, y = (net.tensor([2], name=name) for name in names)
    out = net.op("SUB", [x, y], [2], tflite_models.schema.SubOptionsT(), name="out")
    session = open_session(net.save(tmp_path / "net.tflite", [x, y], [out]))
    one, two = np.array([1, 1], np.float32), np.array([2, 2], np.float32)
    assert session.run({"input_0": two, "input_1": one})["out"].tolist() == [1, 1]


# ---- settings ---------------------------------------------------------------------------------


def test_delegate_threads_and_mapping_are_as_asked(path, settings_given):
    open_session(path)
    open_session(path, optimize=False, threads=2)
    resolvers = vendor.OpResolverType
    assert [given["experimental_op_resolver_type"] for given in settings_given] == [
        resolvers.AUTO,
        resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    ]
    assert [given["num_threads"] for given in settings_given] == [1, 2]
    assert all(given["model_path"] == str(path) for given in settings_given)


def test_an_option_is_refused_in_one_line(path):
    assert open_session(path, options={}).inputs
    message = r"^session option 'session\.x' is not known to ai-edge-litert, which has none$"
    with pytest.raises(UnknownNameError, match=message):
        open_session(path, options={"session.x": "1"})


def test_the_older_package_is_taken_where_only_that_is_installed(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setitem(sys.modules, "tflite_runtime", vendor)
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", vendor)
    assert open_session(path).run({"x": np.ones((2, 6), np.float32)})["y"].shape == (2, 4)


MISSING = r"^package 'ai-edge-litert' is not installed; run: pip install 'weightspace\[litert\]'$"


@pytest.fixture
def nothing_installed(monkeypatch):
    for package in ("ai_edge_litert", "tflite_runtime"):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setitem(sys.modules, f"{package}.interpreter", None)


def test_without_a_package_the_extra_is_named(path, nothing_installed):
    with pytest.raises(MissingExtraError, match=MISSING):
        open_session(path)
    with pytest.raises(MissingExtraError, match=MISSING):
        operator_profile(path, {"x": np.ones((2, 6), np.float32)})


# ---- feeds that do not fit --------------------------------------------------------------------


def test_the_first_run_of_all_without_feeds_is_refused(path):
    with pytest.raises(MeasureError, match=r"^net\.tflite takes the inputs 'x'; given were none$"):
        open_session(path).run({})


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "net.tflite takes the inputs 'x'; given were none"),
        (
            {"x": np.ones((1, 6), np.float32), "z": np.ones(1)},
            "net.tflite takes the inputs 'x'; given were 'x', 'z'",
        ),
        (
            {"x": np.ones((3, 5), np.float32)},
            "input 'x' of net.tflite is float32 [?, 6]; given was float32 [3, 5]",
        ),
        (
            {"x": np.ones(6, np.float32)},
            "input 'x' of net.tflite is float32 [?, 6]; given was float32 [6]",
        ),
        (
            {"x": np.ones((3, 6))},
            "input 'x' of net.tflite is float32 [?, 6]; given was float64 [3, 6]",
        ),
    ],
)
def test_feeds_that_do_not_fit_are_told_and_do_no_harm(path, feeds, message):
    session = open_session(path)
    x = random_weight(2, 6)
    first = session.run({"x": x})["y"]
    with pytest.raises(MeasureError) as caught:
        session.run(feeds)
    assert str(caught.value) == message
    assert np.array_equal(session.run({"x": x})["y"], first)


def test_a_fixed_dimension_is_not_resized(tmp_path):
    session = open_session(sum_of_two(tmp_path / "net.tflite"))
    feeds = {"x": np.ones((4, 3), np.float32), "y": np.ones((4, 3), np.float32)}
    with pytest.raises(MeasureError, match=r"is float32 \[2, 3\]; given was float32 \[4, 3\]"):
        session.run(feeds)


def test_a_size_that_the_runtime_fails_on_is_told_and_does_no_harm(tmp_path):
    session = open_session(tied_ffn(tmp_path / "net.tflite", WEIGHT))
    x = random_weight(2, 6)
    expected = gelu(x @ WEIGHT.T) @ WEIGHT
    for _ in range(2):
        with pytest.raises(MeasureError) as caught:
            session.run({"x": np.ones((0, 6), np.float32)})
        assert re.match(
            r"ai-edge-litert cannot run net\.tflite with 'x' as \[0, 6\]: \w", str(caught.value)
        )
        assert "\n" not in str(caught.value)
        np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


# ---- files ------------------------------------------------------------------------------------


def refusal(path):
    with pytest.raises(BadFileError) as caught:
        open_session(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    for path in (tmp_path / "missing.tflite", tmp_path):
        assert refusal(path) == f"{path} is not a file; give the path of a .tflite file"


@pytest.mark.parametrize("share", [0, 0.002, 0.01, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_refused_in_one_line(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refusal(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"TFL3", b"<!DOCTYPE html>\n<html>\nNot found\n", b"PK\3\4" + bytes(64), bytes(4096)],
)
def test_a_file_of_another_kind_lacks_the_mark(path, content):
    path.write_bytes(content)
    assert refusal(path) == f"{path} is not a .tflite file: it lacks the mark TFL3"


@pytest.mark.parametrize("root", [0, 4, 7, 10**6, 2**31, 2**32 - 1])
def test_a_root_that_is_outside_the_file_is_refused(path, root):
    content = bytearray(path.read_bytes())
    content[:4] = root.to_bytes(4, "little")
    path.write_bytes(content)
    size = len(content)
    assert refusal(path) == (
        f"{path} is cut short or corrupt: its root is outside its {size} bytes"
    )


def test_a_root_that_is_not_one_is_refused(path):
    content = bytearray(path.read_bytes())
    content[:4] = (len(content) - 4).to_bytes(4, "little")
    path.write_bytes(content)
    assert refusal(path).startswith(f"ai-edge-litert cannot load {path}: ")


def test_an_operator_that_the_runtime_lacks_is_named(tmp_path):
    path = unary(tmp_path / "net.tflite", "custom:Reluctant", "float32", "float32")
    message = refusal(path)
    assert message.startswith(f"ai-edge-litert cannot load {path}: ")
    assert "Reluctant" in message


def test_a_name_that_is_no_text_is_refused_in_one_line(tmp_path):
    path = tmp_path / "net.tflite"
    sum_of_two(path)
    path.write_bytes(path.read_bytes().replace(b"sum\0", b"\xff\xfe\xfd\0"))
    assert refusal(path).startswith(f"ai-edge-litert cannot load {path}: ")


# ---- the profile of operators -----------------------------------------------------------------


@pytest.fixture
def ffn(tmp_path):
    return tied_ffn(tmp_path / "net.tflite", random_weight(256, 128))


@pytest.mark.parametrize("threads", [1, 2])
def test_operators_of_the_delegate_are_timed(ffn, threads):
    feeds = {"x": random_weight(32, 128)}
    profile = operator_profile(ffn, feeds, threads=threads, runs=5)
    assert [operator.delegated for operator in profile] == [True] * 3
    words = ["Fully Connected", "GELU", "Batch Matrix Multiply"]
    assert all(word in operator.op for word, operator in zip(words, profile, strict=True))
    assert sum(operator.share for operator in profile) == pytest.approx(1)
    assert profile[0].mean_ms > 0


def test_operators_of_the_graph_are_timed_without_the_delegate(ffn):
    feeds = {"x": random_weight(32, 128)}
    profile = operator_profile(ffn, feeds, runs=5, optimize=False)
    assert [(operator.index, operator.op, operator.delegated) for operator in profile] == [
        (0, "FULLY_CONNECTED", False),
        (1, "GELU", False),
        (2, "BATCH_MATMUL", False),
    ]


def test_delegated_and_other_operators_are_told_apart(tmp_path):
    profile = operator_profile(
        lookup(tmp_path / "net.tflite", WEIGHT), {"ids": np.array([1, 2], np.int64)}, runs=2
    )
    assert [(operator.op, operator.delegated) for operator in profile] == [("GATHER", False)]


def test_several_inputs_and_outputs_are_profiled_by_their_names(tmp_path):
    path = two_and_two(tmp_path / "net.tflite")
    feeds = {"a": np.ones(2, np.float32), "b": np.ones((3, 2), np.float32)}
    assert len(operator_profile(path, feeds, runs=2)) == 2


def test_a_profile_with_wrong_feeds_fails_in_one_line(path):
    with pytest.raises(MeasureError) as caught:
        operator_profile(path, {"z": np.ones((1, 6), np.float32)}, runs=1)
    assert re.match(r"measuring net\.tflite failed: .*'x'.*'z'", str(caught.value))
    with pytest.raises(MeasureError, match=r"^measuring net\.tflite failed: .*Resize.*$"):
        operator_profile(path, {"x": np.ones((1, 7), np.float32)}, runs=1)


def test_a_profile_of_a_bad_file_fails_in_one_line(path):
    path.write_bytes(b"no model")
    with pytest.raises(BadFileError):
        operator_profile(path, {})


# ---- memory -----------------------------------------------------------------------------------

SIDE = 2000
WEIGHT_BYTES = SIDE * SIDE * 4


@needs_proc
def test_packed_copies_and_the_mapped_file_are_weights_in_memory(tmp_path):
    path = tied_ffn(tmp_path / "my net (1).tflite", random_weight(SIDE, SIDE))
    fresh = measure_fresh(path, {"x": np.ones((1, SIDE), np.float32)}, runs=2)
    held = fresh.memory
    # the delegate packs a copy for each of two uses, from the one that is mapped
    assert 2.9 * WEIGHT_BYTES <= held.weights_resident_bytes <= 3.3 * WEIGHT_BYTES
    assert held.anonymous_bytes >= 1.9 * WEIGHT_BYTES
    assert held.file_bytes >= 0.99 * WEIGHT_BYTES
    assert held.loaded_rss_bytes - held.baseline_rss_bytes >= 1.9 * WEIGHT_BYTES
    assert held.peak_rss_bytes >= held.settled_rss_bytes
    assert fresh.load_ms > 0
    assert fresh.first_ms > 0


@needs_proc
def test_a_small_model_weighs_little(tmp_path):
    path = sum_of_two(tmp_path / "net.tflite")
    feeds = {name: np.ones((2, 3), np.float32) for name in "xy"}
    assert measure_fresh(path, feeds, runs=1).memory.weights_resident_bytes < 1_000_000


@needs_proc
def test_measuring_a_corrupt_file_fails_in_one_line(path):
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(MeasureError) as caught:
        measure_fresh(path, {"x": np.ones((2, 6), np.float32)})
    assert re.match(r"measuring net\.tflite failed: .*BadFileError: .*$", str(caught.value))


def test_the_warm_up_model_is_what_its_source_says(tmp_path):
    rebuilt = tflite_models.warm_up(tmp_path / "warm_up.tflite")
    assert warm_up_model(tmp_path).read_bytes() == rebuilt.read_bytes()
