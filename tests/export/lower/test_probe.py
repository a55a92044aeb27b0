from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from export.errors import LoweringError
from export.lower.probe import probe
from export.lower.sizes import Dim, in_file, signature

HEAD = '<ir_version: 10, opset_import: ["" : 20]> '


def probed(text: str, **weights: np.ndarray):
    model = ir.from_onnx_text(HEAD + text)
    for name, array in weights.items():
        value = next(v for node in model.graph for v in node.inputs if v and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = (
            ir.Shape(array.shape),
            ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        model.graph.register_initializer(value)
    return probe(model)


def test_two_symbols_are_told_apart_and_from_what_is_made_of_them():
    found = probed(
        "g (float[b, t, 4] x) => (float[p, q] y) "
        "{ a = Transpose<perm=[1,0,2]>(x) s = Constant<value_ints=[-1, 4]>() y = Reshape(a, s) "
        "n = Shape(x) two = Constant<value_int=2>() h = Mul(n, two) }"
    )
    b, t = found.shapes["x"][:2]
    assert isinstance(b, Dim)
    assert isinstance(t, Dim)
    assert b != t
    assert found.shapes["a"] == (t, b, 4)
    assert found.shapes["y"] == (b * t, 4)
    assert found.sizes("n") == (b, t, 4)
    assert found.sizes("h") == (b * 2, t * 2, 8)
    assert signature(found.shapes["y"]) == (-1, 4)
    assert in_file(found.shapes["x"]) == (1, 1, 4)


def test_the_same_symbol_is_one_size_and_a_nameless_one_is_its_own():
    found = probed(
        "g (float[n, 4] x, float[n, 4] u, float[?, 4] v) => (float[n, 4] y) "
        "{ y = Add(x, u) z = Relu(v) }"
    )
    assert found.shapes["x"] == found.shapes["u"] == found.shapes["y"]
    assert found.shapes["v"] != found.shapes["x"]


def test_without_symbols_every_size_is_a_number():
    found = probed("g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) n = Shape(x) }")
    assert found.shapes["y"] == (2, 3)
    assert found.sizes("n") == (2, 3)
    assert found.sizes("y") is None


def test_an_image_that_cannot_have_one_pixel_is_tried_larger():
    filters = np.ones((2, 3, 5, 5), np.float32)
    text = "g (float[1, 3, h, w] x) => (float[1, 2, p, q] y) { y = Conv(x, f) }"
    found = probed(text, f=filters)
    high, wide = found.shapes["x"][2:]
    assert in_file((high, wide)) == (8, 8)
    assert found.shapes["y"] == (1, 2, high - 4, wide - 4)


def test_what_is_empty_at_first_is_tried_larger():
    found = probed(
        "g (float[n, 4] x) => (float[m, 4] y) "
        "{ s = Constant<value_ints=[3]>() e = Constant<value_ints=[9000]>() y = Slice(x, s, e) }"
    )
    assert in_file(found.shapes["x"]) == (8, 4)
    assert in_file(found.shapes["y"]) == (5, 4)


def test_many_symbols_are_all_told_apart():
    names = [f"x{i}" for i in range(40)]
    inputs = ", ".join(f"float[?, {i + 1}] {name}" for i, name in enumerate(names))
    found = probed(f"g ({inputs}) => (float[n, 1] y) {{ y = Relu(x0) }}")
    assert len({found.shapes[name][0] for name in names}) == len(names)


def test_a_bound_of_the_graph_is_not_taken_for_the_size():
    found = probed(
        "g (float[n, 4] x) => (float[m, 4] y) "
        "{ s = Constant<value_ints=[0]>() e = Constant<value_ints=[512]>() "
        "y = Slice(x, s, e) }"
    )
    assert found.shapes["y"] != found.shapes["x"]


def test_a_model_of_positions_up_to_a_number_takes_no_more():
    found = probed(
        "g (float[1, n, 4] x) => (float[1, n, 4] y) "
        "{ n = Shape<start=1, end=2>(x) s = Constant<value_ints=[0]>() "
        "p = Slice(w, s, n) y = Add(x, p) }",
        w=np.ones((32, 4), np.float32),
    )
    assert found.shapes["y"] == found.shapes["x"]


def test_what_is_large_is_not_computed():
    found = probed(
        "g (float[n, 4] x) => (float[n, n] y) "
        "{ n = Shape<start=0, end=1>(x) s = Concat<axis=0>(n, n) "
        "y = ConstantOfShape(s) }"
    )
    (n, _) = found.shapes["x"]
    assert found.shapes["y"] == (n, n)
    assert "y" not in found.known


def test_what_grows_with_an_input_has_no_contents():
    found = probed(
        "g (float[n, 4] x) => (int64[n] y) "
        "{ n = Shape<start=0, end=1>(x) m = Squeeze(n) "
        "a = Constant<value_int=0>() d = Constant<value_int=1>() "
        "y = Range(a, m, d) }"
    )
    assert found.shapes["y"] == (found.shapes["x"][0],)
    assert found.sizes("y") is None
    assert found.sizes("m") == (found.shapes["x"][0],)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("g (float[n, 3] x) => (int64[2, k] y) { [here] y = NonZero(x) }", "here.*model runs"),
        (
            "g (float[1, 3, 2, 2] x) => (float[1, 3, p, q] y) "
            "{ [here] y = MaxPool<kernel_shape=[4,4]>(x) }",
            "here",
        ),
        ("g (float[2, 3] x, float[4] u) => (float[2, 3] y) { [here] y = Add(x, u) }", "here"),
        ("g (float[n, 3] x, float[m, 3] u) => (float[n, 3] y) { [here] y = Add(x, u) }", "here"),
        ("g (float x) => (float y) { [here] y = Unheard(x) }", "here.*Unheard"),
    ],
)
def test_a_shape_that_nobody_knows_is_refused_with_the_node(text, words):
    with pytest.raises(LoweringError, match=words):
        probed(text)


def test_a_place_that_no_trial_has_is_refused():
    graph = onnx.parser.parse_graph(
        "g (float[2, 3] x) => (float[3] y) "
        "{ i = Constant<value_int=5>() [here] y = Gather<axis=0>(x, i) }"
    )
    opset = onnx.helper.make_opsetid("", 20)
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[opset]))
    with pytest.raises(LoweringError, match=r"here.*beyond the 2"):
        probe(model)


def test_an_input_without_a_shape_is_refused():
    model = ir.from_onnx_text(HEAD + "g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model.graph.inputs[0].shape = None
    with pytest.raises(LoweringError, match="'x' has no shape"):
        probe(model)
