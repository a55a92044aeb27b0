"""The graph that is prepared: its opset, its types, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from export.audit import audit_file
from export.errors import BadFileError, LoweringError, UnknownNameError
from export.lower.tensorrt import recipe_of, write_tensorrt
from export.lower.tensorrt.preflight import problems_of
from export.lower.tensorrt.versions import oldest_version
from export.onnx_io import load_model
from export.passes import run_pipeline
from export.passes.lower_opset import LowerOpsetPass
from export.passes.separate_tied_products import SeparateTiedProductsPass
from export.passes.write_float16 import LARGEST, WriteFloat16Pass, narrowed
from tests.export.conftest import run_onnx
from tests.export.lower.coreml_models import parsed

R = np.random.default_rng(0)


def normal(*shape):
    return R.normal(size=shape).astype(np.float32)


def lowered(text, feeds, opset=20, **weights):
    """Lower a graph, hold it against what it was, and give it."""
    model = parsed(text, **weights)
    model.opset_imports[""] = opset
    expected = run_onnx(model, feeds, optimize=False)
    assert LowerOpsetPass()(model).modified
    for wanted, found in zip(expected, run_onnx(model, feeds, optimize=False), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * max(1, abs(wanted).max()))
    assert not LowerOpsetPass()(model).modified
    return model


OLDER = {
    "Gelu": "y = Gelu(x)",
    "Gelu by tanh": 'y = Gelu<approximate="tanh">(x)',
    "a mean": "y = ReduceMean<keepdims=1>(x, axes)",
    "a maximum of all": "y = ReduceMax<keepdims=1>(x)",
    "an even split": "y, rest = Split<axis=1, num_outputs=2>(x)",
    "a split with a smaller rest": "y, a, rest = Split<axis=1, num_outputs=3>(x)",
    "a cast": "h = Cast<to=1, saturate=1>(x) y = Relu(h)",
    "a shape": "s = Shape(x) y = Reshape(x, s)",
}


@pytest.mark.parametrize("case", OLDER)
def test_what_opset_20_adds_is_written_in_17(case):
    x = normal(2, 8, 6)
    body = OLDER[case]
    text = f"g (float[2, 8, 6] x) => (float[a, b, c] y) {{ {body} }}"
    weights = {"axes": np.asarray([-1])} if "axes" in body else {}
    model = lowered(text, {"x": x}, **weights)
    assert model.opset_imports[""] == 17


def test_a_graph_that_17_cannot_express_is_written_in_20_or_left_alone():
    text = "g (float[2, 8] x) => (float[2, 8] y) { y = Mish(x) }"
    model = parsed(text)
    model.opset_imports[""] = 21
    LowerOpsetPass()(model)
    assert model.opset_imports[""] == 20
    text = "g (float[2, 8] x, float[8] w) => (float[2, 8] y) { y = RMSNormalization(x, w) }"
    model = parsed(text)
    model.opset_imports[""] = 23
    assert not LowerOpsetPass()(model).modified
    assert model.opset_imports[""] == 23


def test_the_oldest_version_follows_from_the_opset_and_the_operators():
    assert oldest_version(17, {"LayerNormalization"}) == "8.6"
    assert oldest_version(20, {"Relu"}) == "10.0"
    assert oldest_version(20, {"Gelu"}) == "10.15"
    assert oldest_version(25, {"Relu"}) == "11.0"
    assert oldest_version(17, {"Unique"}) is None
    assert oldest_version(99, {"Relu"}) is None


# ---- float16 ----------------------------------------------------------------------------------

NORM = (
    "g (float[b, 7] x) => (float[b, 7] y) { m = ReduceMean<axes=[-1]>(x) d = Sub(x, m)"
    " q = Mul(d, d) v = ReduceMean<axes=[-1]>(q) s = Add(v, tiny) r = Sqrt(s) n = Div(d, r)"
    " y = Mul(n, w) }"
)


def halved(text, opset=17, **weights):
    model = parsed(text, **weights)
    model.opset_imports[""] = opset
    run_pipeline("tensorrt-float16", model)
    return model


def test_a_norm_that_is_written_out_keeps_its_squares_and_its_epsilon_in_float32():
    model = halved(NORM, tiny=np.float32(1e-12), w=normal(7))
    x = normal(3, 7) * 2000  # squares are beyond float16
    x[0] = 1  # a variance of 0
    (found,) = run_onnx(model, {"x": x}, optimize=False)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    weight = model.graph.initializers["w"].const_value.numpy()
    assert weight.dtype == np.float16
    np.testing.assert_allclose(found, expected * weight, rtol=0, atol=0.02)


def test_inputs_and_outputs_stay_float32_and_a_weight_is_cast_once():
    w = normal(16, 12)
    model = halved(
        "g (float[b, 5, 12] x) => (float[b, 5, 12] y) {"
        " t = Transpose<perm=[1, 0]>(W) h = MatMul(x, t) a = Relu(h) y = MatMul(a, W) }",
        W=w,
    )
    assert [v.dtype for v in model.graph.inputs] == [ir.DataType.FLOAT]
    assert [v.dtype for v in model.graph.outputs] == [ir.DataType.FLOAT]
    assert [v.name for v in model.graph.outputs] == ["y"]
    stored = [v.const_value.numpy() for v in model.graph.initializers.values()]
    assert [a.dtype for a in stored if a.size == w.size] == [np.float16]
    casts = [node for node in model.graph if node.op_type == "Cast"]
    assert len(casts) == 2


def test_numbers_of_a_mask_stay_finite_and_infinity_stays():
    values = np.asarray([np.finfo(np.float32).min, -np.inf, 1e5, 1.0])
    np.testing.assert_array_equal(narrowed(values), np.float16([-LARGEST, -np.inf, LARGEST, 1]))


def test_a_position_that_was_an_integer_is_counted_in_float32():
    model = halved(
        "g (int64[b] x) => (float[b] y) { f = Cast<to=1>(x) h = Mul(f, two) y = Sub(h, one) }",
        two=np.float32(2), one=np.float32(1),
    )  # fmt: skip
    (found,) = run_onnx(model, {"x": np.asarray([2049, 4097])}, optimize=False)
    np.testing.assert_array_equal(found, [4097, 8193])


def test_a_branch_is_refused_in_float16_with_the_other_precision_named(tmp_path):
    text = (
        "g (float[2] x, bool c) => (float[2] y) {"
        " y = If (c) <then_branch = a () => (float[2] p) { p = Relu(x) },"
        " else_branch = b () => (float[2] q) { q = Neg(x) }> }"
    )
    with pytest.raises(LoweringError, match="--precision float32"):
        write_tensorrt(parsed(text), tmp_path / "net.onnx", "float16")
    write_tensorrt(parsed(text), tmp_path / "net.onnx", "float32")


def test_a_clone_of_a_graph_that_was_narrowed_is_as_it_was():
    model = parsed("g (float[b, 3] x) => (float[b, 3] y) { h = MatMul(x, W) y = Relu(h) }",
                   W=normal(3, 3))  # fmt: skip
    WriteFloat16Pass()(model.clone())
    types = {v.dtype for node in model.graph for v in node.outputs if v.dtype is not None}
    assert types <= {ir.DataType.FLOAT}
    assert model.graph.initializers["W"].const_value.numpy().dtype == np.float32


# ---- products apart ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "apart"),
    [  # untied; tied to each other; one of them tied to something after
        ("q = MatMul(x, A) k = MatMul(x, B) y = Add(q, k)", 0),
        ("t = Transpose<perm=[1, 0]>(A) q = MatMul(x, A) k = MatMul(x, t) y = Add(q, k)", 1),
        ("q = MatMul(x, A) k = MatMul(x, B) a = Add(q, k) y = MatMul(a, B)", 1),
    ],
)
def test_only_tied_products_of_one_tensor_are_kept_apart(text, apart):
    a, b, x = normal(6, 6), normal(6, 6), normal(2, 6)
    model = parsed(f"g (float[n, 6] x) => (float[n, 6] y) {{ {text} }}", A=a, B=b)
    expected = run_onnx(model, {"x": x}, optimize=False)
    assert SeparateTiedProductsPass()(model).modified == bool(apart)
    assert sum(node.op_type == "Max" for node in model.graph) == apart
    np.testing.assert_array_equal(run_onnx(model, {"x": x}, optimize=False), expected)
    assert not SeparateTiedProductsPass()(model).modified


# ---- what is refused ---------------------------------------------------------------------------


def test_all_unsupported_nodes_are_named_at_once_before_anything_is_written(tmp_path):
    model = parsed(
        "g (float[4] x) => (float[n] y, float[m] z)"
        " { y, a, b, c = Unique(x) w = Relu(x) z = Compress(w, keep) }",
        keep=np.asarray([True, False, True, True]),
    )
    for place, node in enumerate(model.graph):
        node.name = f"node{place}"
    with pytest.raises(LoweringError) as caught:
        write_tensorrt(model, tmp_path / "net.onnx", "float32")
    message = str(caught.value)
    assert message.startswith("2 nodes have no TensorRT form: Unique 'node0'")
    assert "Compress 'node2'" in message
    assert "operators.md, TensorRT 10.15" in message
    assert list(tmp_path.iterdir()) == []


def test_an_operator_of_a_foreign_domain_needs_a_plugin():
    model = parsed("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    model.graph.node(0).domain = "com.microsoft"
    (problem,) = problems_of(model)
    assert "com.microsoft" in problem
    assert "plugin" in problem


def test_a_precision_that_is_not_known_is_refused(tmp_path):
    model = parsed("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    with pytest.raises(UnknownNameError, match="float16, float32"):
        write_tensorrt(model, tmp_path / "net.onnx", "int8")


def test_a_file_with_its_weights_beside_it_becomes_one_file(tmp_path):
    model = parsed("g (float[b, 300] x) => (float[b, 300] y) { y = MatMul(x, W) }",
                   W=normal(300, 300))  # fmt: skip
    ir.save(model, tmp_path / "given.onnx", external_data="given.data")
    path = tmp_path / "net.tensorrt.onnx"
    prepared = write_tensorrt(load_model(tmp_path / "given.onnx"), path, "float32")
    (tmp_path / "given.data").unlink()
    assert load_model(path).graph.initializers["W"].const_value.numpy().shape == (300, 300)
    assert recipe_of(prepared, path.name, "float32").oldest_version == "8.6"


def test_an_engine_is_not_audited_and_the_graph_is_named(tmp_path):
    path = tmp_path / "model.rtx.engine"
    path.write_bytes(b"vtrt" + bytes(100))
    with pytest.raises(BadFileError, match=r"audit the \.tensorrt\.onnx"):
        audit_file(path)
