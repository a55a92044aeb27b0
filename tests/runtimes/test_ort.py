from __future__ import annotations

import re
import sys

import numpy as np
import onnxruntime
import pytest

from export.errors import BadFileError, MissingExtraError
from export.records import TensorSpec
from runtimes.ort import open_session
from tests.runtimes.models import matmul, random_weight, save

WEIGHT = random_weight(6, 4)
X = random_weight(3, 6)


@pytest.fixture
def path(tmp_path):
    return save(matmul(WEIGHT), tmp_path / "net.onnx")


@pytest.fixture
def settings_given(monkeypatch):
    """Note the settings with which the runtime's own session is made."""
    given, real = [], onnxruntime.InferenceSession

    def noted(path, settings, **rest):
        given.append(settings)
        return real(path, settings, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    return given


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("as_input", [True, False])
def test_a_model_is_run_by_the_names_of_its_inputs_and_outputs(tmp_path, as_input, optimize):
    path = save(matmul(WEIGHT, as_input=as_input), tmp_path / "net.onnx")
    session = open_session(path, optimize=optimize)
    outputs = session.run({"x": X})
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], np.maximum(X @ WEIGHT, 0), rtol=1e-5, atol=1e-6)


def test_a_weight_that_is_an_input_with_a_default_is_no_input_to_feed(tmp_path):
    session = open_session(save(matmul(WEIGHT, as_input=True), tmp_path / "net.onnx"))
    assert session.inputs == (TensorSpec("x", "float32", ("batch", 6)),)
    assert session.outputs == (TensorSpec("y", "float32", ("batch", 4)),)


def test_every_output_comes_back_under_its_own_name_and_type(tmp_path):
    import onnx

    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> '
        "g (float[2, n] x, double[] scale) => (int64[1] size, float[n, 2] turned, double[] same) "
        "{ turned = Transpose(x) size = Shape<start=1>(x) same = Identity(scale) }"
    )
    session = open_session(save(model, tmp_path / "net.onnx"))
    assert [spec.dtype for spec in session.inputs] == ["float32", "float64"]
    assert session.outputs == (
        TensorSpec("size", "int64", (1,)),
        TensorSpec("turned", "float32", ("n", 2)),
        TensorSpec("same", "float64", ()),
    )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    outputs = session.run({"scale": np.array(2.5), "x": x})
    assert outputs["size"].tolist() == [3]
    assert np.array_equal(outputs["turned"], x.T)
    assert outputs["same"] == 2.5


def test_optimiser_and_threads_are_set_as_asked(path, settings_given):
    open_session(path)
    open_session(path, optimize=False, threads=2)
    levels = onnxruntime.GraphOptimizationLevel
    assert [given.graph_optimization_level for given in settings_given] == [
        levels.ORT_ENABLE_ALL,
        levels.ORT_DISABLE_ALL,
    ]
    assert [given.intra_op_num_threads for given in settings_given] == [1, 2]
    assert [given.inter_op_num_threads for given in settings_given] == [1, 1]


def test_options_of_the_manifest_reach_the_runtime(path, settings_given):
    options = {"session.disable_prepacking": "1", "optimization.not_known_to_anyone": "1"}
    session = open_session(path, options=options)
    assert session.run({"x": X})["y"].shape == (3, 4)
    for key, value in options.items():
        assert settings_given[0].get_session_config_entry(key) == value


def test_threads_do_not_spin_unless_the_options_say_so(path, settings_given):
    key = "session.intra_op.allow_spinning"
    open_session(path)
    open_session(path, options={key: "1"})
    assert [given.get_session_config_entry(key) for given in settings_given] == ["0", "1"]


def test_a_closed_session_cannot_be_run(path):
    session = open_session(path)
    session.close()
    with pytest.raises(AttributeError):
        session.run({"x": X})


# ---- refusals ---------------------------------------------------------------------------------


def refusal(path):
    with pytest.raises(BadFileError) as caught:
        open_session(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "missing.onnx"
    assert refusal(path) == f"{path} is not a file; give the path of an .onnx file"


def test_a_folder_is_no_model(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path} is not a file; give the path of an .onnx file"


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_file_that_is_cut_short_is_refused_in_one_line(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert refusal(path).startswith(f"onnxruntime cannot load {path}: ")


def test_text_is_refused_in_one_line(path):
    path.write_text("<!DOCTYPE html>\n<html>\nNot found\n")
    assert refusal(path).startswith(f"onnxruntime cannot load {path}: ")


def test_an_operator_that_the_runtime_lacks_is_named(tmp_path):
    model = matmul(WEIGHT)
    model.graph.node[1].op_type = "Reluctant"
    path = save(model, tmp_path / "net.onnx")
    assert re.match(rf"onnxruntime cannot load {re.escape(str(path))}: .*Reluctant", refusal(path))


def test_external_data_that_is_missing_is_refused_in_one_line(tmp_path):
    path = save(matmul(WEIGHT), tmp_path / "net.onnx", external=True)
    assert open_session(path).run({"x": X})["y"].shape == (3, 4)
    (tmp_path / "net.onnx.data").unlink()
    assert refusal(path).startswith(f"onnxruntime cannot load {path}: ")


@pytest.mark.parametrize(
    ("words", "reason"), [("cannot open\nat line 3\n", "cannot open"), ("", "RuntimeError")]
)
def test_a_long_story_of_the_runtime_is_cut_to_its_first_line(path, monkeypatch, words, reason):
    def fails(*_, **__):
        raise RuntimeError(words)

    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    assert refusal(path) == f"onnxruntime cannot load {path}: {reason}"


def test_without_onnxruntime_the_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        MissingExtraError,
        match=r"^package 'onnxruntime' is not installed; run: pip install 'weightspace\[ort\]'$",
    ):
        open_session(path)
