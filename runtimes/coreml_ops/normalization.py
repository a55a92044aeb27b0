"""Pools, norms, softmax and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from runtimes.coreml_ops.call import Call, Operator, along
from runtimes.coreml_ops.linear import pad_spatial, pads_of

_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_MAXIMA = (F.max_pool1d, F.max_pool2d, F.max_pool3d)

# ---- pools ------------------------------------------------------------------------------------


def _max_pool(call: Call) -> Tensor:
    x, kernel, strides, pads, extra = _pool(call)
    whole = pad_spatial(pad_spatial(x, pads, -math.inf), extra, -math.inf)
    y: Tensor = _MAXIMA[len(kernel) - 1](whole, kernel, strides)
    return y


def _avg_pool(call: Call) -> Tensor:
    x, kernel, strides, pads, extra = _pool(call)
    average = _AVERAGES[len(kernel) - 1]
    # Padding counts unless it is excluded; what only rounds the size up never does, as in torch.
    counted = torch.ones_like(x[:1, :1])
    counted = pad_spatial(counted, pads, 0.0 if call.flag("exclude_padding_from_average") else 1.0)
    shares = average(pad_spatial(counted, extra), kernel, strides)
    return average(pad_spatial(pad_spatial(x, pads), extra), kernel, strides) / shares


def _l2_pool(call: Call) -> Tensor:
    x, kernel, strides, pads, extra = _pool(call)
    squares = pad_spatial(pad_spatial(x.square(), pads), extra)
    mean = _AVERAGES[len(kernel) - 1](squares, kernel, strides)
    return torch.sqrt(mean * math.prod(kernel))


def _pool(
    call: Call,
) -> tuple[Tensor, list[int], list[int], list[tuple[int, int]], list[tuple[int, int]]]:
    """Give input, kernel, strides, padding, and what rounding the size up adds at the end."""
    x, kernel = call.tensor(), call.integers("kernel_sizes")
    strides = call.integers("strides", [1] * len(kernel))
    pads = pads_of(call, x.shape[2:], kernel, strides)
    extra = []
    for axis, (before, after) in enumerate(pads):
        size, stride = x.shape[2 + axis], strides[axis]
        span = size + before + after - kernel[axis]
        windows = span // stride + 1
        if call.flag("ceil_mode"):
            windows = -(-span // stride) + 1
            if (windows - 1) * stride >= size + before:  # a window of padding alone
                windows -= 1
        extra.append((0, max(0, (windows - 1) * stride - span)))
    return x, kernel, strides, pads, extra


# ---- norms ------------------------------------------------------------------------------------


def _batch_norm(call: Call) -> Tensor:
    x = call.tensor()
    mean, variance = (along(call.tensor(key), x.dim(), 1) for key in ("mean", "variance"))
    return _scaled(call, (x - mean) / torch.sqrt(variance + call.number("epsilon", 1e-5)), [1])


def _instance_norm(call: Call) -> Tensor:
    x = call.tensor()
    return _scaled(call, _standardized(call, x, list(range(2, x.dim()))), [1])


def _layer_norm(call: Call) -> Tensor:
    x = call.tensor()
    axes = call.axes("axes", x.dim(), range(x.dim()))
    return _scaled(call, _standardized(call, x, axes), axes)


def _standardized(call: Call, x: Tensor, axes: list[int]) -> Tensor:
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + call.number("epsilon", 1e-5))


def _scaled(call: Call, y: Tensor, axes: Sequence[int]) -> Tensor:
    shape = [size if axis in axes else 1 for axis, size in enumerate(y.shape)]
    gamma, beta = call.optional("gamma"), call.optional("beta")
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def _l2_norm(call: Call) -> Tensor:
    x = call.tensor()
    squares = x.square().sum((-3, -2, -1), keepdim=True)
    return x / torch.sqrt(squares + call.number("epsilon", 1e-6))


def _local_response_norm(call: Call) -> Tensor:
    return F.local_response_norm(
        call.tensor(),
        call.integer("size"),
        call.number("alpha", 1e-4),
        call.number("beta", 0.75),
        call.number("k", 1.0),
    )


def _softmax(call: Call) -> Tensor:
    x = call.tensor()
    return torch.softmax(x, call.axis("axis", x.dim(), -1))


# ---- reductions -------------------------------------------------------------------------------

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _reduction(function: Reduction) -> Operator:
    def reduce(call: Call) -> Tensor:
        x = call.tensor()
        axes = call.axes("axes", x.dim(), range(x.dim()))
        if not axes:  # torch takes no axes for all of them
            x, axes = x.unsqueeze(-1), [x.dim()]
            return _widened(function, x, axes, keep=False)
        return _widened(function, x, axes, keep=call.flag("keep_dims"))

    return reduce


def _widened(function: Reduction, x: Tensor, axes: list[int], *, keep: bool) -> Tensor:
    if x.is_floating_point():
        return function(x, axes, keep)
    return function(x.double(), axes, keep).to(x.dtype)  # 53 bits hold every int32 sum here


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg(function: Callable[[Tensor, int, bool], Tensor]) -> Operator:
    def reduce(call: Call) -> Tensor:
        x = call.tensor()
        return function(x, call.axis("axis", x.dim(), -1), call.flag("keep_dims")).int()

    return reduce


def _cumsum(call: Call) -> Tensor:
    x = call.tensor()
    axis, reverse = call.axis("axis", x.dim(), 0), call.flag("reverse")
    given = x.flip(axis) if reverse else x
    total = given.cumsum(axis).to(x.dtype)
    if call.flag("exclusive"):
        total = total - given
    return total.flip(axis) if reverse else total


OPERATORS: dict[str, Operator] = {
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "l2_pool": _l2_pool,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "l2_norm": _l2_norm,
    "local_response_norm": _local_response_norm,
    "softmax": _softmax,
    "cumsum": _cumsum,
    "reduce_argmax": _arg(lambda x, axis, keep: x.argmax(axis, keepdim=keep)),
    "reduce_argmin": _arg(lambda x, axis, keep: x.argmin(axis, keepdim=keep)),
    "reduce_prod": _reduction(_product),
    "reduce_mean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "reduce_sum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "reduce_max": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "reduce_min": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "reduce_l1_norm": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "reduce_l2_norm": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "reduce_sum_square": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "reduce_log_sum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "reduce_log_sum_exp": _reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
}
