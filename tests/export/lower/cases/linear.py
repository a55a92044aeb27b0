"""Products."""

from __future__ import annotations

from tests.export.lower.single_operators import SIGNED, case, i32

LINEAR = [
    *(
        case("y = MatMul(x, w)", x=x, w=w, varies=len(x) > 1)
        for x, w in (
            ((3, 4), (4, 5)),
            ((2, 3, 4), (4, 5)),
            ((2, 2, 3, 4), (4, 5)),
            ((4,), (4, 5)),
            ((3, 4), (4,)),
            ((2, 3, 4), (4,)),
            ((2, 3, 4), (2, 4, 5)),
            ((2, 3, 4), (1, 4, 5)),
            ((3, 4), (2, 4, 5)),
            ((2, 2, 3, 4), (2, 4, 5)),
            ((2, 1, 3, 4), (3, 4, 5)),
            ((4,), (4,)),
            ((4,), (2, 4, 5)),
            ((2, 3, 4, 2, 4), (4, 5)),
            ((64, 96), (96, 80)),
            ((2, 5, 96), (96, 80)),
            ((2, 2, 3, 2, 3, 4), (4, 5)),
        )
        if not (len(w) == 3 and w[0] == 2)
    ),
    *(
        case("y = MatMul(x, w)", x=x, w=w, varies=False)
        for x, w in (
            ((2, 3, 4), (2, 4, 5)),
            ((3, 4), (2, 4, 5)),
            ((2, 2, 3, 4), (2, 4, 5)),
            ((4,), (2, 4, 5)),
        )
    ),
    *(
        case("y = MatMul(w, x)", x=x, w=w, varies=False)
        for x, w in (
            ((4, 5), (3, 4)),
            ((2, 4, 5), (3, 4)),
            ((2, 2, 4, 5), (3, 4)),
            ((4, 5), (4,)),
            ((4,), (3, 4)),
            ((2, 4, 5), (2, 3, 4)),
            ((4, 5), (2, 3, 4)),
            ((96, 80), (64, 96)),
        )
    ),
    *(
        case(
            "y = MatMul(x, x2)", x=x, x2=w, varies=len(x) > 2 and len(x) == len(w) and x[0] == w[0]
        )
        for x, w in (
            ((3, 4), (4, 5)),
            ((2, 3, 4), (2, 4, 5)),
            ((2, 3, 4), (4, 5)),
            ((3, 4), (2, 4, 5)),
            ((4,), (4,)),
            ((4,), (4, 5)),
            ((3, 4), (4,)),
            ((2, 3, 4), (4,)),
            ((2, 1, 3, 4), (2, 5, 4, 2)),
            ((2, 5, 3, 4), (5, 4, 2)),
            ((2, 2, 2, 3, 4), (2, 2, 2, 4, 5)),
            ((2, 2, 2, 2, 3, 4), (2, 2, 2, 2, 4, 5)),
        )
    ),
    case("t = Transpose<perm=[1,0]>(w) y = MatMul(x, t)", x=(3, 4), w=(5, 4)),
    case("t = Transpose<perm=[1,0]>(w) h = MatMul(x, t) y = MatMul(h, w)", x=(3, 4), w=(5, 4)),
    case(
        "t = Transpose<perm=[1,0]>(w) h = MatMul(x, t) y = MatMul(h, w)", x=(2, 3, 96), w=(80, 96)
    ),
    case(
        "t = Transpose<perm=[1,0]>(w) h = MatMul(x, t) i = Add(h, b) r = Relu(i) y = MatMul(r, w)",
        x=(2, 3, 96),
        w=(80, 96),
        b=(80,),
    ),
    case("t = Transpose<perm=[0,2,1]>(x2) y = MatMul(x, t)", x=(2, 3, 4), x2=(2, 5, 4)),
    case(
        "t = Transpose<perm=[0,2,1,3]>(x) u = Transpose<perm=[0,2,3,1]>(x2) y = MatMul(t, u)",
        x=(2, 3, 4, 5),
        x2=(2, 6, 4, 5),
    ),
    case("t = MatMul(x, w) u = Add(t, b) y = Relu(u)", x=(3, 4), w=(4, 5), b=(5,)),
    case("t = MatMul(x, w) u = Add(b, t) y = Relu(u)", x=(2, 3, 4), w=(4, 5), b=(1, 1, 5)),
    case("t = MatMul(x, w) y = Add(t, b)", x=(2, 3, 4), w=(4, 5), b=(3, 1)),
    case("y = MatMul(x, x2)", x=i32(SIGNED), x2=i32(SIGNED.T), varies=False, refused="int32"),
    *(
        case(
            f"y = Gemm{attributes}(x, w, c)",
            x=(4, 3) if "transA=1" in attributes else (3, 4),
            w=(5, 4) if "transB=1" in attributes else (4, 5),
            c=c,
            varies="transA=1" not in attributes,
        )
        for attributes in (
            "",
            "<transB=1>",
            "<transA=1>",
            "<transA=1, transB=1>",
            "<alpha=0.5>",
            "<alpha=0.5, beta=2.0, transB=1>",
            "<beta=0.0>",
        )
        for c in ((5,), (1, 5), (), (1,), (1, 1))
    ),
    *(
        case(f"y = Gemm{attributes}(x, w, c)", x=(3, 4), w=(4, 5), c=c, varies=False)
        for attributes in ("", "<alpha=0.5, beta=2.0>")
        for c in ((3, 1), (3, 5))
    ),
    case("y = Gemm<transB=1>(x, w)", x=(3, 4), w=(5, 4)),
    case("y = Gemm(x, w, c)", x=(3, 4), w=(4, 1), c=(), varies=False),
    case("y = Gemm<alpha=2.0>(x, w)", x=(3, 4), w=(4, 5)),
    case("y = Gemm(x, x2)", x=(3, 4), x2=(4, 5), varies=False),
    case("y = Gemm<transA=1, transB=1>(x, x2, x3)", x=(4, 3), x2=(5, 4), x3=(5,), varies=False),
    case("y = Gemm(w, x)", x=(4, 5), w=(3, 4), varies=False),
    case("y = Gemm<transA=1>(w, x)", x=(4, 5), w=(4, 3), varies=False),
    case("y = Gemm(x, w, c)", x=(3, 96), w=(96, 80), c=(80,)),
    case("y = Gemm<transB=1>(x, w, c)", x=(3, 96), w=(80, 96), c=(80,)),
    case("t = Transpose<perm=[1,0]>(x) y = Gemm(t, w)", x=(4, 3), w=(4, 5), varies=False),
    case(
        "t = Transpose<perm=[1,0]>(x2) y = Gemm(x, w, t)",
        x=(3, 4),
        w=(4, 3),
        x2=(3, 3),
        varies=False,
    ),
    case(
        "t = Transpose<perm=[1,0]>(c) y = Gemm(x, w, t)", x=(3, 4), w=(4, 5), c=(5, 3), varies=False
    ),
    case(
        "t = Transpose<perm=[1,0]>(x2) y = Gemm(x, w, t)",
        x=(3, 4),
        w=(4, 5),
        x2=(5, 3),
        varies=False,
    ),
    *(
        case(
            f'y = Einsum<equation="{equation}">(x, x2)',
            x=x,
            x2=w,
            varies=equation[0] == "b" and ",b" in equation,
        )
        for equation, x, w in (
            ("ij,jk->ik", (3, 4), (4, 5)),
            ("ij,kj->ik", (3, 4), (5, 4)),
            ("ij,jk->ki", (3, 4), (4, 5)),
            ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
            ("bhid,bhjd->bhij", (2, 2, 3, 4), (2, 2, 5, 4)),
            ("bqhd,bkhd->bhqk", (2, 3, 2, 4), (2, 5, 2, 4)),
            ("bhqk,bkhd->bqhd", (2, 2, 3, 5), (2, 5, 2, 4)),
            ("bij,jk->bik", (2, 3, 4), (4, 5)),
            ("i,j->ij", (3,), (4,)),
            ("ij,ij->ij", (3, 4), (3, 4)),
            ("bijk,jkl->bil", (2, 3, 4, 2), (4, 2, 5)),
            ("i,i->", (4,), (4,)),
            ("bchw,cd->bdhw", (2, 3, 2, 2), (3, 4)),
        )
    ),
    case('y = Einsum<equation="bij,jk->bik">(x, w)', x=(2, 3, 4), w=(4, 5)),
    case('y = Einsum<equation="nchw,cd->ndhw">(x, w)', x=(2, 3, 2, 2), w=(3, 4)),
    case('y = Einsum<equation="ij->ji">(x)', x=(3, 4), refused="two operands"),
    case(
        'y = Einsum<equation="ii,ij->j">(x, x2)',
        x=(3, 3),
        x2=(3, 4),
        varies=False,
        refused="repeats",
    ),
    case(
        'y = Einsum<equation="ij,k->k">(x, x2)',
        x=(3, 3),
        x2=(4,),
        varies=False,
        refused="sums over one",
    ),
    case(
        'y = Einsum<equation="...ij,...jk->...ik">(x, x2)',
        x=(2, 3, 3),
        x2=(2, 3, 4),
        refused="two operands",
    ),
]


CASES = [*LINEAR]
