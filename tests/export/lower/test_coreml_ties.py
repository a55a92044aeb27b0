"""A weight that is read in several ways is one blob of weight.bin."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from export.capture import capture, trace
from export.lower.coreml import write_mlpackage
from export.passes import run_pipeline
from runtimes.coreml_reference import open_session
from tests.export import nets
from tests.export.lower.coreml_models import (
    blobs_of,
    parsed,
    with_core_ml,
    with_onnx_runtime,
)
from tests.runtimes.coreml_programs import operators_of

PRECISIONS = {"float32": 1e-4, "float16": 2e-2}
R = np.random.default_rng(0)


def normal(*shape):
    return R.normal(size=shape).astype(np.float32)


W, SQUARE, FILTER, WIDE = normal(16, 12), normal(12, 12), normal(6, 12, 1, 1), normal(6, 12, 3, 3)
TABLE = normal(20, 12)

# Graphs that read weights in several ways, their weights, and the operators they become.
TIED = {
    "linear and matmul": (
        "g (float[b, 5, 12] x) => (float[b, 5, 12] y) {"
        " t = Transpose<perm=[1, 0]>(W) h = MatMul(x, t) a = Relu(h) y = MatMul(a, W) }",
        {"W": W}, {"matmul": 2},
    ),
    "linear with biases": (
        "g (float[b, 5, 12] x) => (float[b, 5, 12] y) {"
        " t = Transpose<perm=[1, 0]>(W) h = MatMul(x, t) a = Add(h, c) g = Gelu(a)"
        " m = MatMul(g, W) y = Add(m, d) }",
        {"W": W, "c": normal(16), "d": normal(12)}, {"linear": 1, "matmul": 1},
    ),
    "Gemm both ways": (
        "g (float[b, 12] x) => (float[b, 12] y) {"
        " h = Gemm<transB=1>(x, W, c) y = Gemm(h, W, d) }",
        {"W": W, "c": normal(16), "d": normal(12)}, {"linear": 1, "matmul": 1},
    ),
    "three uses of a square": (
        "g (float[b, 5, 12] x) => (float[b, 5, 12] y) {"
        " t = Transpose<perm=[1, 0]>(W) h = MatMul(x, t) a = MatMul(h, W) y = MatMul(a, t) }",
        {"W": SQUARE}, {"matmul": 3},
    ),
    "an embedding and its projection": (
        "g (int64[b, s] x) => (float[b, s, 20] y) {"
        " e = Gather(W, x) t = Transpose<perm=[1, 0]>(W) y = MatMul(e, t) }",
        {"W": TABLE}, {"gather": 1, "matmul": 1},
    ),
    "a filter and its transpose": (
        "g (float[b, 12, 7, 7] x) => (float[b, 12, 7, 7] y) {"
        " h = Conv(x, W) t = Transpose<perm=[1, 0, 2, 3]>(W) y = Conv(h, t) }",
        {"W": FILTER}, {"conv": 1, "conv_transpose": 1},
    ),
    "a filter and its adjoint": (
        "g (float[b, 12, 7, 7] x) => (float[b, 12, 7, 7] y) {"
        " h = Conv<pads=[1, 1, 1, 1]>(x, W) y = ConvTranspose<pads=[1, 1, 1, 1]>(h, W) }",
        {"W": WIDE}, {"conv": 1, "conv_transpose": 1},
    ),
    "a wide filter with its channels swapped": (
        "g (float[b, 12, 7, 7] x) => (float[b, 12, 7, 7] y) {"
        " h = Conv<pads=[1, 1, 1, 1]>(x, W) t = Transpose<perm=[1, 0, 2, 3]>(W)"
        " y = Conv<pads=[1, 1, 1, 1]>(h, t) }",
        {"W": WIDE}, {"conv": 2, "transpose": 1},
    ),
    "a filter with norms that must not be folded": (
        "g (float[b, 12, 7, 7] x) => (float[b, 12, 7, 7] y) {"
        " h = Conv(x, W) n = BatchNormalization(h, s, o, m, v)"
        " t = Transpose<perm=[1, 0, 2, 3]>(W) k = Conv(n, t) c = Mul(k, p) y = Add(c, q) }",
        {"W": FILTER, "s": normal(6), "o": normal(6), "m": normal(6), "v": np.abs(normal(6)),
         "p": normal(12, 1, 1), "q": normal(12, 1, 1)},
        {"conv": 1, "conv_transpose": 1, "mul": 2, "add": 2},
    ),
    "signs that must not be folded": (
        "g (float[b, 5, 12] x) => (float[b, 5, 12] y) {"
        " t = Transpose<perm=[1, 0]>(W) h = MatMul(x, t) n = Sub(c, h) y = MatMul(n, W) }",
        {"W": W, "c": normal(16)}, {"matmul": 2, "sub": 1},
    ),
    "a matrix and a filter": (
        "g (float[b, 12, 7, 7] x, float[b, 12] z) => (float[b, 6, 7, 7] y, float[b, 6] u) {"
        " y = Conv(x, W) m = Reshape(W, size) u = Gemm<transB=1>(z, m) }",
        {"W": FILTER, "size": np.asarray([6, 12])}, {"conv": 1, "matmul": 1, "reshape": 1},
    ),
    "a weight that is an output as well": (
        "g (float[b, 16] x) => (float[b, 12] y, float[16, 12] W) { y = MatMul(x, W) }",
        {"W": W}, {"matmul": 1},
    ),
    "one layer run twice": (
        "g (float[b, 12] x) => (float[b, 12] y) {"
        " h = MatMul(x, W) a = Relu(h) y = MatMul(a, W) }",
        {"W": SQUARE}, {"matmul": 2},
    ),
    "equal constants": (
        "g (float[b, 12] x) => (float[b, 12] y) {"
        " h = MatMul(x, W) a = Relu(h) y = MatMul(a, V) }",
        {"W": SQUARE, "V": SQUARE.copy()}, {"matmul": 2},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """coremltools collects garbage after each conversion; what is there by now is left out."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def in_the_weight_file(monkeypatch):
    """Have small constants there as well: the ones here are."""
    monkeypatch.setattr("export.lower.coreml.package._INLINE_BYTES", 0)


def feeds_of(model, batch=3):
    feeds = {}
    for value in model.graph.inputs:
        sizes = [size if isinstance(size, int) else batch for size in value.shape]
        array = normal(*sizes)
        feeds[value.name] = array if value.dtype.is_floating_point() else abs(array * 9).astype(int)
    return feeds


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", TIED)
def test_each_stored_tensor_is_one_blob(case, precision, tmp_path):
    text, weights, operators = TIED[case]
    model = parsed(text, **weights)
    path = tmp_path / "tied.mlpackage"
    feeds = feeds_of(model)
    expected = with_onnx_runtime(model, feeds)
    found = with_core_ml(model, feeds, path, precision)
    for name, wanted in expected.items():
        limit = PRECISIONS[precision] * abs(wanted).max()
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=limit)
    stored = {
        w.astype(precision).tobytes() for w in weights.values() if w.size >= 10 and w.dtype != int
    }
    if case == "a matrix and a filter":
        assert [blob.size for blob in blobs_of(path)] == [FILTER.size]
    elif "norms" in case:
        assert [b.size for b in blobs_of(path)] == [FILTER.size, 12, 12]
    else:
        blobs = [blob.tobytes() for blob in blobs_of(path)]
        assert sorted(blobs) in (sorted(stored), sorted(_turned(stored, weights, precision)))
    kinds = operators_of(path)
    assert {kind: kinds.count(kind) for kind in operators} == operators


def _turned(stored, weights, precision):
    """What is stored where all readers of a matrix want its transpose."""
    return {
        w.T.astype(precision).tobytes() if w.ndim == 2 else w.astype(precision).tobytes()
        for w in weights.values()
    }


NETS = {
    "block": (nets.TiedBlock, lambda: (torch.randn(2, 5, 32),)),
    "convs": (nets.TiedConvs, lambda: (torch.randn(2, 32, 7, 7),)),
    "adjoint convs": (lambda: nets.TiedConvs(as_transposed=True),
                      lambda: (torch.randn(2, 32, 7, 7),)),
    "embedding": (nets.TiedEmbedding, lambda: (torch.randint(0, 100, (2, 7)),)),
}  # fmt: skip


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETS)
def test_a_tied_module_is_stored_once_and_agrees_with_torch(name, precision, tmp_path):
    torch.manual_seed(0)
    make, inputs = NETS[name]
    module, given = make().eval(), inputs()
    captured = capture(trace(module, given, [{0: "batch"}]), input_names=["x"],
                       dynamic_shapes=[{0: "batch"}])  # fmt: skip
    run_pipeline("canonical", captured.model)
    path = tmp_path / "net.mlpackage"
    write_mlpackage(captured.model, path, precision)
    with torch.no_grad():
        expected = module(*given).numpy()
    (found,) = open_session(path).run({"x": given[0].numpy()}).values()
    limit = PRECISIONS[precision] * abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)
    stored = sum(blob.nbytes for blob in blobs_of(path))
    assert stored <= 1.01 * captured.ties.unique_bytes_at(precision)
