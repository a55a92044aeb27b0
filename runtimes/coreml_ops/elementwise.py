"""Operators that compute each element by itself, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from runtimes.coreml_ops.call import ArgumentError, Call, Operator, along

# Element types as programs spell them in parameters, and the types that hold them here.
HELD_AS = {
    "fp16": torch.float32, "fp32": torch.float32, "bool": torch.bool,
    "int8": torch.int32, "uint8": torch.int32, "int16": torch.int32, "uint16": torch.int32,
    "int32": torch.int32, "uint32": torch.int64, "int64": torch.int64,
}  # fmt: skip
_SPELLED = {"float16": "fp16", "float32": "fp32"}


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda call: function(call.tensor())


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call: function(call.tensor("x"), call.tensor("y"))


def _with_epsilon(function: Callable[[Tensor], Tensor], default: float) -> Operator:
    return lambda call: function(call.tensor() + call.number("epsilon", default))


def _real_div(x: Tensor, y: Tensor) -> Tensor:
    # The result of whole numbers is declared whole; no converter writes that.
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


def _exp2(x: Tensor) -> Tensor:
    return torch.exp2(x) if x.is_floating_point() else torch.exp2(x.double()).to(x.dtype)


def _clip(call: Call) -> Tensor:
    return call.tensor().clamp(call.number("alpha"), call.number("beta"))


def _cast(call: Call) -> Tensor:
    name = call.text("dtype")
    if name not in HELD_AS or name != _SPELLED.get(call.dtypes[0], call.dtypes[0]):
        raise ArgumentError(f"it casts to {name!r}, its output is {call.dtypes[0]}")
    x = call.tensor()
    return x != 0 if name == "bool" else x.to(HELD_AS[name])


def _select(call: Call) -> Tensor:
    return torch.where(call.tensor("cond"), call.tensor("a"), call.tensor("b"))


def _gelu(call: Call) -> Tensor:
    x, mode = call.tensor(), call.text("mode", "EXACT")
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ArgumentError(f"it has mode {mode!r}, which is not known")


def _with_alpha(function: Callable[[Tensor, float], Tensor]) -> Operator:
    return lambda call: function(call.tensor(), call.number("alpha"))


def _with_both(function: Callable[[Tensor, float, float], Tensor]) -> Operator:
    return lambda call: function(call.tensor(), call.number("alpha"), call.number("beta"))


def _threshold(call: Call) -> Tensor:
    x = call.tensor()
    return torch.maximum(x, call.tensor("alpha").to(x.dtype))


def _prelu(call: Call) -> Tensor:
    x = call.tensor()
    return torch.where(x > 0, x, x * along(call.tensor("alpha"), x.dim(), 1))


def _softplus_parametric(call: Call) -> Tensor:
    x = call.tensor()
    alpha, beta = (along(call.tensor(key), x.dim(), 1) for key in ("alpha", "beta"))
    return alpha * _softplus(beta * x)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs, "acos": torch.acos, "asin": torch.asin, "atan": torch.atan,
    "atanh": torch.atanh, "ceil": torch.ceil, "cos": torch.cos, "cosh": torch.cosh,
    "erf": torch.erf, "exp": torch.exp, "exp2": _exp2, "floor": torch.floor,
    "identity": lambda x: x, "logical_not": torch.logical_not, "relu": torch.relu,
    "relu6": F.relu6, "round": torch.round, "sigmoid": torch.sigmoid, "sign": torch.sign,
    "silu": F.silu, "sin": torch.sin, "sinh": torch.sinh, "softplus": _softplus,
    "softsign": F.softsign, "sqrt": torch.sqrt, "square": torch.square, "tan": torch.tan,
    "tanh": torch.tanh,
}  # fmt: skip
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "real_div": _real_div,
    "floor_div": torch.floor_divide, "mod": torch.remainder, "pow": torch.pow,
    "maximum": torch.maximum, "minimum": torch.minimum, "equal": torch.eq,
    "not_equal": torch.ne, "greater": torch.gt, "greater_equal": torch.ge,
    "less": torch.lt, "less_equal": torch.le, "logical_and": torch.logical_and,
    "logical_or": torch.logical_or, "logical_xor": torch.logical_xor,
}  # fmt: skip
OPERATORS: dict[str, Operator] = {
    **{name: _unary(function) for name, function in _UNARY.items()},
    **{name: _binary(function) for name, function in _BINARY.items()},
    "rsqrt": _with_epsilon(torch.rsqrt, 1e-12),
    "log": _with_epsilon(torch.log, 1e-45),
    "inverse": _with_epsilon(torch.reciprocal, 1e-4),
    "cast": _cast,
    "clip": _clip,
    "select": _select,
    "gelu": _gelu,
    "threshold": _threshold,
    "prelu": _prelu,
    "softplus_parametric": _softplus_parametric,
    "elu": _with_alpha(lambda x, alpha: F.elu(x, alpha)),
    "leaky_relu": _with_alpha(lambda x, alpha: F.leaky_relu(x, alpha)),
    "thresholded_relu": _with_alpha(
        lambda x, alpha: torch.where(x >= alpha, x, torch.zeros_like(x))
    ),
    "clamped_relu": _with_both(
        lambda x, alpha, beta: torch.where(x >= 0, x, alpha * x).clamp(max=beta)
    ),
    "linear_activation": _with_both(lambda x, alpha, beta: alpha * x + beta),
    "scaled_tanh": _with_both(lambda x, alpha, beta: alpha * torch.tanh(beta * x)),
    "sigmoid_hard": _with_both(lambda x, alpha, beta: (alpha * x + beta).clamp(0.0, 1.0)),
}
