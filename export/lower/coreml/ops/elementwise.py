"""Operators that work on each element by itself, and those along one axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from export.lower.coreml.lowering import BOOL, INT32, Lowering, Node, Unsupported, Var
from export.lower.sizes import broadcast

# ONNX operators that are one of Core ML with one input, which is a floating point number.
UNARY = {
    "Acos": "acos", "Asin": "asin", "Atan": "atan", "Atanh": "atanh", "Ceil": "ceil",
    "Cos": "cos", "Cosh": "cosh", "Erf": "erf", "Exp": "exp", "Floor": "floor", "Relu": "relu",
    "Round": "round", "Sigmoid": "sigmoid", "Sin": "sin", "Sinh": "sinh",
    "Softsign": "softsign", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh",
}  # fmt: skip

# ONNX operators that are one of Core ML with two inputs.
BINARY = {
    "Add": "add", "Div": "real_div", "Mul": "mul", "Sub": "sub",
    "Equal": "equal", "Greater": "greater", "GreaterOrEqual": "greater_equal",
    "Less": "less", "LessOrEqual": "less_equal",
}  # fmt: skip
LOGICAL = {"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor"}


def unary(low: Lowering, node: Node) -> None:
    """An operator of ``UNARY``."""
    apply(low, node, lambda x: low.emit(UNARY[node.kind], x=x))


def apply(low: Lowering, node: Node, compute: Callable[[Var], Var]) -> None:
    """Compute an output from the first input."""
    low.place(node.outputs[0], compute(low.var(node.required(0))))


def sign_or_size(low: Lowering, node: Node) -> None:
    """Abs, Sign and Neg, of integers as well."""
    if node.kind == "Neg":
        apply(low, node, lambda x: low.emit("mul", x=x, y=low.number(-1, low.type_of(x))))
    else:
        apply(low, node, lambda x: low.emit(node.kind.lower(), x=x))


def binary(low: Lowering, node: Node) -> None:
    """An operator of ``BINARY``; booleans are compared as integers."""
    x, y = (low.var(node.required(place)) for place in range(2))
    if low.type_of(x) == BOOL:
        x, y = low.cast(x, INT32), low.cast(y, INT32)
    kind = BINARY[node.kind]
    if kind == "real_div" and low.type_of(x) == INT32:
        kind = "floor_div"  # equal to ONNX's for sizes and places, which are not negative
    low.place(node.outputs[0], low.emit(kind, x=x, y=y))


def logical(low: Lowering, node: Node) -> None:
    """An operator of ``LOGICAL``."""
    x, y = (low.var(node.required(place)) for place in range(2))
    low.place(node.outputs[0], low.emit(LOGICAL[node.kind], x=x, y=y))


def not_(low: Lowering, node: Node) -> None:
    """Not."""
    apply(low, node, lambda x: low.emit("logical_not", x=x))


def variadic(low: Lowering, node: Node) -> None:
    """Min, Max, Sum and Mean of any number of inputs."""
    kind = {"Min": "minimum", "Max": "maximum"}.get(node.kind, "add")
    result = low.var(node.required(0))
    for place in range(1, len(node.inputs)):
        result = low.emit(kind, x=result, y=low.var(node.required(place)))
    if node.kind == "Mean":
        result = low.emit("mul", x=result, y=low.number(1 / len(node.inputs)))
    low.place(node.outputs[0], result)


def where(low: Lowering, node: Node) -> None:
    """Where, as select; of two numbers, such as those of a mask, as a product and a sum.

    coremltools takes the result's shape from the two choices alone, so that one of them must have
    it; a mask of numbers would have to be filled in first.
    """
    condition, yes, no = (node.required(place) for place in range(3))
    shape = low.shape(node.outputs[0])
    cond = low.var(condition)
    numbers = _two_numbers(low, node)
    if numbers is not None and low.shape(condition) == shape:
        first, second = numbers
        kept = low.cast(cond, low.float)
        if first - second != 1:
            kept = low.emit("mul", x=kept, y=low.number(first - second))
        if second != 0:
            kept = low.emit("add", x=kept, y=low.number(second))
        low.place(node.outputs[0], kept)
        return
    a, b = low.var(yes), low.var(no)
    if broadcast(low.shape(yes), low.shape(no)) != shape:
        a = low.broadcast_to(a, low.shape(yes), shape)
    low.place(node.outputs[0], low.emit("select", cond=cond, a=a, b=b))


def _two_numbers(low: Lowering, node: Node) -> tuple[float, float] | None:
    """Two constant numbers that survive ``cond * (a - b) + b``, in the program's precision."""
    arrays = [low.constant(node.required(place)) for place in (1, 2)]
    if any(a is None or a.size != 1 or a.dtype.kind != "f" for a in arrays):
        return None
    first, second = (low.float.type(low.converted(np.asarray(a)).item()) for a in arrays)
    with np.errstate(all="ignore"):
        difference = first - second
        exact = bool(np.isfinite(difference)) and difference + second == first
    return (float(first), float(second)) if exact else None


def cast(low: Lowering, node: Node) -> None:
    """Cast and CastLike."""
    dtype = low.dtype(node.outputs[0])
    apply(low, node, lambda x: low.cast(x, dtype))


def identity(low: Lowering, node: Node) -> None:
    """Identity, and Dropout when a model is not trained."""
    low.hold(node.outputs[0], low.held(node.required(0)))


def clip(low: Lowering, node: Node) -> None:
    """Clip, by the activation that has its limits where there is one."""
    lowest, highest = _limit(low, node, 1), _limit(low, node, 2)

    def compute(x: Var) -> Var:
        dtype = low.type_of(x)
        if dtype != low.float:
            return _between(low, x, lowest, highest)
        if (lowest, highest) == (0.0, 6.0):
            return low.emit("relu6", x=x)
        if lowest is not None and highest is not None:
            return low.emit("clip", x=x, alpha=dtype.type(lowest), beta=dtype.type(highest))
        if (lowest, highest) == (0.0, None):
            return low.emit("relu", x=x)
        return _between(low, x, lowest, highest)

    apply(low, node, compute)


def _between(low: Lowering, x: Var, lowest: float | None, highest: float | None) -> Var:
    if lowest is not None:
        x = low.emit("maximum", x=x, y=low.number(lowest, low.type_of(x)))
    if highest is not None:
        x = low.emit("minimum", x=x, y=low.number(highest, low.type_of(x)))
    return x


def _limit(low: Lowering, node: Node, place: int) -> float | None:
    value = node.input(place)
    if value is None:
        return None
    array = low.constant(value)
    if array is None:
        raise Unsupported("a limit is computed while the model runs; it must be constant")
    limit = float(array.item())
    beyond = 6e4 if low.float.itemsize == 2 else 3e38
    return limit if abs(limit) < beyond else None


def gelu(low: Lowering, node: Node) -> None:
    """Gelu, exact or by tanh."""
    by_tanh = node.text("approximate", "none") == "tanh"
    mode = "TANH_APPROXIMATION" if by_tanh else "EXACT"
    apply(low, node, lambda x: low.emit("gelu", x=x, mode=mode))


def power(low: Lowering, node: Node) -> None:
    """Pow, by an operator of its own where the exponent is 2 or a half."""
    exponent = low.constant(node.required(1))
    number = float(exponent.item()) if exponent is not None and exponent.size == 1 else None
    x = low.var(node.required(0))
    if number in (1, 2, 3):
        found = x
        for _ in range(int(number) - 1):
            found = low.emit("mul", x=found, y=x)
    elif number == 0.5:
        found = low.emit("sqrt", x=x)
    else:
        found = low.emit("pow", x=x, y=low.cast(low.var(node.required(1)), low.type_of(x)))
    low.place(node.outputs[0], found)


def reciprocal(low: Lowering, node: Node) -> None:
    """Reciprocal; Core ML's own adds a small number first."""
    apply(low, node, lambda x: low.emit("real_div", x=low.number(1.0), y=x))


def logarithm(low: Lowering, node: Node) -> None:
    """Log; Core ML adds a small number, which float16 takes for 0."""
    apply(low, node, lambda x: low.emit("log", x=x, epsilon=low.float.type(0)))


def modulo(low: Lowering, node: Node) -> None:
    """Mod, with the sign of the divisor as in ONNX and in Core ML."""
    if node.integer("fmod", 0):
        raise Unsupported("fmod=1 has no Core ML form")
    x, y = (low.var(node.required(place)) for place in range(2))
    low.place(node.outputs[0], low.emit("mod", x=x, y=y))


def is_nan(low: Lowering, node: Node) -> None:
    """IsNaN: a number that does not equal itself."""
    apply(low, node, lambda x: low.emit("not_equal", x=x, y=x))


def is_inf(low: Lowering, node: Node) -> None:
    """IsInf."""
    both = node.integer("detect_negative", 1), node.integer("detect_positive", 1)
    if both == (0, 0):
        raise Unsupported("IsInf that detects neither sign")

    def compute(x: Var) -> Var:
        sized = low.emit("abs", x=x) if both == (1, 1) else x
        limit = low.float.type(-math.inf if both == (1, 0) else math.inf)
        return low.emit("equal", x=sized, y=limit)

    apply(low, node, compute)


def leaky_relu(low: Lowering, node: Node) -> None:
    """LeakyRelu."""
    alpha = low.float.type(node.number("alpha", 0.01))
    apply(low, node, lambda x: low.emit("leaky_relu", x=x, alpha=alpha))


def prelu(low: Lowering, node: Node) -> None:
    """PRelu, as max(x, 0) + slope * min(x, 0): the slope may be broadcast in any way."""
    x, slope = (low.var(node.required(place)) for place in range(2))
    below = low.emit("minimum", x=x, y=low.number(0.0))
    scaled = low.emit("mul", x=below, y=slope)
    low.place(node.outputs[0], low.emit("add", x=low.emit("relu", x=x), y=scaled))


def elu(low: Lowering, node: Node) -> None:
    """Elu, Celu and Selu: max(x, 0) and a scaled exponential below 0."""
    alpha = node.number("alpha", 1.67326319217681884765625 if node.kind == "Selu" else 1.0)
    gamma = node.number("gamma", 1.05070102214813232421875) if node.kind == "Selu" else 1.0

    def compute(x: Var) -> Var:
        if node.kind != "Celu" or alpha == 1:
            found = low.emit("elu", x=x, alpha=low.float.type(alpha))
        else:  # elu of x / alpha, times alpha
            found = low.emit("mul", x=x, y=low.number(1 / alpha))
            found = low.emit("elu", x=found, alpha=low.float.type(1))
            found = low.emit("mul", x=found, y=low.number(alpha))
        return found if gamma == 1 else low.emit("mul", x=found, y=low.number(gamma))

    apply(low, node, compute)


def hard_sigmoid(low: Lowering, node: Node) -> None:
    """HardSigmoid, and HardSwish, which is x times one."""
    slope, offset = (1 / 6, 0.5) if node.kind == "HardSwish" else (0.2, 0.5)
    alpha = low.float.type(node.number("alpha", slope))
    beta = low.float.type(node.number("beta", offset))

    def compute(x: Var) -> Var:
        gate = low.emit("sigmoid_hard", x=x, alpha=alpha, beta=beta)
        return low.emit("mul", x=x, y=gate) if node.kind == "HardSwish" else gate

    apply(low, node, compute)


def softplus(low: Lowering, node: Node) -> None:
    """Softplus, and Mish, which is x tanh(softplus(x)); written so that nothing overflows."""

    def compute(x: Var) -> Var:
        away = low.emit("mul", x=low.emit("abs", x=x), y=low.number(-1.0))
        grown = low.emit("add", x=low.emit("exp", x=away), y=low.number(1.0))
        rest = low.emit("log", x=grown, epsilon=low.float.type(0))
        found = low.emit("add", x=low.emit("relu", x=x), y=rest)
        if node.kind == "Softplus":
            return found
        return low.emit("mul", x=x, y=low.emit("tanh", x=found))

    apply(low, node, compute)


def softmax(low: Lowering, node: Node) -> None:
    """Softmax and LogSoftmax over one axis."""
    axis = node.integer("axis", -1)

    def compute(x: Var) -> Var:
        if node.kind == "Softmax":
            return low.emit("softmax", x=x, axis=axis)
        total = low.emit("reduce_log_sum_exp", x=x, axes=[axis], keep_dims=True)
        return low.emit("sub", x=x, y=total)

    apply(low, node, compute)


def cumulative_sum(low: Lowering, node: Node) -> None:
    """CumSum."""
    axis = low.ints(node.required(1), "the axis")[0] % low.rank(node.required(0))
    x = low.var(node.required(0))
    kind = low.type_of(x)
    found = low.emit(
        "cumsum", x=low.cast(x, INT32) if kind == BOOL else x, axis=axis,
        exclusive=bool(node.integer("exclusive", 0)), reverse=bool(node.integer("reverse", 0)),
    )  # fmt: skip
    low.place(node.outputs[0], found)


TABLE: dict[str, Any] = {
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(BINARY, binary),
    **dict.fromkeys(LOGICAL, logical),
    **dict.fromkeys(("Abs", "Sign", "Neg"), sign_or_size),
    **dict.fromkeys(("Min", "Max", "Sum", "Mean"), variadic),
    "Not": not_, "Where": where, "Cast": cast, "CastLike": cast, "Identity": identity,
    "Dropout": identity, "Clip": clip, "Gelu": gelu, "Pow": power, "Reciprocal": reciprocal,
    "Log": logarithm, "Mod": modulo, "IsNaN": is_nan, "IsInf": is_inf, "LeakyRelu": leaky_relu,
    "PRelu": prelu, "Elu": elu, "Celu": elu, "Selu": elu, "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_sigmoid, "Softplus": softplus, "Mish": softplus, "Softmax": softmax,
    "LogSoftmax": softmax, "CumSum": cumulative_sum,
}  # fmt: skip
