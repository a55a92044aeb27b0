"""Each operator, lowered and evaluated beside ONNX Runtime."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from export.lower.coreml.ops import OPERATORS
from tests.export.lower.coreml_models import Given, one_node, with_core_ml, with_onnx_runtime

R = np.random.default_rng(0)


def floats(*shape, low=-2.0, high=2.0):
    return R.uniform(low, high, shape).astype(np.float32)


def ints(*values):
    return np.asarray(values, np.int64)


X = floats(2, 3, 4)
IMAGE = floats(2, 4, 9, 8)
POSITIVE = floats(2, 3, 4, low=0.1)
UNIT = floats(2, 3, 4, low=-0.9, high=0.9)
COUNTS = R.integers(-5, 9, (2, 3, 4))
FLAGS = R.random((2, 3, 4)) < 0.5
FILTER = floats(6, 4, 3, 3)
GROUPED = floats(6, 2, 3, 3)
PADS = [1, 0, 2, 1]


def dynamic(array):
    return Given(array, dynamic=True)


CASES = {
    # activations and other operators on one input
    **{
        kind: (kind, dynamic(X))
        for kind in (
            "Abs", "Atan", "Celu", "Ceil", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu",
            "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "LogSoftmax", "Mish", "Neg",
            "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax",
            "Softplus", "Softsign", "Tan", "Tanh",
        )
    },
    **{kind: (kind, dynamic(POSITIVE)) for kind in ("Log", "Sqrt")},
    **{kind: (kind, dynamic(UNIT)) for kind in ("Acos", "Asin", "Atanh")},
    "Gelu by tanh": ("Gelu", Given(X), {"approximate": "tanh"}),
    "Celu of 0.5": ("Celu", Given(X), {"alpha": 0.5}),
    "Elu of 0.5": ("Elu", Given(X), {"alpha": 0.5}),
    "Softmax of the middle": ("Softmax", Given(X), {"axis": 1}),
    "LogSoftmax of the middle": ("LogSoftmax", Given(X), {"axis": 1}),
    "HardSigmoid of other slopes": ("HardSigmoid", Given(X), {"alpha": 0.3, "beta": 0.1}),
    "Abs of integers": ("Abs", Given(COUNTS)),
    "Neg of integers": ("Neg", Given(COUNTS)),
    "Dropout": ("Dropout", Given(X)),
    "Clip": ("Clip", Given(X), np.float32(-1), np.float32(0.5)),
    "Clip to 6": ("Clip", Given(4 * X), np.float32(0), np.float32(6)),
    "Clip from below": ("Clip", Given(X), np.float32(-1)),
    "Clip from above": ("Clip", Given(X), None, np.float32(1)),
    "Clip of integers": ("Clip", Given(COUNTS), np.int64(0), np.int64(3)),
    "PRelu": ("PRelu", Given(X), floats(3, 1)),
    "Not": ("Not", Given(FLAGS)),
    "IsNaN": ("IsNaN", Given(np.where(FLAGS, X, np.nan).astype(np.float32))),
    "IsInf": ("IsInf", Given(np.where(FLAGS, X, -np.inf).astype(np.float32))),
    "IsInf above": ("IsInf", Given(np.where(FLAGS, X, np.inf).astype(np.float32)),
                    {"detect_negative": 0}),
    "Cast to integers": ("Cast", Given(4 * X), {"to": 7}),
    "Cast to booleans": ("Cast", Given(np.where(FLAGS, X, 0).astype(np.float32)), {"to": 9}),
    "CastLike": ("CastLike", Given(COUNTS), floats(1)),
    "Cast of integers": ("Cast", Given(COUNTS), {"to": 1}),
    "CumSum": ("CumSum", Given(X), np.int64(1)),
    "CumSum of others": ("CumSum", Given(X), np.int64(-1), {"exclusive": 1, "reverse": 1}),
    "CumSum of integers": ("CumSum", Given(COUNTS), np.int64(1)),
    # two and more inputs
    **{kind: (kind, Given(X), Given(floats(3, 1))) for kind in ("Add", "Sub", "Mul", "Div")},
    **{
        f"{kind} with a constant": (kind, dynamic(X), floats(3, 1))
        for kind in ("Add", "Sub", "Mul", "Div")
    },
    **{
        kind: (kind, Given(COUNTS), Given(COUNTS.transpose(0, 1, 2)[:, ::-1].copy()))
        for kind in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    },
    **{kind: (kind, Given(FLAGS), Given(FLAGS[:, :1].copy())) for kind in ("And", "Or", "Xor")},
    **{kind: (kind, Given(X), Given(floats(4)), floats(3, 1)) for kind in (
        "Min", "Max", "Sum", "Mean")},
    "Equal of booleans": ("Equal", Given(FLAGS), Given(FLAGS[:, :1].copy())),
    "Div of integers": ("Div", Given(abs(COUNTS)), np.int64(3)),
    "Mod": ("Mod", Given(COUNTS), np.int64(3)),
    "Pow of 2": ("Pow", Given(X), np.float32(2)),
    "Pow of 3": ("Pow", Given(X), np.float32(3)),
    "Pow of a half": ("Pow", Given(POSITIVE), np.float32(0.5)),
    "Pow": ("Pow", Given(POSITIVE), Given(X)),
    "Where": ("Where", Given(FLAGS), Given(X), Given(floats(4))),
    "Where of a wide condition": ("Where", Given(FLAGS), Given(floats(4)), Given(floats(1, 1))),
    "Where of a mask": ("Where", dynamic(FLAGS), np.float32(0), np.float32(-1e4)),
    "Where of infinity": ("Where", dynamic(FLAGS), np.float32(0), np.float32(-np.inf)),
    "Where of integers": ("Where", dynamic(FLAGS), np.int64(3), np.int64(5)),
    # products
    "MatMul": ("MatMul", Given(X), Given(floats(2, 4, 5))),
    "MatMul of a weight": ("MatMul", dynamic(X), floats(4, 5)),
    "MatMul of a weight and four axes": ("MatMul", dynamic(IMAGE), floats(8, 5)),
    "MatMul of a vector": ("MatMul", Given(X), Given(floats(4))),
    "MatMul by a vector": ("MatMul", Given(floats(3)), Given(X)),
    "MatMul of vectors": ("MatMul", Given(floats(3)), Given(floats(3))),
    "Gemm": ("Gemm", dynamic(floats(3, 4)), floats(4, 5), floats(5)),
    "Gemm transposed": ("Gemm", dynamic(floats(3, 4)), floats(5, 4), floats(5), {"transB": 1}),
    "Gemm of all": ("Gemm", Given(floats(4, 3)), floats(5, 4), floats(3, 5),
                    {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    "Gemm of scaled bias": ("Gemm", Given(floats(3, 4)), floats(4, 5), floats(5), {"alpha": 0.5}),
    "Gemm of values": ("Gemm", Given(floats(3, 4)), Given(floats(5, 4)), {"transB": 1}),
    "Einsum": ("Einsum", Given(X), Given(floats(2, 5, 4)), {"equation": "bij,bkj->bik"}),
    "Einsum turned": ("Einsum", Given(X), Given(floats(4, 5)), {"equation": "bij,jk->kib"}),
    # convolutions and pools
    "Conv": ("Conv", dynamic(IMAGE), FILTER, floats(6), {"pads": PADS}),
    "Conv with strides": ("Conv", Given(IMAGE), FILTER, {"strides": [2, 1], "dilations": [1, 2]}),
    "Conv in groups": ("Conv", Given(IMAGE), GROUPED, {"group": 2}),
    "Conv depthwise": ("Conv", Given(IMAGE), floats(4, 1, 3, 3), {"group": 4}),
    "Conv SAME": ("Conv", Given(IMAGE), FILTER, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "Conv SAME below": ("Conv", Given(IMAGE), FILTER, {"auto_pad": "SAME_LOWER",
                                                       "strides": [2, 2]}),
    "Conv of a line": ("Conv", dynamic(X), floats(5, 3, 2), floats(5), {"pads": [1, 0]}),
    "Conv of a volume": ("Conv", Given(floats(1, 2, 4, 4, 4)), floats(3, 2, 2, 2, 2)),
    "ConvTranspose": ("ConvTranspose", dynamic(IMAGE), floats(4, 5, 3, 3), floats(5)),
    "ConvTranspose with strides": ("ConvTranspose", Given(IMAGE), floats(4, 5, 3, 3),
                                   {"strides": [2, 2], "pads": [1, 1, 1, 1],
                                    "output_padding": [1, 1]}),
    "ConvTranspose in groups": ("ConvTranspose", Given(IMAGE), floats(4, 3, 2, 2),
                                {"group": 2, "strides": [2, 2]}),
    "MaxPool": ("MaxPool", dynamic(IMAGE), {"kernel_shape": [3, 2], "strides": [2, 2]}),
    "MaxPool padded": ("MaxPool", Given(IMAGE), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "MaxPool of ceil_mode": ("MaxPool", Given(IMAGE), {"kernel_shape": [2, 3], "strides": [2, 3],
                                                       "ceil_mode": 1}),
    "MaxPool of a line": ("MaxPool", Given(X), {"kernel_shape": [2]}),
    "AveragePool": ("AveragePool", dynamic(IMAGE), {"kernel_shape": [3, 2]}),
    "AveragePool padded": ("AveragePool", Given(IMAGE), {"kernel_shape": [3, 3],
                                                         "pads": [1, 1, 1, 1]}),
    "AveragePool that counts": ("AveragePool", Given(IMAGE), {
        "kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    "AveragePool of ceil_mode": ("AveragePool", Given(IMAGE), {
        "kernel_shape": [2, 3], "strides": [2, 3], "ceil_mode": 1}),
    "GlobalAveragePool": ("GlobalAveragePool", dynamic(IMAGE)),
    "GlobalMaxPool": ("GlobalMaxPool", Given(IMAGE)),
    # moving elements
    "Reshape": ("Reshape", Given(X), ints(2, 2, 6)),
    "Reshape of a batch": ("Reshape", dynamic(X), ints(0, -1)),
    "Flatten": ("Flatten", dynamic(IMAGE), {"axis": 2}),
    "Squeeze": ("Squeeze", dynamic(floats(2, 1, 4, 1)), ints(1, 3)),
    "Unsqueeze": ("Unsqueeze", dynamic(X), ints(0, -1)),
    "Transpose": ("Transpose", dynamic(IMAGE), {"perm": [0, 2, 3, 1]}),
    "Transpose of all": ("Transpose", Given(X)),
    "Expand": ("Expand", dynamic(floats(2, 1, 4)), ints(1, 3, 1)),
    "Expand to more axes": ("Expand", Given(floats(3, 1)), ints(2, 3, 4)),
    "Expand of booleans": ("Expand", Given(FLAGS[:, :1].copy()), ints(2, 3, 4)),
    "Tile": ("Tile", dynamic(X), ints(1, 2, 3)),
    "Concat": ("Concat", dynamic(X), dynamic(floats(2, 2, 4)), {"axis": 1}),
    "Concat with nothing": ("Concat", Given(X), np.zeros((2, 0, 4), np.float32), {"axis": 1}),
    "Split": ("Split", dynamic(X), ints(1, 3), {"axis": -1, "outputs": 2}),
    "Split evenly": ("Split", Given(IMAGE), {"axis": 1, "outputs": 2, "num_outputs": 2}),
    "Slice": ("Slice", dynamic(IMAGE), ints(1, -3), ints(9, 2**40), ints(2, 3)),
    "Slice with steps": ("Slice", Given(IMAGE), ints(0, -1), ints(9, -2**40), ints(2, 3),
                         ints(2, -3)),
    "Slice of the rest": ("Slice", Given(IMAGE), ints(1), ints(-1), ints(3)),
    "Pad": ("Pad", dynamic(IMAGE), ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(0.5)),
    "Pad of one axis": ("Pad", Given(X), ints(1, 2), None, ints(1)),
    "Pad of integers": ("Pad", Given(COUNTS), ints(0, 0, 1, 0, 1, 0), np.int64(7)),
    "Pad that cuts": ("Pad", Given(X), ints(0, -1, 1, 0, 0, -1)),
    "Pad by reflection": ("Pad", Given(IMAGE), ints(0, 0, 1, 2, 0, 0, 3, 1), {"mode": "reflect"}),
    "Pad with the edge": ("Pad", Given(IMAGE), ints(0, 0, 1, 2, 0, 0, 3, 1), {"mode": "edge"}),
    "DepthToSpace": ("DepthToSpace", dynamic(floats(2, 8, 3, 2)), {"blocksize": 2}),
    "DepthToSpace by columns": ("DepthToSpace", Given(floats(2, 8, 3, 2)),
                                {"blocksize": 2, "mode": "CRD"}),
    "SpaceToDepth": ("SpaceToDepth", Given(floats(2, 3, 4, 6)), {"blocksize": 2}),
    "Trilu": ("Trilu", Given(floats(2, 4, 5)), np.int64(1)),
    "Trilu below": ("Trilu", Given(floats(2, 4, 5)), {"upper": 0}),
    "Trilu of booleans": ("Trilu", Given(FLAGS), {"upper": 0}),
    # picking elements
    "Gather": ("Gather", floats(9, 4), dynamic(np.asarray([[1, 8], [0, 3]]))),
    "Gather from the end": ("Gather", dynamic(X), ints(-1, 0), {"axis": 2}),
    "Gather of one": ("Gather", dynamic(X), np.int64(1), {"axis": 1}),
    "Gather of one from the end": ("Gather", dynamic(X), np.int64(-1), {"axis": 1}),
    "Gather of a list of one": ("Gather", Given(X), ints(2), {"axis": 1}),
    "GatherElements": ("GatherElements", Given(X), np.asarray([[[0, -1, 2, 1]]] * 2) % 3,
                       {"axis": 1}),
    "GatherND": ("GatherND", Given(X), np.asarray([[0, 2], [1, -1]])),
    "GatherND of booleans": ("GatherND", Given(FLAGS), np.asarray([[0, 2, 3], [1, 1, 0]])),
    "OneHot": ("OneHot", dynamic(np.asarray([1, 0, 4])), np.int64(5),
               np.asarray([0.5, 2], np.float32)),
    "OneHot in front": ("OneHot", Given(np.asarray([[1, 0, 4]])), np.int64(5),
                        np.asarray([0, 1]), {"axis": 1}),
    "TopK": ("TopK", dynamic(X), ints(2), {"outputs": 2}),
    "TopK of the smallest": ("TopK", Given(X), ints(2), {"outputs": 2, "axis": 1, "largest": 0}),
    "ScatterND": ("ScatterND", Given(X), np.asarray([[0, 2], [1, 0]]), Given(floats(2, 4))),
    "ScatterND that adds": ("ScatterND", Given(X), np.asarray([[0], [0]]), Given(floats(2, 3, 4)),
                            {"reduction": "add"}),
    "ScatterElements": ("ScatterElements", Given(X), np.zeros((2, 1, 4), np.int64),
                        Given(floats(2, 1, 4)), {"axis": 1}),
    # reductions
    **{
        kind: (kind, dynamic(POSITIVE), ints(-1, 1))
        for kind in (
            "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
            "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
        )
    },
    "ReduceMean without axes": ("ReduceMean", dynamic(X), ints(1), {"keepdims": 0}),
    "ReduceSum of all": ("ReduceSum", Given(X)),
    "ReduceMax of integers": ("ReduceMax", Given(COUNTS), ints(2)),
    "ArgMax": ("ArgMax", dynamic(X), {"axis": -1}),
    "ArgMin without the axis": ("ArgMin", Given(X), {"axis": 1, "keepdims": 0}),
    # norms
    "LayerNormalization": ("LayerNormalization", dynamic(X), floats(4), floats(4)),
    "LayerNormalization of two axes": ("LayerNormalization", Given(X), floats(3, 4),
                                       {"axis": 1, "epsilon": 1e-12}),
    "BatchNormalization": ("BatchNormalization", dynamic(IMAGE), floats(4), floats(4), floats(4),
                           floats(4, low=0.1)),
    "BatchNormalization of rows": ("BatchNormalization", Given(floats(5, 4)), floats(4), floats(4),
                                   floats(4), floats(4, low=0.1)),
    "InstanceNormalization": ("InstanceNormalization", dynamic(IMAGE), floats(4), floats(4)),
    "RMSNormalization": ("RMSNormalization", Given(X), floats(4), {"opset": 23}),
    "LpNormalization": ("LpNormalization", Given(X), {"axis": 1}),
    "LpNormalization of 1": ("LpNormalization", Given(X), {"axis": -1, "p": 1}),
    # sizes
    **{
        f"Resize {name}": ("Resize", dynamic(IMAGE), None, None, ints(2, 4, *size), attributes)
        for name, size, attributes in (
            ("by 2", (18, 16), {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
                                "nearest_mode": "floor"}),
            ("to odd sizes", (13, 5), {"mode": "nearest"}),
            ("bilinear", (13, 5), {"mode": "linear"}),
            ("bilinear by corners", (13, 5), {"mode": "linear",
                                              "coordinate_transformation_mode": "align_corners"}),
            ("bilinear asymmetric", (18, 16), {"mode": "linear",
                                               "coordinate_transformation_mode": "asymmetric"}),
            ("cubic", (13, 5), {"mode": "cubic"}),
        )
    },
}  # fmt: skip
# Where rounding to float16 moves a value over an edge, or the operator magnifies.
EXACT_ONLY = {
    "Acos", "Tan", "Atanh", "Ceil", "Floor", "Round", "Cast to integers", "ReduceProd", "Erf",
    "ArgMax", "ArgMin without the axis", "IsInf", "IsInf above", "LogSoftmax", "Div",
    "TopK", "TopK of the smallest", "Pow",
}  # fmt: skip
# ONNX infers no shape of GroupNormalization; the others are tried in graphs of several nodes.
ELSEWHERE = {"ConstantOfShape", "GroupNormalization", "Range"}


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """coremltools collects garbage after each conversion; what is there by now is left out."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def build(case):
    kind, *inputs = CASES[case]
    attributes = inputs.pop() if isinstance(inputs[-1], dict) else {}
    return one_node(kind, *inputs, **attributes)


@pytest.mark.parametrize("case", CASES)
def test_an_operator_computes_what_onnx_runtime_does(case, tmp_path):
    model, feeds = build(case)
    expected = with_onnx_runtime(model, feeds)
    found = with_core_ml(model, feeds, tmp_path / "one.mlpackage")
    assert list(found) == list(expected)
    for name, wanted in expected.items():
        assert found[name].shape == wanted.shape
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case not in EXACT_ONLY])
def test_an_operator_is_near_in_float16(case, tmp_path):
    model, feeds = build(case)
    expected = with_onnx_runtime(model, feeds)
    found = with_core_ml(model, feeds, tmp_path / "one.mlpackage", "float16")
    for name, wanted in expected.items():
        finite = np.isfinite(wanted)
        scale = np.abs(wanted[finite]).max(initial=1.0)
        given = found[name]
        np.testing.assert_allclose(given[finite], wanted[finite], rtol=0, atol=1e-2 * scale)
        assert (given[~finite] < -1e4).all()  # infinity is the lowest number that float16 sums bear


def test_every_operator_of_the_table_has_a_case():
    assert {kind for kind, *_ in CASES.values()} | ELSEWHERE >= set(OPERATORS)
