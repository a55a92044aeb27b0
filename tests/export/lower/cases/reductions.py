"""Reductions and normalisations."""

from __future__ import annotations

import numpy as np

from tests.export.lower.single_operators import BOOLS, POSITIVE, SIGNED, case, i32, i64

REDUCTIONS = [
    *(
        case(
            f"y = {kind}{keep}(x{', a' if axes else ''})",
            x=(2, 3, 4),
            **({"a": i64(axes)} if axes else {}),
        )
        for kind in (
            "ReduceMean",
            "ReduceSum",
            "ReduceMax",
            "ReduceMin",
            "ReduceProd",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceLogSumExp",
        )
        for axes, keep in (
            ((), ""),
            ((), "<keepdims=0>"),
            ((1,), ""),
            ((-1,), "<keepdims=0>"),
            ((0, 2), ""),
            ((-3, 1), "<keepdims=0>"),
            ((2, 0), "<keepdims=0>"),
        )
    ),
    *(
        case(f"y = ReduceLogSum{keep}(x, a)", x=POSITIVE, a=i64([1]))
        for keep in ("", "<keepdims=0>")
    ),
    *(
        case(f"y = {kind}<keepdims=0>(x, a)", x=d(SIGNED), a=i64([1]))
        for kind in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean")
        for d in (i32, i64)
    ),
    *(
        case(f"y = {kind}<keepdims=0>(x, a)", x=BOOLS, a=i64([1]))
        for kind in ("ReduceMax", "ReduceMin")
    ),
    case("y = ReduceSumSquare(x, a)", x=i64(SIGNED), a=i64([1])),
    case("y = ReduceL1(x, a)", x=i64(SIGNED), a=i64([1])),
    case("y = ReduceSum<noop_with_empty_axes=1>(x)", x=(2, 3)),
    case("y = ReduceSum<noop_with_empty_axes=1>(x, a)", x=(2, 3), a=i64([])),
    case("y = ReduceMean(x, a)", x=(2, 3), a=i64([])),
    *(
        case(f"y = {kind}<noop_with_empty_axes=1>(x)", x=(2, 3))
        for kind in (
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceProd",
        )
    ),
    case("y = ReduceLogSum<noop_with_empty_axes=1>(x)", x=POSITIVE),
    case("y = ReduceMean<axes=[1], keepdims=0>(x)", x=(2, 3, 4), opset=17),
    case("y = ReduceMean(x, a)", x=(2, 3, 2, 2, 2), a=i64([1, 3])),
    case("y = ReduceMean(x, a)", x=(2, 3, 1, 2), a=i64([2])),
    case(
        "t = Conv(x, w) y = ReduceMean<keepdims=0>(t, a)",
        x=(2, 3, 5, 6),
        w=(4, 3, 2, 2),
        a=i64([2, 3]),
    ),
    case(
        "t = Conv(x, w) y = ReduceMean<keepdims=0>(t, a)",
        x=(2, 3, 5, 6),
        w=(4, 3, 2, 2),
        a=i64([1]),
    ),
    case("t = Transpose<perm=[2,0,1]>(x) y = ReduceSum<keepdims=0>(t, a)", x=(2, 3, 4), a=i64([0])),
    case("y = ReduceLogSumExp(x, a)", x=np.float32([[1000, 1001], [-1000, -1001]]), a=i64([1])),
    *(
        case(f"y = {kind}<axis={axis}, keepdims={keep}>(x)", x=(2, 3, 4))
        for kind in ("ArgMax", "ArgMin")
        for axis in (0, 1, -1)
        for keep in (0, 1)
    ),
    *(
        case(f"y = {kind}<axis=1>(x)", x=d(SIGNED % 3))
        for kind in ("ArgMax", "ArgMin")
        for d in (i32, i64, np.float32)
    ),
    case("y = ArgMax(x)", x=(2, 3)),
    case("t = Conv(x, w) y = ArgMax<axis=1>(t)", x=(2, 3, 5, 6), w=(4, 3, 2, 2)),
    case("y = ArgMax<select_last_index=1>(x)", x=(2, 3), refused="select_last_index"),
    case(
        "a = Cast<to=7>(x2) y = ReduceSum(x, a)",
        x=(2, 3),
        x2=i32([1]),
        varies=False,
        refused="depends on values",
    ),
]


NORMALISATIONS = [
    case("y = LayerNormalization(x, s, b)", x=(2, 3, 8), s=(8,), b=(8,)),
    case("y = LayerNormalization(x, s)", x=(2, 3, 8), s=(8,)),
    case("y = LayerNormalization<axis=1>(x, s, b)", x=(2, 3, 8), s=(3, 8), b=(3, 8)),
    case(
        "y = LayerNormalization<axis=-2, epsilon=0.1>(x, s, b)", x=(2, 3, 4, 8), s=(4, 8), b=(4, 8)
    ),
    case("y = LayerNormalization<axis=1>(x, s, b)", x=(2, 3, 8), s=(8,), b=(1,)),
    case(
        "t = Conv(x, w) y = LayerNormalization<axis=1>(t, s, b)",
        x=(2, 3, 5, 6),
        w=(4, 3, 2, 2),
        s=(4, 4, 5),
        b=(4, 4, 5),
    ),
    case(
        "t = Conv(x, w) u = Transpose<perm=[0,2,3,1]>(t) v = LayerNormalization(u, s, b) "
        "y = Transpose<perm=[0,3,1,2]>(v)",
        x=(2, 3, 5, 6),
        w=(4, 3, 2, 2),
        s=(4,),
        b=(4,),
    ),
    case("y = LayerNormalization(x, s)", x=(2, 3, 8), s=(1,)),
    case("y, y2 = LayerNormalization(x, s)", x=(2, 3, 8), s=(8,), refused="mean and deviation"),
    case(
        "y, m = LayerNormalization(x, s) y2 = Neg(m)",
        x=(2, 3, 8),
        s=(8,),
        refused="mean and deviation",
    ),
    case(
        "y = LayerNormalization(x, x2)",
        x=(2, 3, 8),
        x2=(8,),
        varies=False,
        refused="computed while",
    ),
    *(
        case(
            "y = BatchNormalization(x, s, b, m, v)",
            x=shape,
            s=(3,),
            b=(3,),
            m=(3,),
            v=np.float32([1, 2, 0.5]),
        )
        for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 2, 2))
    ),
    case(
        "y = BatchNormalization<epsilon=0.1>(x, s, b, m, v)",
        x=(2, 3, 4, 5),
        s=(3,),
        b=(3,),
        m=(3,),
        v=np.float32([1, 2, 0.5]),
    ),
    case(
        "y, a, c = BatchNormalization<training_mode=1>(x, s, b, m, v)",
        x=(2, 3, 4, 5),
        s=(3,),
        b=(3,),
        m=(3,),
        v=np.float32([1, 2, 0.5]),
        refused="training",
    ),
    case(
        "t = Conv(x, w) y2 = Relu(t) y = BatchNormalization(t, s, b, m, v)",
        x=(2, 3, 5, 6),
        w=(4, 3, 2, 2),
        s=(4,),
        b=(4,),
        m=(4,),
        v=np.float32([1, 2, 0.5, 1]),
    ),
    case("y = InstanceNormalization(x, s, b)", x=(2, 3, 4, 5), s=(3,), b=(3,)),
    case("y = InstanceNormalization<epsilon=0.1>(x, s, b)", x=(2, 3, 8), s=(3,), b=(3,)),
    case(
        "t = Conv(x, w) y = InstanceNormalization(t, s, b)",
        x=(2, 3, 5, 6),
        w=(4, 3, 2, 2),
        s=(4,),
        b=(4,),
    ),
    case(
        "y = InstanceNormalization(x, x2, b)",
        x=(3, 3, 4),
        x2=(3,),
        b=(3,),
        varies=False,
        refused="computed while",
    ),
    case("y = GroupNormalization<num_groups=2>(x, s, b)", x=(2, 6, 4, 5), s=(6,), b=(6,), opset=21),
    case(
        "y = GroupNormalization<num_groups=3, epsilon=0.1>(x, s, b)",
        x=(2, 6, 7),
        s=(6,),
        b=(6,),
        opset=21,
    ),
    case("y = GroupNormalization<num_groups=6>(x, s, b)", x=(2, 6, 4, 5), s=(6,), b=(6,), opset=21),
    case(
        "t = Conv(x, w) y = GroupNormalization<num_groups=2>(t, s, b)",
        x=(2, 3, 5, 6),
        w=(4, 3, 2, 2),
        s=(4,),
        b=(4,),
        opset=21,
    ),
    case("y = LpNormalization(x)", x=(2, 3, 4)),
    case("y = LpNormalization<axis=1>(x)", x=(2, 3, 4)),
    case("y = LpNormalization(x)", x=np.float32([[0, 0], [3, 4]])),
    case("y = LpNormalization<p=1>(x)", x=(2, 3), refused="order"),
]


CASES = [*REDUCTIONS, *NORMALISATIONS]
