"""ONNX files from elsewhere: what other exporters untied is tied again, in every format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from devices.deploy import deploy
from devices.options import Options
from devices.source import resolve
from devices.target import find_target
from export.audit import LIMIT, audit_file
from export.capture import trace
from export.naive import write_naive
from runtimes import open_artifact
from weightspace.layers import TiedFFN

QUIET = Options(profile=False)
AXES = ({0: "batch"},)


class Net(nn.Module):
    """A tied convolution, then tied products."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.empty(16, 32, 1, 1))
        self.ffn = TiedFFN(32, 96)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(F.conv2d(x, self.filter))
        x = x + F.conv2d(h, self.filter.transpose(0, 1))
        return self.head(self.ffn(x.mean((2, 3))))


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    """Write a file in which an exporter stored the transposed uses as copies."""
    torch.manual_seed(0)
    module = Net().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    path = tmp_path_factory.mktemp("files") / "net.onnx"
    write_naive(trace(module, (torch.randn(2, 32, 6, 6),), AXES), path)
    return module, path


@pytest.mark.parametrize("target", ["raspberry-pi", "android"])
def test_copies_in_a_file_are_tied_again(untied, target, tmp_path):
    module, path = untied
    parameters = 4 * sum(parameter.numel() for parameter in module.parameters())
    assert audit_file(path).weight_bytes > 1.3 * parameters
    done = deploy(str(path), find_target(target), tmp_path / "out", QUIET)
    for variant in done.report.variants:
        assert variant.parity.max_rel <= 1e-4
        if variant.name == "naive":
            assert variant.ratio > 1.3
        else:
            assert variant.ratio <= LIMIT
            assert variant.weight_bytes <= LIMIT * parameters
    assert done.manifest["model"]["source"] == "net.onnx"
    assert "with the given file" in (tmp_path / "out" / "report.html").read_text().lower()


def test_the_reference_is_the_file_as_given(untied):
    module, path = untied
    source = resolve(str(path))
    inputs, words = source.parity_inputs()
    assert words == "random numbers"
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs[0])).numpy()
    np.testing.assert_allclose(source.reference(inputs)[0], expected, atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"no model at all", None])
def test_a_file_that_is_no_model_is_refused_in_one_line(content, untied, tmp_path, cli):
    path = tmp_path / "bad.onnx"
    path.write_bytes(untied[1].read_bytes()[:500] if content is None else content)
    outcome = cli("export", "--target", "android", "--model", path, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert "bad.onnx" in outcome.error_lines[0]
    assert not (tmp_path / "out").exists()


def test_what_has_no_form_in_tflite_is_named_and_leaves_the_other_format(tmp_path, cli):
    import onnx

    text = (
        '<ir_version: 8, opset_import: ["" : 18]> g (float[n, 64] x) => (float[n, 64] z) '
        "<float[64, 64] w> { y = MatMul(x, w) d = Det(w) z = Add(y, d) }"
    )
    model = onnx.parser.parse_model(text)
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) / 8
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    path = tmp_path / "det.onnx"
    onnx.save(model, path)
    outcome = cli("export", "--target", "android", "--model", path, "--out", tmp_path / "a")
    assert outcome.code == 1
    assert len(outcome.error_lines) == 1
    assert "Det" in outcome.error_lines[0]
    assert "no such operator" in outcome.error_lines[0]
    assert not (tmp_path / "a").exists()
    outcome = cli(
        "export", "--target", "raspberry-pi", "--model", path, "--out", tmp_path / "b",
        "--no-profile",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "No .tflite file: 1 node has no TFLite form: Det" in outcome.out
    assert not list((tmp_path / "b").glob("*.tflite"))


def test_images_of_any_size_and_functions_of_the_model(tmp_path):
    import onnx

    text = """
    <ir_version: 8, opset_import: ["" : 18, "local" : 1]>
    g (float[N, 3, H, W] x) => (float[N, 4, h, w] z) <float[4, 3, 3, 3] f> {
      y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x, f)
      z = local.act(y)
    }
    <domain: "local", opset_import: ["" : 18]>
    act (a) => (b) { s = Sigmoid(a) b = Mul(a, s) }
    """
    model = onnx.parser.parse_model(text)
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "f"))
    onnx.save(model, tmp_path / "any.onnx")
    path = tmp_path / "any.onnx"
    done = deploy(str(path), find_target("raspberry-pi"), tmp_path / "out", QUIET)
    assert [v.format for v in done.report.variants] == ["onnx"] * 3 + ["tflite"] * 3
    session = open_artifact(tmp_path / "out" / "model.latency-first.tflite")
    reference = open_artifact(path)
    for shape in ((1, 3, 10, 12), (2, 3, 33, 7)):
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        (expected,) = reference.run({"x": x}).values()
        (found,) = session.run({"x": x}).values()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_that_are_inputs_with_a_default(untied, tmp_path):
    deploy(str(untied[1]), find_target("raspberry-pi"), tmp_path / "first", QUIET)
    ours = tmp_path / "first" / "model.memory-first.onnx"
    done = deploy(str(ours), find_target("android"), tmp_path / "second", QUIET)
    assert done.manifest["artifacts"][0]["inputs"][0]["shape"][1:] == (32, 6, 6)
    assert len(done.manifest["artifacts"][0]["inputs"]) == 1
    assert all(v.ratio <= LIMIT for v in done.report.variants)
