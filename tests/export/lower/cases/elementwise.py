"""Elementwise operators."""

from __future__ import annotations

import numpy as np

from tests.export.lower.single_operators import (
    BOOLS,
    EDGES,
    FAR,
    INF,
    NAN,
    POSITIVE,
    SIGNED,
    case,
    i32,
    i64,
)

ELEMENTWISE = [
    *(
        case(f"y = {kind}(x)", x=EDGES)
        for kind in (
            "Abs",
            "Ceil",
            "Cos",
            "Erf",
            "Exp",
            "Floor",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "LeakyRelu",
            "Mish",
            "Neg",
            "Relu",
            "Round",
            "Sigmoid",
            "Sign",
            "Sin",
            "Softplus",
            "Softsign",
            "Tanh",
            "Elu",
            "Celu",
            "Selu",
            "Dropout",
        )
    ),
    *(case(f"y = {kind}(x)", x=POSITIVE) for kind in ("Log", "Sqrt", "Reciprocal")),
    *(case(f"y = {kind}(x)", x=(2, 3, 4, 5, 2)) for kind in ("Tanh", "Relu", "Erf", "Gelu")),
    *(case(f"y = {kind}(x)", x=d(SIGNED)) for kind in ("Abs", "Neg", "Sign") for d in (i32, i64)),
    case("y = Relu(x)", x=i32(SIGNED)),
    case("y = Relu(x)", x=i64(SIGNED)),
    case("y = Not(x)", x=BOOLS),
    case('y = Gelu<approximate="tanh">(x)', x=EDGES),
    case("y = LeakyRelu<alpha=0.3>(x)", x=EDGES),
    case("y = LeakyRelu<alpha=-0.3>(x)", x=EDGES),
    case("y = Elu<alpha=0.5>(x)", x=EDGES),
    case("y = Celu<alpha=0.5>(x)", x=EDGES),
    case("y = Celu<alpha=3.0>(x)", x=EDGES),
    case("y = Selu<alpha=2.0, gamma=3.0>(x)", x=EDGES),
    case("y = HardSigmoid<alpha=0.5, beta=0.1>(x)", x=EDGES),
    case("y = Round(x)", x=np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])),
    case("y = IsNaN(x)", x=np.float32([1, NAN, INF, -INF])),
    case("y = IsInf(x)", x=np.float32([1, NAN, INF, -INF])),
    case("y = IsInf<detect_negative=0>(x)", x=np.float32([1, NAN, INF, -INF])),
    case("y = IsInf<detect_positive=0>(x)", x=np.float32([1, NAN, INF, -INF])),
    case("y = IsInf<detect_positive=0, detect_negative=0>(x)", x=(2,), refused="neither sign"),
    case("y = PRelu(x, s)", x=(2, 3, 4), s=(3, 1)),
    case("y = PRelu(x, s)", x=(2, 3, 4), s=(1,)),
    case("y = PRelu(x, s)", x=(2, 3, 4), s=(2, 3, 4), varies=False),
    case("t = Conv(x, w) y = PRelu(t, s)", x=(2, 3, 4, 5), w=(6, 3, 2, 2), s=(6, 1, 1)),
    case("y, mask = Dropout(x)", x=(2, 3)),
    case("y, m = Dropout(x) y2 = Not(m)", x=(2, 3), refused="mask"),
    case(
        "y, m = Dropout(x, r, t)", x=(2, 3), r=np.float32(0.5), t=np.bool_(True), refused="training"
    ),
    case("y = Dropout(x, r, t)", x=(2, 3), r=np.float32(0.5), t=np.bool_(False)),
]


BINARY = [
    *(
        case(f"y = {kind}(x, {other})", x=shape, **{other: with_shape})
        for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")
        for other, shape, with_shape in (
            ("x2", (2, 3, 4), (2, 3, 4)),
            ("w", (2, 3, 4), (4,)),
            ("w", (2, 3, 4), (3, 1)),
            ("w", (4,), ()),
        )
    ),
    case("y = Add(x, w)", x=(2, 3, 1, 5), w=(3, 4, 1)),
    case("y = Add(x, w)", x=(2, 3, 2, 2, 2, 2), w=(3, 1, 2, 1, 2)),
    case("y = Mul(x, x2)", x=(2, 1, 4), x2=(2, 3, 1)),
    case("y = Sub(w, x)", x=(3,), w=(2, 1), varies=True),
    case("y = Add(x, x)", x=(2, 3)),
    case("y = Add(x, w)", x=(1, 3), w=(4, 1), varies=False),
    *(
        case(f"y = {kind}(x, x2)", x=dtype(SIGNED), x2=dtype([[2, -2, 3, -3]] * 3))
        for kind in ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min")
        for dtype in (i32, i64)
    ),
    case("y = Add(x, w)", x=i64([[2**40, -1]]), w=i64([1, 2])),
    case("y = Div(x, w)", x=i64([[2**20, -1]]), w=i64([2])),
    case("y = Mod(x, w)", x=i64([[7, -7]]), w=i64([3])),
    case("y = Mod<fmod=1>(x, w)", x=(2, 3), w=(3,), refused="fmod"),
    case("y = Max(x, a, b)", x=(2, 3), a=(3,), b=(1,)),
    case("y = Min(x)", x=(2, 3)),
    case("y = Mean(x, a, b)", x=(2, 3), a=(3,), b=(1,)),
    case("y = Sum(x, a, b)", x=(2, 3), a=(3,), b=(1,)),
    *(
        case(f"y = {kind}(x, x2)", x=np.float32([1, 2, 3, NAN]), x2=np.float32([1, 3, 2, NAN]))
        for kind in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    *(
        case(f"y = {kind}(x, w)", x=dtype(SIGNED), w=dtype([0, 1, -1, 2]))
        for kind in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
        for dtype in (i32, i64)
    ),
    case("y = Equal(x, x2)", x=BOOLS, x2=~BOOLS[:, ::-1]),
    case("y = Less(x, w)", x=(2, 3, 1, 2, 2), w=(3, 4, 1, 2)),
    *(
        case(f"y = {kind}(x, x2)", x=BOOLS, x2=BOOLS[:, ::-1].copy())
        for kind in ("And", "Or", "Xor")
    ),
    *(
        case(f"y = {kind}(x, w)", x=BOOLS, w=[True, False, True, False])
        for kind in ("And", "Or", "Xor")
    ),
    case("y = Where(x, x2, x3)", x=BOOLS, x2=(3, 4), x3=(3, 4)),
    case("y = Where(x, a, x3)", x=BOOLS, a=-INF, x3=(3, 4)),
    case("y = Where(x, x2, a)", x=BOOLS, x2=(3, 1), a=np.float32(0)),
    case("y = Where(c, x, a)", c=[True, False], x=(3, 1), a=np.float32([[1, 2]])),
    case("y = Where(x, x2, x3)", x=BOOLS, x2=i64(SIGNED), x3=i64(SIGNED)[:, ::-1].copy()),
    case("y = Where(x, x2, x3)", x=BOOLS, x2=BOOLS, x3=~BOOLS),
    case(
        "y = Where(x, x2, x3)",
        x=BOOLS.reshape(3, 1, 2, 2, 1),
        x2=(3, 2, 1, 2, 1),
        x3=(3, 1, 1, 1, 3),
    ),
    case("y = Pow(x, a)", x=POSITIVE, a=np.float32(2)),
    *(
        case("y = Pow(x, a)", x=POSITIVE, a=exponent)
        for exponent in (
            np.float32(3),
            np.float32(0.5),
            np.float32(-0.5),
            np.float32(1.7),
            i64(2),
            i32(3),
            i64([2, 3, 1, 0]),
            np.float32([1.5, 2, 3, -1]),
            np.float32([[[2]]]),
        )
    ),
    case("y = Pow(x, a)", x=SIGNED.astype(np.float32), a=np.float32(3)),
    case("y = Pow(x, a)", x=SIGNED.astype(np.float32), a=i64(4)),
    case("y = Pow(x, x2)", x=POSITIVE, x2=(3, 4)),
    case("y = Pow(a, x)", a=np.float32(10000), x=POSITIVE),
    case("y = Pow(x, a)", x=i32(SIGNED), a=i32(3)),
    case("y = Pow(x, a)", x=i64(SIGNED), a=i64(2)),
    case("y = Pow(x, a)", x=i32(SIGNED + 7), a=np.float32(0.5), refused="integer"),
    case("y = Pow(x, a)", x=i32(SIGNED + 7), a=i32(-1), refused="integer"),
]


CLIPS = [
    case("y = Clip(x, a, b)", x=EDGES, a=np.float32(0), b=np.float32(6)),
    case("y = Clip(x, a, b)", x=EDGES, a=np.float32(-1), b=np.float32(1)),
    case("y = Clip(x, a, b)", x=EDGES, a=np.float32(-0.5), b=np.float32(2.5)),
    case("y = Clip(x, a)", x=EDGES, a=np.float32(0)),
    case("y = Clip(x, a)", x=EDGES, a=np.float32(1e-12)),
    case("y = Clip(x, , b)", x=EDGES, b=np.float32(1)),
    case("y = Clip(x, a, b)", x=EDGES, a=np.float32(-INF), b=np.float32(INF)),
    case("y = Clip(x, a, b)", x=EDGES, a=np.float32(-3.4028235e38), b=np.float32(1)),
    case("y = Clip(x, a, b)", x=EDGES, a=np.float32(3), b=np.float32(1)),
    case("y = Clip(x)", x=EDGES),
    case("y = Clip(x, a, b)", x=i64(SIGNED), a=i64(-2), b=i64(3)),
    case("y = Clip(x, a, b)", x=i64(SIGNED), a=i64(0), b=i64(FAR)),
    case("y = Clip(x, a, b)", x=i64(SIGNED), a=i64(-FAR - 1), b=i64(2)),
    case("y = Clip(x, a, b)", x=i32(SIGNED), a=i32(0), b=i32(6)),
    case("a = ReduceMin<keepdims=0>(x) y = Clip(x, a)", x=EDGES, refused="a limit is computed"),
    case("y = Clip(x, a, b)", x=i64(SIGNED), a=i64(2**53 + 1), b=i64(2**60)),
]


FLOATS_TO_CAST = np.float32([-2.7, -1, -0.4, 0, 0.4, 1, 2.7, 100])


TYPES = {"float32": 1, "int32": 6, "int64": 7, "bool": 9}


CASTS = [
    *(
        case(f"y = Cast<to={to}>(x)", x=x)
        for to in TYPES.values()
        for x in (FLOATS_TO_CAST, i32(SIGNED), i64(SIGNED), BOOLS)
    ),
    case("y = Cast<to=1>(x)", x=np.arange(8, dtype=np.uint8)),
    case("y = Cast<to=1>(x)", x=np.arange(-4, 4, dtype=np.int8)),
    case("y = Cast<to=2>(x)", x=np.float32([0, 1.5, 200])),
    case("t = Cast<to=10>(x) y = Cast<to=1>(t)", x=np.float32([0, 1.5, 200])),
    case("t = Cast<to=11>(x) u = Mul(t, t) y = Cast<to=1>(u)", x=np.float32([0, 1.5, 200])),
    case("y = CastLike(x, a)", x=FLOATS_TO_CAST, a=i64(0)),
    case("y = CastLike(x, x2)", x=i64(SIGNED), x2=(3,)),
    case("y = Cast<to=8>(x)", x=FLOATS_TO_CAST, refused="type"),
    # numbers of 8 bits come in as images and are made floats at once
    case("y = Add(x, x)", x=np.arange(8, dtype=np.uint8), refused="uint8"),
    case("y = Equal(x, x)", x=np.arange(8, dtype=np.int8), refused="int8"),
]


SOFTMAXES = [
    *(
        case(f"y = {kind}<axis={axis}>(x)", x=(2, 3, 4, 5))
        for kind in ("Softmax", "LogSoftmax")
        for axis in (0, 1, 2, 3, -1, -2)
    ),
    *(
        case(f"y = {kind}(x)", x=shape)
        for kind in ("Softmax", "LogSoftmax")
        for shape in ((5,), (2, 3), (2, 3, 2, 2, 2), (2, 3, 2, 2, 2, 2))
    ),
    case("y = Softmax(x)", x=np.float32([[1000, 1001], [-1000, -INF]])),
    case("y = LogSoftmax(x)", x=np.float32([[1000, 1001], [-1000, 20]])),
    case("y = CumSum(x, a)", x=(2, 3, 4), a=i64(1)),
    case("y = CumSum(x, a)", x=(2, 3, 4), a=i64(-1)),
    case("y = CumSum(x, a)", x=(2, 3, 4), a=i32([0])),
    case("y = CumSum<exclusive=1>(x, a)", x=(2, 3, 4), a=i64(1)),
    case("y = CumSum<reverse=1>(x, a)", x=(2, 3, 4), a=i64(1)),
    case("y = CumSum<exclusive=1, reverse=1>(x, a)", x=(2, 3, 4), a=i64(2)),
    case("y = CumSum(x, a)", x=i64(SIGNED), a=i64(1)),
    case("y = CumSum(x, a)", x=i32(SIGNED), a=i64(0)),
    case("t = Transpose<perm=[1,0,2]>(x) y = CumSum(t, a)", x=(2, 3, 4), a=i64(1)),
]


CASES = [*ELEMENTWISE, *BINARY, *CLIPS, *CASTS, *SOFTMAXES]
