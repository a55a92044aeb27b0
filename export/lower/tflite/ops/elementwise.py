"""Operators that work on each element by itself; they follow the layout of their inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from export.lower.sizes import broadcast
from export.lower.tflite.graph import Tensor
from export.lower.tflite.layout import Layout, moves_data, plain, stored
from export.lower.tflite.lowering import (
    BOOL,
    FLOAT,
    INT32,
    INT64,
    Constant,
    Lowering,
    Node,
    Unsupported,
)

# ONNX operators that are one TFLite operator with one input.
UNARY = {
    "Abs": "ABS", "Ceil": "CEIL", "Cos": "COS", "Exp": "EXP", "Floor": "FLOOR",
    "HardSwish": "HARD_SWISH", "Log": "LOG", "Neg": "NEG", "Not": "LOGICAL_NOT", "Relu": "RELU",
    "Round": "ROUND", "Sigmoid": "LOGISTIC", "Sign": "SIGN", "Sin": "SIN", "Sqrt": "SQRT",
    "Tanh": "TANH",
}  # fmt: skip

# ONNX operators that are one TFLite operator with two inputs.
BINARY = {
    "Add": "ADD", "Div": "DIV", "Mul": "MUL", "Sub": "SUB",
    "And": "LOGICAL_AND", "Or": "LOGICAL_OR", "Xor": "NOT_EQUAL",
    "Equal": "EQUAL", "Greater": "GREATER", "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS", "LessOrEqual": "LESS_EQUAL",
}  # fmt: skip
_CASTABLE = {"float32", "int32", "int64", "bool", "uint8", "int8"}
_COMPARISONS = {"EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"}


def aligned(low: Lowering, values: Sequence[ir.Value]) -> tuple[list[Tensor], Layout]:
    """Bring values that are broadcast together into one layout.

    The layout is that of the first value which is not in ONNX's own: a transpose is due either
    way, and that one is where convolutions or later transposes want it.
    """
    shape = broadcast(*(low.shape(value) for value in values))
    rank = len(shape)
    layout = plain(rank)
    for value in values:
        held = low.held(value)
        if isinstance(held, Constant) or held.tensor.rank != rank:
            continue
        if held.layout != plain(rank):
            layout = held.layout
            break
    return [_in_layout(low, value, layout) for value in values], layout


def _in_layout(low: Lowering, value: ir.Value, layout: Layout) -> Tensor:
    shape = low.shape(value)
    rank = len(layout)
    if layout == plain(rank) or math.prod(s if isinstance(s, int) else 2 for s in shape) == 1:
        return low.tensor(value)
    if len(shape) == rank:
        return low.tensor(value, layout)
    full = (1,) * (rank - len(shape)) + shape
    held = low.held(value)
    if isinstance(held, Constant):
        array = held.array.reshape([int(s) for s in full if isinstance(s, int)]).transpose(layout)
        return low.const(array, held.name, weight=held.weight)
    widened = low.reshape(low.tensor(value), full)
    if not moves_data(full, layout):
        return low.reshape(widened, stored(full, layout))
    return low.transpose(widened, layout)


def unary(low: Lowering, node: Node) -> None:
    """An operator of ``UNARY``; where its kernel takes floats alone, integers are compared."""

    def compute(x: Tensor) -> Tensor:
        if node.kind == "Abs":
            return low.absolute(x)
        if node.kind == "Relu" and x.dtype != FLOAT:
            return low.binary("MAXIMUM", x, low.scalar(0, x.dtype), x.shape)
        if node.kind == "Sign" and x.dtype == INT64:
            below = low.binary("MINIMUM", x, low.scalar(1, x.dtype), x.shape)
            return low.binary("MAXIMUM", below, low.scalar(-1, x.dtype), x.shape)
        return low.emit(UNARY[node.kind], [x], x.shape)

    apply(low, node, compute)


def apply(low: Lowering, node: Node, compute: Callable[[Tensor], Tensor]) -> None:
    """Compute an output from the first input, in whatever layout that has."""
    tensors, layout = aligned(low, [node.required(0)])
    low.place(node.outputs[0], compute(tensors[0]), layout)


def binary(low: Lowering, node: Node) -> None:
    """An operator of ``BINARY``; a Div of 64 bit integers is right for numbers of 32 bits."""
    kind = BINARY[node.kind]
    tensors, layout = aligned(low, [node.required(0), node.required(1)])
    shape = broadcast(*(tensor.shape for tensor in tensors))
    dtype = tensors[0].dtype
    narrow = kind == "DIV" and dtype == INT64
    if narrow:  # FLOOR_DIV takes no 64 bits either, and rounds the other way below 0
        tensors = [low.cast(tensor, INT32) for tensor in tensors]
    result = BOOL if kind in _COMPARISONS else tensors[0].dtype
    found = low.emit(kind, tensors, shape, result)
    low.place(node.outputs[0], low.cast(found, dtype) if narrow else found, layout)


def variadic(low: Lowering, node: Node) -> None:
    """Min, Max, Sum and Mean of any number of inputs."""
    kind = {"Min": "MINIMUM", "Max": "MAXIMUM"}.get(node.kind, "ADD")
    values = [node.required(place) for place in range(len(node.inputs))]
    tensors, layout = aligned(low, values)
    result = tensors[0]
    for tensor in tensors[1:]:
        result = low.emit(kind, [result, tensor], broadcast(result.shape, tensor.shape))
    if node.kind == "Mean":
        result = low.binary("MUL", result, low.scalar(1 / len(tensors)), result.shape)
    low.place(node.outputs[0], result, layout)


def where(low: Lowering, node: Node) -> None:
    """Where, as SELECT_V2."""
    tensors, layout = aligned(low, [node.required(place) for place in range(3)])
    shape = broadcast(*(tensor.shape for tensor in tensors))
    found = low.emit("SELECT_V2", tensors, shape, tensors[1].dtype)
    low.place(node.outputs[0], found, layout)


def cast(low: Lowering, node: Node) -> None:
    """Cast and CastLike; a float of another width stays one of 32 bits."""
    dtype = low.dtype(node.outputs[0])
    if dtype.name not in _CASTABLE:
        raise Unsupported(f"a cast to the type {dtype}")
    apply(low, node, lambda x: low.cast(x, dtype))


def identity(low: Lowering, node: Node) -> None:
    """Identity, and Dropout when a model is not trained."""
    if node.is_read(1):
        raise Unsupported("the mask of Dropout (output 1)")
    training = low.constant(node.input(2))
    if node.input(2) is not None and (training is None or training.any()):
        raise Unsupported("Dropout that is training")
    held = low.held(node.required(0))
    if isinstance(held, Constant):
        low.hold_constant(node.outputs[0], held.array, weight=held.weight, origin=held.origin)
    else:
        low.place(node.outputs[0], held.tensor, held.layout)


def clip(low: Lowering, node: Node) -> None:
    """Clip, by the activation that has its limits where there is one."""
    lowest, highest = _limit(low, node, 1), _limit(low, node, 2)
    known: dict[tuple[Any, Any], str] = {
        (0.0, 6.0): "RELU6",
        (0.0, None): "RELU",
        (-1.0, 1.0): "RELU_N1_TO_1",
    }
    kind = known.get((lowest, highest))

    def compute(x: Tensor) -> Tensor:
        if kind is not None and x.dtype == FLOAT:
            return low.emit(kind, [x], x.shape)
        if lowest is not None:
            x = low.binary("MAXIMUM", x, low.scalar(lowest, x.dtype), x.shape)
        if highest is not None:
            x = low.binary("MINIMUM", x, low.scalar(highest, x.dtype), x.shape)
        return x

    apply(low, node, compute)


def _limit(low: Lowering, node: Node, place: int) -> float | int | None:
    value = node.input(place)
    if value is None:
        return None
    array = low.constant(value)
    if array is None:
        raise Unsupported("a limit is computed while the model runs; it must be constant")
    limit: float | int = array.item()
    return limit if abs(limit) < 3e38 else None


def gelu(low: Lowering, node: Node) -> None:
    """Gelu, exact or by tanh."""
    by_tanh = node.text("approximate", "none") == "tanh"
    apply(low, node, lambda x: low.emit("GELU", [x], x.shape, approximate=by_tanh))


def erf(low: Lowering, node: Node) -> None:
    """Erf, which TFLite lacks, by a rational approximation within 2e-7.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
    """
    coefficients = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)

    def compute(x: Tensor) -> Tensor:
        def times(a: Tensor, b: Tensor) -> Tensor:
            return low.binary("MUL", a, b, a.shape)

        def plus(a: Tensor, number: float) -> Tensor:
            return low.binary("ADD", a, low.scalar(number), a.shape)

        size = low.emit("ABS", [x], x.shape)
        below = plus(times(size, low.scalar(0.3275911)), 1.0)
        t = low.binary("DIV", low.scalar(1.0), below, x.shape)
        series = times(t, low.scalar(coefficients[0]))
        for coefficient in coefficients[1:]:
            series = times(plus(series, coefficient), t)
        square = low.emit("NEG", [low.emit("SQUARE", [x], x.shape)], x.shape)
        tail = times(series, low.emit("EXP", [square], x.shape))
        bounded = low.binary("SUB", low.scalar(1.0), tail, x.shape)
        return times(low.emit("SIGN", [x], x.shape), bounded)

    apply(low, node, compute)


def power(low: Lowering, node: Node) -> None:
    """Pow, by multiplication where the exponent is small and whole.

    Other powers of 64 bit integers are right where the result has 32 bits.
    """
    number = _exponent(low, node)

    def compute(x: Tensor) -> Tensor:
        if number == 2:
            return low.square(x)
        if number == 3:
            return low.binary("MUL", low.square(x), x, x.shape)
        return low.emit("RSQRT" if number == -0.5 else "SQRT", [x], x.shape)

    dtype = low.dtype(node.required(0))
    if number in (2, 3) or (number in (0.5, -0.5) and dtype == FLOAT):
        apply(low, node, compute)
        return
    if dtype != FLOAT:
        _check_whole_exponent(low, node)
    tensors, layout = aligned(low, [node.required(0), node.required(1)])
    base, power_of = (low.cast(x, FLOAT if dtype == FLOAT else INT32) for x in tensors)
    found = low.emit("POW", [base, power_of], broadcast(base.shape, power_of.shape))
    low.place(node.outputs[0], low.cast(found, dtype), layout)


def _exponent(low: Lowering, node: Node) -> float | None:
    """The one number that everything is raised to, if that is so."""
    exponent = low.constant(node.required(1))
    if exponent is None or exponent.size != 1:
        return None
    if exponent.ndim > len(low.shape(node.required(0))):
        return None  # the result has its rank
    return float(exponent.item())


def _check_whole_exponent(low: Lowering, node: Node) -> None:
    exponent = low.constant(node.required(1))
    if low.dtype(node.required(1)) == FLOAT or (exponent is not None and exponent.min() < 0):
        raise Unsupported("an integer to a power that is a fraction or negative")


def reciprocal(low: Lowering, node: Node) -> None:
    """Reciprocal."""
    apply(low, node, lambda x: low.binary("DIV", low.scalar(1.0), x, x.shape))


def modulo(low: Lowering, node: Node) -> None:
    """Mod of integers, with the sign of the divisor as in ONNX and in FLOOR_MOD."""
    if node.integer("fmod", 0):
        raise Unsupported("fmod=1 has no TFLite form")
    tensors, layout = aligned(low, [node.required(0), node.required(1)])
    shape = broadcast(*(tensor.shape for tensor in tensors))
    low.place(node.outputs[0], low.emit("FLOOR_MOD", tensors, shape), layout)


def is_nan(low: Lowering, node: Node) -> None:
    """IsNaN: a number that does not equal itself."""
    apply(low, node, lambda x: low.emit("NOT_EQUAL", [x, x], x.shape, BOOL))


def is_inf(low: Lowering, node: Node) -> None:
    """IsInf."""
    both = node.integer("detect_negative", 1), node.integer("detect_positive", 1)
    if both == (0, 0):
        raise Unsupported("IsInf that detects neither sign")

    def compute(x: Tensor) -> Tensor:
        sized = low.emit("ABS", [x], x.shape) if both == (1, 1) else x
        limit = low.scalar(-math.inf if both == (1, 0) else math.inf)
        return low.emit("EQUAL", [sized, limit], x.shape, BOOL)

    apply(low, node, compute)


def leaky_relu(low: Lowering, node: Node) -> None:
    """LeakyRelu."""
    alpha = node.number("alpha", 0.01)
    apply(low, node, lambda x: low.emit("LEAKY_RELU", [x], x.shape, alpha=alpha))


def prelu(low: Lowering, node: Node) -> None:
    """PRelu, as max(x, 0) + slope * min(x, 0): the slope may be broadcast in any way."""
    tensors, layout = aligned(low, [node.required(0), node.required(1)])
    x, slope = tensors
    zero = low.scalar(0.0)
    below = low.binary("MINIMUM", x, zero, x.shape)
    scaled = low.binary("MUL", below, slope, x.shape)
    low.place(
        node.outputs[0],
        low.binary("ADD", low.emit("RELU", [x], x.shape), scaled, x.shape),
        layout,
    )


def elu(low: Lowering, node: Node) -> None:
    """Elu, Celu and Selu: max(x, 0) and a scaled exponential below 0."""
    alpha = node.number("alpha", 1.67326319217681884765625 if node.kind == "Selu" else 1.0)
    gamma = node.number("gamma", 1.05070102214813232421875) if node.kind == "Selu" else 1.0
    stretch = alpha if node.kind == "Celu" else 1.0

    def compute(x: Tensor) -> Tensor:
        if alpha == 1 and gamma == 1:
            return low.emit("ELU", [x], x.shape)
        below = low.binary("MINIMUM", x, low.scalar(0.0), x.shape)
        if stretch != 1:
            below = low.binary("MUL", below, low.scalar(1 / stretch), x.shape)
        below = low.emit("ELU", [below], x.shape)
        below = low.binary("MUL", below, low.scalar(alpha * gamma), x.shape)
        above = low.emit("RELU", [x], x.shape)
        if gamma != 1:
            above = low.binary("MUL", above, low.scalar(gamma), x.shape)
        return low.binary("ADD", above, below, x.shape)

    apply(low, node, compute)


def hard_sigmoid(low: Lowering, node: Node) -> None:
    """HardSigmoid: max(0, min(1, alpha x + beta))."""
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)

    def compute(x: Tensor) -> Tensor:
        line = low.binary("MUL", x, low.scalar(alpha), x.shape)
        line = low.binary("ADD", line, low.scalar(beta), x.shape)
        line = low.emit("RELU", [line], x.shape)
        return low.binary("MINIMUM", line, low.scalar(1.0), x.shape)

    apply(low, node, compute)


def softplus(low: Lowering, node: Node) -> None:
    """Softplus: log(1 + exp(x)), written so that nothing overflows."""
    apply(low, node, lambda x: _softplus(low, x))


def mish(low: Lowering, node: Node) -> None:
    """Mish: x tanh(softplus(x))."""

    def compute(x: Tensor) -> Tensor:
        return low.binary("MUL", x, low.emit("TANH", [_softplus(low, x)], x.shape), x.shape)

    apply(low, node, compute)


def _softplus(low: Lowering, x: Tensor) -> Tensor:
    away = low.emit("NEG", [low.emit("ABS", [x], x.shape)], x.shape)
    grown = low.binary("ADD", low.emit("EXP", [away], x.shape), low.scalar(1.0), x.shape)
    rest = low.emit("LOG", [grown], x.shape)
    return low.binary("ADD", low.emit("RELU", [x], x.shape), rest, x.shape)


def softsign(low: Lowering, node: Node) -> None:
    """Softsign: x / (1 + |x|)."""

    def compute(x: Tensor) -> Tensor:
        below = low.binary("ADD", low.emit("ABS", [x], x.shape), low.scalar(1.0), x.shape)
        return low.binary("DIV", x, below, x.shape)

    apply(low, node, compute)


def softmax(low: Lowering, node: Node) -> None:
    """Softmax and LogSoftmax over one axis, which TFLite wants last in memory."""
    value = node.required(0)
    rank = len(low.shape(value))
    if rank == 0:
        raise Unsupported(f"{node.kind} of a scalar")
    axis = node.integer("axis", -1) % rank
    held = low.held(value)
    layout = plain(rank) if isinstance(held, Constant) else held.layout
    if layout[-1] != axis:
        layout = (*(a for a in layout if a != axis), axis)
    x = low.tensor(value, layout)
    if node.kind == "LogSoftmax":
        found = low.emit("LOG_SOFTMAX", [x], x.shape)
    else:
        found = low.emit("SOFTMAX", [x], x.shape, beta=1.0)
    low.place(node.outputs[0], found, layout)


def cumulative_sum(low: Lowering, node: Node) -> None:
    """CumSum."""
    axes = low.ints(node.required(1), "the axis")
    value = node.required(0)
    axis = axes[0] % len(low.shape(value))

    def compute(x: Tensor, layout: Layout) -> Tensor:
        place = low.const(np.asarray(layout.index(axis), np.int32), "axis")
        kind = x.dtype
        wide = low.cast(x, INT32) if kind == BOOL else x
        found = low.emit(
            "CUMSUM", [wide, place], x.shape,
            exclusive=bool(node.integer("exclusive", 0)), reverse=bool(node.integer("reverse", 0)),
        )  # fmt: skip
        return low.cast(found, kind)

    tensors, layout = aligned(low, [value])
    low.place(node.outputs[0], compute(tensors[0], layout), layout)


TABLE: dict[str, Any] = {
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(BINARY, binary),
    **dict.fromkeys(("Min", "Max", "Sum", "Mean"), variadic),
    "Where": where, "Cast": cast, "CastLike": cast, "Identity": identity, "Dropout": identity,
    "Clip": clip, "Gelu": gelu, "Erf": erf, "Pow": power, "Reciprocal": reciprocal,
    "Mod": modulo, "IsNaN": is_nan, "IsInf": is_inf, "LeakyRelu": leaky_relu, "PRelu": prelu,
    "Elu": elu, "Celu": elu, "Selu": elu, "HardSigmoid": hard_sigmoid, "Softplus": softplus,
    "Mish": mish, "Softsign": softsign, "Softmax": softmax, "LogSoftmax": softmax,
    "CumSum": cumulative_sum,
}  # fmt: skip
