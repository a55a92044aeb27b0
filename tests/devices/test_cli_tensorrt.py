from __future__ import annotations

import json
import sys

import pytest

from export.manifest import artifacts_of, read_manifest

JETSON = ("export", "--target", "jetson", "--model", "resnet-pe-fmnist", "--no-profile")


def test_a_jetson_gets_a_graph_a_recipe_and_an_engine_that_says_what_it_is(cli, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds on Linux x86-64 alone")
    out = tmp_path / "jetson"
    axis = ("--axis", "batch:1,2,8")
    done = cli(*JETSON, "--out", out, "--keep-naive", "--tf32", "--precision", "float32", *axis)
    assert done.code == 0, done.err
    names = {path.name for path in out.iterdir()}
    assert {"model.tensorrt.onnx", "recipe.json", "build_engine.py", "model.rtx.engine"} <= names
    assert not {"model.tensorrt.onnx.data", "model.engine", "model.timings"} & names
    assert (out / "naive" / "recipe.json").is_file()
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["profiles"] == {
        "image": {"min": [1, 1, 28, 28], "opt": [2, 1, 28, 28], "max": [8, 1, 28, 28]}
    }
    assert recipe["tf32"] is True
    assert recipe["oldest_tensorrt"] == "8.6"
    assert "runs on no Jetson" in done.out
    assert "No engine of a Jetson was built" in done.out
    assert "Nothing was measured on the target" in done.out
    graph, engine = artifacts_of(read_manifest(out), out / "manifest.json")
    assert (graph.format, engine.format) == ("tensorrt", "engine")
    assert graph.parity.top1_agreement == 1.0
    assert engine.parity is None
    assert engine.ratio <= 1.01
    assert engine.naive_bytes > 1.15 * engine.unique_bytes
    assert engine.producer["tensorrt_rtx"].startswith("1.")


def test_without_a_tensorrt_package_the_recipe_is_there_and_the_reason_is_told(
    cli, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    out = tmp_path / "jetson"
    done = cli(*JETSON, "--out", out)
    assert done.code == 0, done.err
    assert (out / "recipe.json").is_file()
    assert (out / "build_engine.py").is_file()
    assert not list(out.glob("*.engine"))
    assert "No engine was built here: package 'tensorrt-rtx-cu13' is not installed" in done.out
    (graph,) = artifacts_of(read_manifest(out), out / "manifest.json")
    assert graph.precision == "float16"
    assert graph.ratio <= 1.01
    assert graph.parity.top1_agreement >= 0.995
    assert graph.parity.reference == "onnxruntime"


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("batch:1,2", "is not of the form batch:1,1,16"),
        ("batch:4,2,8", "must be in order"),
        ("width:1,2,3", "no input has an axis 'width'; dynamic axes: batch"),
    ],
)
def test_an_axis_that_makes_no_sense_is_refused(cli, tmp_path, axis, message):
    done = cli(*JETSON, "--out", tmp_path / "out", "--axis", axis)
    assert (done.code, len(done.error_lines)) == (2, 1)
    assert message in done.error_lines[0]
    assert not (tmp_path / "out").exists()


def test_an_engine_cannot_be_audited_and_the_graph_is_named(cli, tmp_path):
    path = tmp_path / "model.rtx.engine"
    path.write_bytes(b"vtrt" + bytes(60))
    done = cli("audit", path)
    assert (done.code, len(done.error_lines)) == (2, 1)
    assert "audit the .tensorrt.onnx file that it was built from" in done.error_lines[0]
