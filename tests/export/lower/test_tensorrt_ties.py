"""A weight that is read in several ways is one block of an engine's weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from devices.source import resolve
from export.capture import capture, trace
from export.lower.tensorrt import write_tensorrt
from export.lower.tensorrt.build import LIMIT
from export.onnx_io import load_model
from export.passes import run_pipeline
from tests.export.conftest import run_onnx
from tests.export.lower.tensorrt_engines import weights_in_engine
from weightspace.layers import TiedAttention, TiedBottleneck, TiedFFN

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds engines on Linux x86-64 alone")

PRECISIONS = ("float32", "float16")
TRAINED = {
    "vit-pe-fmnist": 1.7,
    "vit-fmnist": 0.99,
    "resnet-pe-fmnist": 1.15,
    "resnet-fmnist": 0.99,
}


class FFNStack(torch.nn.Sequential):
    def __init__(self):
        super().__init__(*(TiedFFN(192, 768) for _ in range(3)))


class Embedded(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(500, 192)

    def forward(self, x):
        return self.table(x) @ self.table.weight.t()


NETS = {
    "FFN stack": (FFNStack, lambda: torch.randn(2, 17, 192)),
    "attention": (lambda: TiedAttention(192, 4), lambda: torch.randn(2, 17, 192)),
    "conv bottlenecks": (
        lambda: torch.nn.Sequential(*(TiedBottleneck(256, 64) for _ in range(3))),
        lambda: torch.randn(2, 256, 14, 14),
    ),
    "wide conv bottleneck": (lambda: TiedBottleneck(1024, 256), lambda: torch.randn(2, 1024, 7, 7)),
    "embedding": (Embedded, lambda: torch.randint(0, 500, (2, 9))),
}  # fmt: skip


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETS)
def test_an_engine_holds_each_tied_weight_once(name, precision, tmp_path):
    torch.manual_seed(0)
    make, make_input = NETS[name]
    module, x = make().eval(), make_input()
    axes = ({0: "batch"},)
    graph = capture(trace(module, (x,), axes), input_names=["x"], dynamic_shapes=axes)
    run_pipeline("canonical", graph.model)
    stored = weights_in_engine(graph.model, tmp_path, precision)
    # Each tensor is padded to 256 bytes, which shows in nets as small as these.
    slack = 256 * len(graph.ties.stored)
    assert stored <= LIMIT * graph.ties.unique_bytes_at(precision) + slack

    with torch.no_grad():
        expected = module(x).numpy()
    (found,) = run_onnx(load_model(tmp_path / "net.tensorrt.onnx"), {"x": x.numpy()})
    limit = (2e-2 if precision == "float16" else 1e-4) * abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("name", TRAINED)
def test_an_engine_of_the_zoo_holds_each_weight_once_and_the_naive_one_does_not(name, tmp_path):
    source = resolve(name)
    graph = source.capture()
    run_pipeline(source.pipeline, graph)
    source.write_naive(tmp_path / "naive.onnx")
    naive = load_model(tmp_path / "naive.onnx")
    for precision in PRECISIONS:
        unique = source.ties(graph).unique_bytes_at(precision)
        assert weights_in_engine(graph, tmp_path, precision) <= LIMIT * unique
        stored = weights_in_engine(naive, tmp_path, precision, naive=True)
        assert stored >= TRAINED[name] * unique


@pytest.mark.parametrize("name", ["vit-pe-b16", "resnet50-pe"])
def test_an_engine_of_a_full_size_model_holds_each_weight_once(name, tmp_path):
    source = resolve(name)
    graph = source.capture()
    run_pipeline(source.pipeline, graph)
    for precision in PRECISIONS:
        unique = source.ties(graph).unique_bytes_at(precision)
        assert weights_in_engine(graph, tmp_path, precision) <= LIMIT * unique


def test_writing_leaves_the_canonical_graph_as_it_is(tmp_path):
    source = resolve("vit-pe-fmnist")
    graph = source.capture()
    run_pipeline(source.pipeline, graph)
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    write_tensorrt(graph, tmp_path / "net.tensorrt.onnx", "float16")
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == before
