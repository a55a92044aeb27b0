"""Each pass alone, on graphs written as text; half of the cases are those it must leave alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from export.passes.cancel_weight_transposes import CancelWeightTransposesPass
from export.passes.collapse_transposed_reshapes import CollapseTransposedReshapesPass
from export.passes.expose_weights import ExposeWeightsPass
from export.passes.fold_batch_norms import FoldBatchNormsPass
from export.passes.merge_equal_initializers import MergeEqualInitializersPass
from export.passes.replace_pointwise_conv_transposes import ReplacePointwiseConvTransposesPass
from export.passes.simplify_skeleton import SimplifySkeletonPass
from export.passes.store_float16 import StoreFloat16Pass
from export.passes.switch_by_rows import SwitchByRowsPass
from export.passes.tie_transposed_copies import TieTransposedCopiesPass
from export.passes.write_tied_conv_transposes import WriteTiedConvTransposesPass
from export.passes.write_tied_gemms import WriteTiedGemmsPass
from export.stored import stored_bytes
from tests.export.conftest import run_onnx

HEAD = '<ir_version: 10, opset_import: ["" : 20]> '


def build(text: str, **weights: tuple[int, ...]) -> ir.Model:
    """Read a graph and give the named initializers random values."""
    model = ir.from_onnx_text(HEAD + text)
    random = np.random.default_rng(0)
    for name, shape in weights.items():
        array = random.standard_normal(shape).astype(np.float32)
        if name.startswith("variance"):
            array = array**2 + 0.5
        value = model.graph.initializers.get(name)
        if value is None:
            value = next(v for n in model.graph for v in n.inputs if v and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
    ShapeInferencePass()(model)
    return model


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def apply(step: ir.passes.InPlacePass, model: ir.Model, *, modified: bool, **shapes) -> list[str]:
    """Run a pass; hold it to its word, to its outputs and to the stored bytes."""
    random = np.random.default_rng(1)
    feeds = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    before, stored = run_onnx(model, feeds, optimize=False), stored_bytes(model)
    listed = ops(model)
    assert step(model).modified is modified
    if not modified:
        assert ops(model) == listed
    for expected, found in zip(before, run_onnx(model, feeds, optimize=False), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())
    assert stored_bytes(model) <= stored
    return ops(model)


def test_a_chain_of_transposes_that_cancels_goes():
    model = build(
        "g (float[n, 4] x) => (float[n, 6] y) "
        "{ a = Transpose<perm=[1,0]>(w) b = Transpose<perm=[1,0]>(a) y = MatMul(x, b) }",
        w=(4, 6),
    )
    assert apply(CancelWeightTransposesPass(), model, modified=True, x=(3, 4)) == ["MatMul"]


def test_a_tensor_read_one_way_only_is_stored_that_way():
    model = build(
        "g (float[n, 4] x) => (float[n, 6] y, float[n, 6] z) "
        "{ a = Transpose<perm=[1,0]>(w) y = MatMul(x, a) "
        "b = Transpose<perm=[1,0]>(w) z = MatMul(x, b) }",
        w=(6, 4),
    )
    assert apply(CancelWeightTransposesPass(), model, modified=True, x=(3, 4)) == ["MatMul"] * 2
    assert list(model.graph.initializers["w"].shape) == [4, 6]


def test_different_permutations_are_kept_apart():
    model = build(
        "g (float[2, 3, 4] x, float[3, 2, 4] u) => (float[2, 3, 4] y, float[3, 2, 4] z) "
        "{ a = Transpose<perm=[0,2,1]>(w) y = Add(x, a) "
        "b = Transpose<perm=[2,1,0]>(w) c = Transpose<perm=[1,2,0]>(b) "
        "d = Transpose<perm=[0,2,1]>(c) e = Transpose<perm=[1,2,0]>(d) z = Add(u, e) }",
        w=(2, 4, 3),
    )
    left = apply(CancelWeightTransposesPass(), model, modified=True, x=(2, 3, 4), u=(3, 2, 4))
    assert sorted(left) == ["Add", "Add", "Transpose", "Transpose"]


def test_a_tensor_read_both_ways_keeps_its_transpose():
    model = build(
        "g (float[n, 4] x) => (float[n, 4] y) "
        "{ a = Transpose<perm=[1,0]>(w) h = MatMul(x, a) y = MatMul(h, w) }",
        w=(6, 4),
    )
    apply(CancelWeightTransposesPass(), model, modified=False, x=(3, 4))


NORM = "BatchNormalization(c, scale, shift, mean, variance)"
VECTORS = {"scale": (5,), "shift": (5,), "mean": (5,), "variance": (5,)}


def test_a_norm_goes_into_a_convolution_of_its_own():
    model = build(
        f"g (float[n, 3, 6, 6] x) => (float[n, 5, 4, 4] y) {{ c = Conv(x, w, bias) y = {NORM} }}",
        w=(5, 3, 3, 3), bias=(5,), **VECTORS,
    )  # fmt: skip
    assert apply(FoldBatchNormsPass(), model, modified=True, x=(2, 3, 6, 6)) == ["Conv"]


def test_a_norm_leaves_a_shared_filter_alone():
    model = build(
        "g (float[n, 3, 6, 6] x, float[n, 3, 4, 4] u) => (float[n, 5, 4, 4] y, float[n, 5, 2, 2] z)"
        f"{{ c = Conv(x, w) y = {NORM} z = Conv(u, w) }}",
        w=(5, 3, 3, 3), **VECTORS,
    )  # fmt: skip
    shapes = {"x": (2, 3, 6, 6), "u": (2, 3, 4, 4)}
    before = model.graph.initializers["w"].const_value.numpy().copy()
    assert "BatchNormalization" in apply(FoldBatchNormsPass(), model, modified=True, **shapes)
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), before)


def test_a_convolution_that_is_read_twice_keeps_its_norm():
    model = build(
        "g (float[n, 3, 6, 6] x) => (float[n, 5, 4, 4] y, float[n, 5, 4, 4] z) "
        f"{{ c = Conv(x, w) y = {NORM} z = Relu(c) }}",
        w=(5, 3, 3, 3), **VECTORS,
    )  # fmt: skip
    assert "BatchNormalization" in apply(FoldBatchNormsPass(), model, modified=True, x=(2, 3, 6, 6))


@pytest.mark.parametrize(
    ("attributes", "modified"),
    [("", True), ("<strides=[2,2]>", False), ("<group=2>", False), ("<pads=[1,1,1,1]>", False)],
)
def test_only_a_plain_pointwise_transposed_convolution_becomes_a_convolution(attributes, modified):
    filters = 3 if attributes == "<group=2>" else 6
    model = build(
        "g (float[n, 4, 5, 5] x) => (float[n, 6, p, q] y) "
        f"{{ y = ConvTranspose{attributes}(x, w) }}",
        w=(4, filters, 1, 1),
    )
    step = ReplacePointwiseConvTransposesPass()
    assert ("Conv" in apply(step, model, modified=modified, x=(2, 4, 5, 5))) is modified


@pytest.mark.parametrize(
    ("attributes", "modified"),
    [("", True), ("<strides=[2,2]>", False), ("<pads=[1,1,1,1]>", False)],
)
def test_a_convolution_on_a_transposed_filter_becomes_a_transposed_one(attributes, modified):
    model = build(
        "g (float[n, 4, 5, 5] x) => (float[n, 6, p, q] y) "
        f"{{ v = Transpose<perm=[1,0,2,3]>(w) y = Conv{attributes}(x, v) }}",
        w=(4, 6, 1, 1),
    )
    apply(WriteTiedConvTransposesPass(), model, modified=modified, x=(2, 4, 5, 5))


def test_equal_tensors_are_joined_and_near_ones_are_not():
    model = build(
        "g (float[n, 4] x) => (float[n, 4] y) { a = Add(x, u) b = Add(a, v) y = Add(b, w) }",
        u=(4,), v=(4,), w=(4,),
    )  # fmt: skip
    initializers = model.graph.initializers
    array = initializers["u"].const_value.numpy()
    initializers["v"].const_value = ir.tensor(array.copy())
    initializers["w"].const_value = ir.tensor(np.nextafter(array, np.float32(9)))
    apply(MergeEqualInitializersPass(), model, modified=True, x=(3, 4))
    assert list(initializers) == ["u", "w"]


def test_simplification_folds_shapes_and_never_a_weight():
    model = build(
        "g (float[n, 4] x) => (float[m, 2] y) "
        "{ v = Transpose<perm=[1,0]>(w) z = MatMul(x, v) s = Shape(w) "
        "two = Constant<value_ints=[2]>() minus = Constant<value_ints=[-1]>() "
        "t = Concat<axis=0>(minus, two) y = Reshape(z, t) }",
        w=(6, 4),
    )
    left = apply(SimplifySkeletonPass(), model, modified=True, x=(3, 4))
    assert left == ["Transpose", "MatMul", "Reshape"]
    assert list(model.graph.initializers["w"].shape) == [6, 4]


TIED = (
    "g (float[b, t, 4] x) => (float[b, t, 4] y) "
    "{ v = Transpose<perm=[1,0]>(w) h = MatMul(x, v) i = Add(h, bias) j = Gelu(i) "
    "y = MatMul(j, w) }"
)


def test_tied_products_become_gemms_with_one_reshape_around_them():
    model = build(TIED, w=(6, 4), bias=(6,))
    left = apply(WriteTiedGemmsPass(), model, modified=True, x=(2, 3, 4))
    assert left.count("Gemm") == 2
    assert left.count("Flatten") == left.count("Reshape") == 1
    assert not {"MatMul", "Transpose", "Add"} & set(left)


def test_an_untied_product_stays_a_matmul():
    model = build("g (float[b, t, 4] x) => (float[b, t, 6] y) { y = MatMul(x, w) }", w=(4, 6))
    apply(WriteTiedGemmsPass(), model, modified=False, x=(2, 3, 4))


def test_exposed_weights_are_inputs_that_nobody_needs_to_feed():
    model = build(TIED, w=(64, 4), bias=(64,))
    WriteTiedGemmsPass()(model)
    apply(ExposeWeightsPass(), model, modified=True, x=(2, 3, 4))
    assert [value.name for value in model.graph.inputs] == ["x", "w"]


def test_few_rows_and_many_take_their_own_branch_on_one_set_of_weights():
    model = build(TIED, w=(64, 4), bias=(64,))
    WriteTiedGemmsPass()(model)
    for tokens in (3, 40):  # 6 and 80 rows
        copy = model.clone()
        left = apply(SwitchByRowsPass(), copy, modified=True, x=(2, tokens, 4))
        assert left[-1] == "If"
        assert set(left[:-1]) == {"Shape", "Concat", "ReduceProd", "Constant", "LessOrEqual", "Sub"}
        assert set(copy.graph.initializers) == {"w", "bias"}
        apply(SwitchByRowsPass(), copy, modified=False, x=(2, tokens, 4))


@pytest.mark.parametrize(
    "text",
    [
        TIED.replace("float[b, t, 4] x", "float[2, 3, 4] x").replace(
            "float[b, t, 4] y", "float[2, 3, 4] y"
        ),
        TIED.replace("[b, t, 4]", "[b, 40, 4]"),  # never few rows
        "g (float[b, t, 4] x) => (float[b, t, 64] y) "
        "{ v = Transpose<perm=[1,0]>(w) y = MatMul(x, v) }",
    ],
)
def test_rows_that_do_not_vary_or_are_many_or_untied_are_not_switched(text):
    model = build(text, w=(64, 4), **({"bias": (64,)} if "bias" in text else {}))
    WriteTiedGemmsPass()(model)
    shape = (2, 40, 4) if "40" in text else (2, 3, 4)
    apply(SwitchByRowsPass(), model, modified=False, x=shape)


def detour(back: str) -> str:
    return (
        "g (float[2, 3, 4, 5] x) => (float[a, b, c, d] y) "
        "{ s = Constant<value_ints=[-1, 4, 5]>() f = Reshape(x, s) "
        f"t = Transpose<perm=[0,2,1]>(f) r = Constant<value_ints={back}>() y = Reshape(t, r) }}"
    )


@pytest.mark.parametrize(
    ("back", "modified"),
    [
        ("[2, 3, 5, 4]", True),
        ("[-1, 3, 5, 4]", True),
        ("[3, 2, 5, 4]", False),
        ("[6, 1, 5, 4]", False),
    ],
)
def test_a_detour_is_taken_out_only_where_the_shapes_prove_it(back, modified):
    model = build(detour(back))
    for node in model.graph:  # as lifted by the simplifier
        if node.op_type == "Constant":
            ints = node.attributes["value_ints"].as_ints()
            node.outputs[0].const_value = ir.tensor(np.asarray(ints, np.int64))
    left = apply(CollapseTransposedReshapesPass(), model, modified=modified, x=(2, 3, 4, 5))
    assert (left == ["Transpose"]) is modified


# ---- transposed copies ------------------------------------------------------------------------


def with_copy(change=lambda copy: copy) -> ir.Model:
    """A matrix used straight, and its transpose stored as well."""
    model = build(
        "g (float[n, 8] x) => (float[n, 8] z) <float[8, 16] w, float[16, 8] copy>"
        "{ y = MatMul(x, w) z = MatMul(y, copy) }",
        w=(8, 16), copy=(16, 8),
    )  # fmt: skip
    array = model.graph.initializers["w"].const_value.numpy()
    copy = change(np.ascontiguousarray(array.T))
    model.graph.initializers["copy"].const_value = ir.tensor(copy, name="copy")
    return model


def test_a_transposed_copy_is_tied_again():
    model = with_copy()
    before = stored_bytes(model)
    assert apply(TieTransposedCopiesPass(), model, modified=True, x=(3, 8)) == [
        "Transpose", "MatMul", "MatMul",
    ]  # fmt: skip
    assert stored_bytes(model) == before // 2
    apply(TieTransposedCopiesPass(), model, modified=False, x=(3, 8))


def test_a_copy_that_differs_in_one_bit_is_left_alone():
    def nudged(copy: np.ndarray) -> np.ndarray:
        copy[3, 5] = np.nextafter(copy[3, 5], np.float32(9))
        return copy

    apply(TieTransposedCopiesPass(), with_copy(nudged), modified=False, x=(3, 8))


def test_matrices_of_one_number_are_left_alone():
    model = with_copy(lambda copy: np.zeros_like(copy))
    model.graph.initializers["w"].const_value = ir.tensor(np.zeros((8, 16), np.float32), name="w")
    assert not TieTransposedCopiesPass()(model).modified


# ---- StoreFloat16 -----------------------------------------------------------------------------


def halve(model: ir.Model, *, modified: bool = True, **shapes) -> list[str]:
    """Store weights that float16 holds as float16: then not a bit of the outputs changes."""
    for value in model.graph.initializers.values():
        array = value.const_value.numpy()
        if array.dtype == np.float32:
            value.const_value = ir.tensor(array.astype(np.float16).astype(np.float32))
    return apply(StoreFloat16Pass(), model, modified=modified, **shapes)


def test_a_tied_weight_becomes_float16_once():
    model = build(
        "g (float[n, 8] x) => (float[n, 8] z) "
        "{ h = Gemm(x, W) y = Relu(h) z = Gemm<transB = 1>(y, W) }",
        W=(8, 24),
    )
    listed = halve(model, x=(3, 8))
    assert listed == ["Cast", "Gemm", "Relu", "Gemm"]
    assert stored_bytes(model) == 8 * 24 * 2


def test_only_the_rows_that_are_read_of_a_table_become_float32():
    text = "g (int64[n] i) => (float[n, 4] z) { r = Gather(W, i) z = Relu(r) }"
    model = build(text, W=(50, 4))
    feeds = {"i": np.array([3, 49, 0])}
    (expected,) = run_onnx(model, feeds, optimize=False)
    assert StoreFloat16Pass()(model).modified
    assert ops(model) == ["Gather", "Cast", "Relu"]
    (found,) = run_onnx(model, feeds, optimize=False)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_table_that_is_read_in_another_way_too_becomes_float32_as_a_whole():
    model = build(
        "g (float[n, 4] x) => (float[n, 50] z) <int64[2] i = {7, 9}> "
        "{ t = Transpose<perm = [1, 0]>(W) y = MatMul(x, t) r = Gather(W, i) "
        "s = ReduceSum<keepdims = 0>(r) z = Add(y, s) }",
        W=(50, 4),
    )
    assert halve(model, x=(3, 4))[0] == "Cast"
    assert stored_bytes(model) == 50 * 4 * 2 + 2 * 8


def test_a_weight_that_is_an_output_keeps_its_type():
    model = build(
        "g (float[n, 50] x) => (float[n, 4] z, float[50, 4] W) { z = MatMul(x, W) }", W=(50, 4)
    )
    halve(model, modified=False, x=(3, 50))


def test_single_numbers_and_integers_are_left_as_they_are():
    model = build(
        "g (float[n, 4] x) => (float[n, 4] z) <float[1] e = {1e-12}, int64[2] s = {-1, 4}> "
        "{ y = Add(x, e) z = Reshape(y, s) }"
    )
    halve(model, modified=False, x=(3, 4))
