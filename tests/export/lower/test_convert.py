"""What a whole graph needs besides its operators: inputs, outputs, types, and clear refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from export.errors import LoweringError
from export.lower.tflite import write_tflite
from runtimes.litert import open_session
from tests.export.conftest import run_onnx

HEAD = '<ir_version: 10, opset_import: ["" : 20]> '


def both(text: str, path, **feeds) -> dict[str, np.ndarray]:
    """Run a graph lowered and in ONNX Runtime; gives the outputs, which are the same."""
    model = ir.from_onnx_text(HEAD + text)
    write_tflite(model, path)
    outputs = open_session(path).run(feeds)
    for (name, found), expected in zip(outputs.items(), run_onnx(model, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)
        assert found.dtype == expected.dtype
    assert list(outputs) == [value.name for value in model.graph.outputs]
    return outputs


@pytest.fixture
def path(tmp_path):
    return tmp_path / "one.tflite"


X = np.float32([[1, -2, 3], [4, 5, -6]])


def test_an_output_may_be_an_input_a_constant_a_shape_or_another_output(path):
    outputs = both(
        "g (float[n, 3] x) => (float[n, 3] x2, float[n, 3] y, float[n, 3] z, int64[2] s, "
        "float[2] c, int64 rows) "
        "{ x2 = Identity(x) y = Relu(x) z = Identity(y) s = Shape(x) "
        "c = Constant<value_floats=[1.0, 2.0]>() first = Shape<start=0, end=1>(x) "
        "rows = Squeeze(first) }",
        path,
        x=X,
    )
    assert outputs["s"].tolist() == [2, 3]


def test_an_input_that_nobody_reads_stays_an_input(path):
    both("g (float[2, 3] x, float[n] u) => (float[2, 3] y) { y = Relu(x) }", path, x=X,
         u=np.ones(5, np.float32))  # fmt: skip


def test_nothing_but_shapes_may_be_asked_for(path):
    outputs = both(
        "g (float[n, m] x) => (int64 y) { n = Shape(x) p = ReduceProd<keepdims=0>(n) "
        "o = Constant<value_int=2>() y = Mul(p, o) }",
        path,
        x=X,
    )
    assert outputs["y"] == 12


def test_two_sizes_that_vary_are_run_in_any_order(path):
    model = ir.from_onnx_text(
        HEAD + "g (float[b, t, 6] x, float[b, t] keep) => (float[b, t, 6] y, float[p, 3] z) "
        "{ n = Shape<start=0, end=2>(x) heads = Constant<value_ints=[2, 3]>() "
        "s = Concat<axis=0>(n, heads) h = Reshape(x, s) q = Transpose<perm=[0,2,1,3]>(h) "
        "k = Transpose<perm=[0,2,3,1]>(h) a = MatMul(q, k) two = Constant<value_ints=[1, 2]>() "
        "m = Unsqueeze(keep, two) b = Mul(a, m) w = Softmax<axis=-1>(b) o = MatMul(w, q) "
        "r = Transpose<perm=[0,2,1,3]>(o) six = Constant<value_ints=[6]>() "
        "back = Concat<axis=0>(n, six) y = Reshape(r, back) "
        "rows = Constant<value_ints=[-1, 3]>() z = Reshape(y, rows) }"
    )
    write_tflite(model, path)
    session = open_session(path)
    random = np.random.default_rng(0)
    for b, t in ((1, 1), (2, 7), (3, 2), (1, 9), (2, 7), (1, 1)):
        feeds = {
            "x": random.standard_normal((b, t, 6)).astype(np.float32),
            "keep": random.standard_normal((b, t)).astype(np.float32),
        }
        expected = run_onnx(model, feeds)
        for found, want in zip(session.run(feeds).values(), expected, strict=True):
            np.testing.assert_allclose(found, want, rtol=0, atol=1e-5)


def test_constants_alone_are_computed_while_lowering_or_in_the_file(path):
    for size in (4, 5000):
        both(
            f"g (float[n, {size}] x) => (float[n, {size}] y) "
            f"{{ s = Constant<value_ints=[{size}]>() o = ConstantOfShape<value=float[1] {{2}}>(s) "
            "r = Sqrt(o) a = Add(r, o) y = Mul(x, a) }",
            path,
            x=np.ones((2, size), np.float32),
        )


def test_values_of_64_bits_are_floats_of_32(path):
    model = ir.from_onnx_text(
        HEAD + "g (float[2, 3] x) => (float[2, 3] y) "
        "{ d = Cast<to=11>(x) two = Constant<value=double {2.0}>() e = Mul(d, two) "
        "y = Cast<to=1>(e) }"
    )
    write_tflite(model, path)
    np.testing.assert_array_equal(open_session(path).run({"x": X})["y"], 2 * X)


def test_the_graph_that_is_given_stays_as_it_was(path):
    model = ir.from_onnx_text(
        HEAD + "g (float[2, 3] x) => (float[2, 3] y) { h = HardSigmoid<alpha=0.16666667>(x) "
        "y = Mul(x, h) }"
    )
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    write_tflite(model, path)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_everything_that_has_no_form_is_named_at_once(path):
    model = ir.from_onnx_text(
        HEAD + "g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) "
        "{ [first] a = Atan(x) [good] b = Relu(a) [second] y = Asin(b) [third] z = Cosh(x) }"
    )
    with pytest.raises(LoweringError) as found:
        write_tflite(model, path)
    for words in ("3 nodes", "Atan 'first'", "Asin 'second'", "Cosh 'third'", "no such operator"):
        assert words in str(found.value)
    assert "good" not in str(found.value)
    assert not path.exists()


def test_an_operator_of_another_domain_is_refused_with_its_domain(path):
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]> '
        "g (float[2, 3] x) => (float[2, 3] y) { [own] y = com.microsoft.FastGelu(x) }"
    )
    with pytest.raises(LoweringError, match="FastGelu"):
        write_tflite(model, path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<ir_version: 8, opset_import: ["" : 12]> g (float[2] x) => (float[2] y) { y = Relu(x) }',
         "opset 12"),
        (HEAD + "g (float16[2] x) => (float16[2] y) { y = Relu(x) }", "'x' has type float16"),
        (HEAD + "g (double[2] x) => (double[2] y) { y = Relu(x) }", "'x' has type float64"),
        (HEAD + "g (string[2] x) => (string[2] y) { y = Identity(x) }", "'x' has type"),
        (HEAD + "g (bool c, float[2] x) => (float[2] y) { [here] y = If(c) "
         "<then_branch = a () => (float[2] p) { p = Relu(x) }, "
         "else_branch = b () => (float[2] q) { q = Neg(x) }> }", "here"),
    ],
)  # fmt: skip
def test_what_no_file_can_hold_is_refused(text, words, path):
    with pytest.raises(LoweringError, match=words):
        write_tflite(ir.from_onnx_text(text), path)
    assert not path.exists()


def test_functions_of_a_model_are_inlined(path):
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20, "own" : 1]> '
        "g (float[2] x) => (float[2] y) { y = own.twice(x) } "
        '<domain: "own", opset_import: ["" : 20]> twice (a) => (b) { b = Add(a, a) }'
    )
    write_tflite(ir.from_proto(proto), path)
    assert open_session(path).run({"x": np.float32([1, 2])})["y"].tolist() == [2, 4]


def test_a_size_that_only_a_calculation_gives_is_refused_by_name(path):
    model = ir.from_onnx_text(
        HEAD + "g (float[n, 3] x) => (int64[1] y) { n = Shape<start=0, end=1>(x) "
        "m = Mul(n, n) y = Mul(m, n) }"
    )
    with pytest.raises(LoweringError, match=r"'y'.*cannot be derived"):
        write_tflite(model, path)
