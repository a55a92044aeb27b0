"""A weight that is read in several orders of its axes is stored in one."""

from __future__ import annotations

import numpy as np
import pytest

from export.lower import SETTINGS
from export.lower.tflite import write_tflite
from export.stored import stored_bytes
from runtimes.litert import open_session
from tests.export.conftest import run_onnx
from tests.export.lower.single_operators import case, check, i64, model_of
from tests.export.lower.test_tflite_random_graphs import weight_bytes

ZERO_BIAS_BYTES = 64
IMAGE, FILTER = (2, 6, 8, 8), (8, 6, 3, 3)

SHARED = [
    case("a = Conv(x, w) y = ConvTranspose(a, w)", x=IMAGE, w=FILTER),
    case("a = Conv(x, w) y = ConvTranspose<strides=[2,2]>(a, w)", x=IMAGE, w=FILTER),
    case("a = ConvTranspose(x, w) y = Conv(a, w)", x=(2, 8, 8, 8), w=FILTER),
    case("a = Conv(x, w) v = Transpose<perm=[1,0,2,3]>(w) y = Conv(a, v)", x=IMAGE, w=FILTER),
    case(
        "a = Conv(x, w) v = Transpose<perm=[1,0,2,3]>(w) y = ConvTranspose(x, v)",
        x=IMAGE,
        w=FILTER,
    ),
    case(
        "a = Conv<group=8>(x, w) y = ConvTranspose<group=8>(a, w)", x=(2, 8, 8, 8), w=(8, 1, 3, 3)
    ),
    case(
        "a = Conv<group=2>(x, w) y = ConvTranspose<group=2>(a, w)", x=(2, 8, 8, 8), w=(8, 4, 3, 3)
    ),
    case("a = Conv(x, w) y = ConvTranspose(a, w)", x=IMAGE, w=(8, 6, 1, 1)),
    case(
        "a = Conv(x, w) b = Reshape(w, s) y = MatMul(x2, b)",
        x=IMAGE,
        w=FILTER,
        s=i64([8, 54]),
        x2=(3, 8),
    ),
    case(
        "a = Conv(x, w) b = Add(a, c) y = Relu(b) d = Reshape(c, s) e = Add(x2, d) y2 = Tanh(e)",
        x=IMAGE,
        w=(8, 6, 1, 1),
        c=(8, 8, 8),
        s=i64([8, 64]),
        x2=(8, 64),
    ),
    case(
        "a = Conv(x, w) y = PRelu(a, s) y2 = PRelu(x2, s) y3 = LayerNormalization<axis=1>(a, s) "
        "y4 = Concat<axis=0>(a, t) y5 = Concat<axis=0>(x2, t)",
        x=IMAGE,
        w=(8, 6, 1, 1),
        s=(8, 8, 8),
        t=(1, 8, 8, 8),
        x2=(2, 8, 8, 8),
    ),
    case(
        "y = Gather(w, i) t = Transpose<perm=[1,0]>(w) a = MatMul(x, w) y2 = MatMul(a, t)",
        x=(3, 64),
        w=(64, 80),
        i=i64([1, 2]),
    ),
    case("y = Gemm(x, w) y2 = Gemm<transB=1>(y, w)", x=(3, 64), w=(64, 80)),
    case("y = Gemm<transA=1>(x, w) y2 = MatMul(x2, w)", x=(64, 3), w=(64, 80), x2=(2, 3, 64)),
    case("y = MatMul(w, x) y2 = MatMul(x2, w)", x=(64, 3), w=(80, 64), x2=(3, 80)),
    case("t = Transpose<perm=[1,0]>(w) y = MatMul(t, x) y2 = MatMul(w, y)", x=(80, 3), w=(80, 64)),
    case(
        "t = Transpose<perm=[0,2,1]>(w) a = MatMul(x, w) y = MatMul(a, t)",
        x=(2, 3, 64),
        w=(2, 64, 80),
    ),
    case(
        'a = Einsum<equation="bi,ij->bj">(x, w) y = Einsum<equation="bj,ij->bi">(a, w)',
        x=(3, 64),
        w=(64, 80),
    ),
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("one", SHARED, ids=str)
def test_a_weight_that_is_read_in_several_layouts_is_stored_once(one, setting, tmp_path):
    path = tmp_path / "one.tflite"
    check(one, path, setting=setting)
    assert weight_bytes(path) <= stored_bytes(model_of(one)) + ZERO_BIAS_BYTES


@pytest.mark.parametrize("one", SHARED[:1] + SHARED[-1:], ids=str)
def test_so_it_is_in_half_precision(one, tmp_path):
    path = tmp_path / "one.tflite"
    write_tflite(model_of(one), path, precision="float16")
    halves = sum(array.nbytes for array in one.constants.values()) / 2
    assert path.stat().st_size < halves + 6000
    outputs = open_session(path).run(one.inputs)
    expected = run_onnx(model_of(one), one.inputs)
    for found, want in zip(outputs.values(), expected, strict=True):
        np.testing.assert_allclose(found, want, rtol=0, atol=5e-3 * abs(want).max())
