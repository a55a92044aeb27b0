"""Every operator of the reference evaluation against torch, or against its documentation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from runtimes.coreml_ops import OPERATORS
from tests.runtimes.coreml_programs import mb, operators_of, run, save

RANDOM = np.random.default_rng(0)


def floats(*shape, low=None):
    array = RANDOM.standard_normal(shape).astype(np.float32)
    return array if low is None else np.abs(array) + np.float32(low)


def whole(*shape, below=5, least=0):
    return RANDOM.integers(least, below, shape).astype(np.int32)


X, Y = floats(2, 3, 4), floats(3, 1)
POSITIVE, INSIDE = floats(2, 5, low=0.1), np.tanh(floats(2, 5))
INTS, OTHERS = whole(3, 4, below=9, least=-9), whole(4, below=5, least=1)
IMAGE, SERIES, VOLUME = floats(2, 4, 7, 6), floats(2, 4, 9), floats(1, 2, 4, 5, 3)
MATRIX = floats(4, 6)


@dataclass(frozen=True)
class Case:
    build: Any
    inputs: tuple[Any, ...]
    expected: Any  # a function of torch tensors, or what it shall give
    target: str = "iOS17"


def case(build, inputs, expected, target="iOS17"):
    return Case(build, inputs if isinstance(inputs, tuple) else (inputs,), expected, target)


def unary(name, array=X, expected=None, **parameters):
    return case(
        lambda x: getattr(mb, name)(x=x, **parameters), array, expected or getattr(torch, name)
    )


def truth(value):
    return mb.cast(x=value, dtype="int32")


UNARY = {
    "abs": unary("abs"), "abs of ints": unary("abs", INTS), "acos": unary("acos", INSIDE),
    "asin": unary("asin", INSIDE), "atan": unary("atan"), "atanh": unary("atanh", INSIDE),
    "ceil": unary("ceil"), "cos": unary("cos"), "cosh": unary("cosh"), "erf": unary("erf"),
    "exp": unary("exp"), "exp2": unary("exp2"), "floor": unary("floor"),
    "identity": unary("identity", expected=lambda x: x), "relu": unary("relu"),
    "relu6": unary("relu6", 9 * X, F.relu6), "sigmoid": unary("sigmoid"), "sign": unary("sign"),
    "round": unary("round", np.array([0.5, 1.5, 2.4, -0.5, -1.5], np.float32)),
    "silu": unary("silu", expected=F.silu), "sin": unary("sin"), "sinh": unary("sinh"),
    "softplus": unary("softplus", 50 * X, F.softplus),
    "softsign": unary("softsign", expected=F.softsign), "sqrt": unary("sqrt", POSITIVE),
    "square": unary("square"), "tan": unary("tan", INSIDE), "tanh": unary("tanh"),
    "rsqrt": unary("rsqrt", POSITIVE), "log": unary("log", POSITIVE),
    "inverse": unary("inverse", POSITIVE, lambda x: 1 / (x + 1e-4)),
    "inverse with epsilon": unary("inverse", POSITIVE, lambda x: 1 / (x + 0.5), epsilon=0.5),
    "clip": unary("clip", expected=lambda x: x.clamp(-0.5, 0.7), alpha=-0.5, beta=0.7),
    "gelu": unary("gelu", expected=F.gelu),
    "gelu tanh": unary("gelu", expected=lambda x: F.gelu(x, approximate="tanh"),
                       mode="TANH_APPROXIMATION"),
    "gelu sigmoid": unary("gelu", expected=lambda x: x * torch.sigmoid(1.702 * x),
                          mode="SIGMOID_APPROXIMATION"),
    "elu": unary("elu", expected=lambda x: F.elu(x, 0.7), alpha=0.7),
    "leaky_relu": unary("leaky_relu", expected=lambda x: F.leaky_relu(x, 0.2), alpha=0.2),
    "threshold": unary("threshold", expected=lambda x: x.clamp(min=0.3), alpha=0.3),
    "thresholded_relu": unary("thresholded_relu", expected=lambda x: F.threshold(x, 0.3, 0.0),
                              alpha=0.3),
    "clamped_relu": unary("clamped_relu", alpha=0.5, beta=0.8,
                          expected=lambda x: torch.where(x >= 0, x, 0.5 * x).clamp(max=0.8)),
    "linear_activation": unary("linear_activation", expected=lambda x: 2 * x + 3,
                               alpha=2.0, beta=3.0),
    "scaled_tanh": unary("scaled_tanh", expected=lambda x: 2 * torch.tanh(0.3 * x),
                         alpha=2.0, beta=0.3),
    "sigmoid_hard": unary("sigmoid_hard", 5 * X, F.hardsigmoid, alpha=1 / 6, beta=0.5),
    "prelu": case(lambda x: mb.prelu(x=x, alpha=np.float32([0.1, 0.2, 0.3, 0.4])), IMAGE,
                  lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3, 0.4]))),
    "softplus_parametric": case(
        lambda x: mb.softplus_parametric(x=x, alpha=np.float32([1, 2, 3, 4]),
                                         beta=np.float32([2, 1, 0.5, 3])), IMAGE,
        lambda x: torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
        * F.softplus(x * torch.tensor([2, 1, 0.5, 3]).view(1, 4, 1, 1))),
    "cast to int": case(lambda x: mb.cast(x=x, dtype="int32"), 3 * X, lambda x: x.int()),
    "cast to bool": case(lambda x: truth(mb.cast(x=x, dtype="bool")), whole(9, below=3),
                         lambda x: (x != 0).int()),
    "cast to narrow": case(
        lambda x: mb.cast(x=mb.cast(x=x, dtype="uint16"), dtype="fp32"), whole(9, below=60000),
        lambda x: x.float()),
    "cast to half": case(lambda x: mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32"), 1000 * X,
                         lambda x: x.half().float()),
    "logical_not": case(
        lambda x: truth(mb.logical_not(x=mb.greater(x=x, y=0.0))), X, lambda x: (x <= 0).int()),
}  # fmt: skip


def binary(name, expected, x=X, y=Y):
    return case(lambda x, y: getattr(mb, name)(x=x, y=y), (x, y), expected)


def compared(name, expected):
    return case(lambda x, y: truth(getattr(mb, name)(x=x, y=y)), (INTS, OTHERS),
                lambda x, y: expected(x, y).int())  # fmt: skip


def joined(name, expected):
    return case(
        lambda x, y: truth(getattr(mb, name)(x=mb.greater(x=x, y=0.0), y=mb.less(x=y, y=0.3))),
        (X, Y), lambda x, y: expected(x > 0, y < 0.3).int())  # fmt: skip


BINARY = {
    "add": binary("add", torch.add), "sub": binary("sub", torch.sub),
    "mul": binary("mul", torch.mul), "real_div": binary("real_div", torch.div),
    "maximum": binary("maximum", torch.maximum), "minimum": binary("minimum", torch.minimum),
    "pow": binary("pow", torch.pow, POSITIVE, floats(5)),
    "pow of ints": binary("pow", torch.pow, whole(4, below=5), np.int32([0, 1, 2, 3])),
    "floor_div": binary("floor_div", torch.floor_divide),
    "floor_div of ints": binary("floor_div", torch.floor_divide, INTS, OTHERS),
    "mod": binary("mod", torch.remainder, X, POSITIVE[:, None, :4]),
    "mod of ints": binary("mod", torch.remainder, INTS, OTHERS),
    "equal": compared("equal", torch.eq), "not_equal": compared("not_equal", torch.ne),
    "greater": compared("greater", torch.gt), "less": compared("less", torch.lt),
    "greater_equal": compared("greater_equal", torch.ge),
    "less_equal": compared("less_equal", torch.le),
    "logical_and": joined("logical_and", torch.logical_and),
    "logical_or": joined("logical_or", torch.logical_or),
    "logical_xor": joined("logical_xor", torch.logical_xor),
    "select": case(lambda x, y: mb.select(cond=mb.greater(x=x, y=0.0), a=x, b=y), (X, Y),
                   lambda x, y: torch.where(x > 0, x, y)),
}  # fmt: skip


# ---- products -----------------------------------------------------------------------------------

W, B = floats(5, 4), floats(5)


def conv(array, weight, expected, name="conv", **parameters):
    bias = floats(expected(torch.zeros(array.shape), torch.zeros(weight.shape)).shape[1])
    return case(
        lambda x: getattr(mb, name)(x=x, weight=weight, bias=bias, **parameters), array,
        lambda x: expected(x, torch.from_numpy(weight))
        + torch.from_numpy(bias).view(1, -1, *[1] * (x.dim() - 2)),
    )  # fmt: skip


def same(x, w, stride):
    """Pad as TensorFlow's SAME does: the odd one at the end."""
    pads = []
    for size, kernel in zip(x.shape[:1:-1], w.shape[:1:-1], strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), w, stride=stride)


PRODUCTS = {
    "linear": case(lambda x: mb.linear(x=x, weight=W, bias=B), X,
                   lambda x: F.linear(x, torch.from_numpy(W), torch.from_numpy(B))),
    "linear without bias": case(lambda x: mb.linear(x=x, weight=W), X,
                                lambda x: x @ torch.from_numpy(W).T),
    "matmul": case(lambda x, y: mb.matmul(x=x, y=y), (X, floats(2, 4, 5)), torch.matmul),
    "matmul of transposes": case(
        lambda x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
        (X, floats(5, 3)), lambda x, y: x.transpose(1, 2) @ y.T),
    "einsum": case(lambda x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
                   (floats(2, 3, 4, 5), floats(2, 5, 4, 6)),
                   lambda x, y: torch.einsum("nchw,nwhu->nchu", x, y)),
    "scaled_dot_product_attention": case(
        lambda x, y: mb.scaled_dot_product_attention(query=x, key=y, value=y),
        (floats(2, 3, 4, 8), floats(2, 3, 5, 8)),
        lambda x, y: F.scaled_dot_product_attention(x, y, y), "iOS18"),
    "attention with a mask": case(
        lambda x, y, m: mb.scaled_dot_product_attention(query=x, key=y, value=y, attn_mask=m),
        (floats(2, 4, 8), floats(2, 5, 8), floats(4, 5)),
        lambda x, y, m: F.scaled_dot_product_attention(x, y, y, attn_mask=m), "iOS18"),
    "attention with a mask of truth": case(
        lambda x, y, m: mb.scaled_dot_product_attention(
            query=x, key=y, value=y, attn_mask=mb.greater(x=m, y=-1.0)),
        (floats(2, 4, 8), floats(2, 5, 8), floats(4, 5)),
        lambda x, y, m: F.scaled_dot_product_attention(x, y, y, attn_mask=m > -1), "iOS18"),
    "conv": conv(IMAGE, floats(5, 4, 3, 3), F.conv2d),
    "conv with all": conv(
        IMAGE, floats(6, 2, 3, 2), strides=[2, 1], dilations=[1, 2], groups=2, pad_type="custom",
        pad=[1, 0, 2, 1],
        expected=lambda x, w: F.conv2d(F.pad(x, (2, 1, 1, 0)), w, stride=(2, 1), dilation=(1, 2),
                                       groups=2)),
    "conv padded to the same": conv(IMAGE, floats(5, 4, 3, 2), pad_type="same", strides=[2, 2],
                                    expected=lambda x, w: same(x, w, 2)),
    "conv padded to the same before": conv(
        IMAGE, floats(5, 4, 2, 2), pad_type="same_lower",
        expected=lambda x, w: F.conv2d(F.pad(x, (1, 0, 1, 0)), w)),
    "conv of one axis": conv(SERIES, floats(5, 4, 3), F.conv1d),
    "conv of three axes": conv(VOLUME, floats(5, 2, 3, 2, 1), F.conv3d),
    "conv_transpose": conv(IMAGE, floats(4, 5, 3, 3), F.conv_transpose2d, "conv_transpose"),
    "conv_transpose with all": conv(
        IMAGE, floats(4, 3, 3, 3), name="conv_transpose", strides=[2, 2], groups=2,
        pad_type="custom", pad=[1, 1, 1, 1],
        expected=lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, groups=2)),
    "conv_transpose of dilated": conv(
        IMAGE, floats(4, 3, 2, 2), name="conv_transpose", dilations=[2, 3],
        expected=lambda x, w: F.conv_transpose2d(x, w, dilation=(2, 3))),
    "conv_transpose to a shape": conv(
        IMAGE, floats(4, 3, 3, 3), name="conv_transpose", strides=[2, 2], pad_type="custom",
        pad=[1, 1, 1, 1], output_shape=[2, 3, 14, 12],
        expected=lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1)),
    "conv_transpose beyond the sums": conv(
        IMAGE, floats(4, 3, 1, 1), name="conv_transpose", strides=[2, 2],
        output_shape=[2, 3, 14, 12],
        expected=lambda x, w: F.conv_transpose2d(x, w, stride=2, output_padding=1)),
    "conv_transpose padded to the same": conv(
        IMAGE, floats(4, 3, 3, 3), name="conv_transpose", pad_type="same",
        expected=lambda x, w: F.conv_transpose2d(x, w, padding=1)),
    "conv_transpose of one axis": conv(SERIES, floats(4, 5, 3), F.conv_transpose1d,
                                       "conv_transpose"),
    "conv_transpose of three axes": conv(VOLUME, floats(2, 3, 3, 2, 1), F.conv_transpose3d,
                                         "conv_transpose"),
}  # fmt: skip


def pool(name, expected, array=IMAGE, size=(3, 2), pad_type="valid", **parameters):
    return case(lambda x: getattr(mb, name)(x=x, kernel_sizes=list(size), pad_type=pad_type,
                                            **parameters), array, expected)  # fmt: skip


POOLS = {
    "max_pool": pool("max_pool", lambda x: F.max_pool2d(x, (3, 2), 1)),
    "max_pool with all": pool("max_pool", lambda x: F.max_pool2d(x, 3, 2, 1), size=(3, 3),
                              strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]),
    "max_pool rounded up": pool("max_pool", lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
                                size=(2, 2), strides=[2, 2], ceil_mode=True),
    "max_pool padded to the same": pool(
        "max_pool", lambda x: F.max_pool2d(F.pad(x, (0, 1, 1, 1), value=-math.inf), (3, 2), 1),
        pad_type="same"),
    "max_pool of one axis": pool("max_pool", lambda x: F.max_pool1d(x, 3, 1), SERIES, (3,)),
    "avg_pool": pool("avg_pool", lambda x: F.avg_pool2d(x, (3, 2), 1)),
    "avg_pool that counts padding": pool(
        "avg_pool", lambda x: F.avg_pool2d(x, 3, 2, 1), size=(3, 3), strides=[2, 2],
        pad_type="custom", pad=[1, 1, 1, 1]),
    "avg_pool that does not": pool(
        "avg_pool", lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), size=(3, 3),
        strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], exclude_padding_from_average=True),
    "avg_pool rounded up": pool(
        "avg_pool", lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), size=(3, 3),
        strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], ceil_mode=True),
    "avg_pool of three axes": pool("avg_pool", lambda x: F.avg_pool3d(x, 2, 1), VOLUME, (2, 2, 2)),
    "l2_pool": pool("l2_pool", lambda x: (F.avg_pool2d(x * x, (3, 2), 1) * 6).sqrt()),
}  # fmt: skip
MEAN, VARIANCE, GAMMA, BETA = floats(4), floats(4, low=0.2), floats(4), floats(4)


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


NORMS = {
    "batch_norm": case(
        lambda x: mb.batch_norm(x=x, mean=MEAN, variance=VARIANCE, gamma=GAMMA, beta=BETA,
                                epsilon=0.1), IMAGE,
        lambda x: F.batch_norm(x, *tensors(MEAN, VARIANCE, GAMMA, BETA), eps=0.1)),
    "batch_norm alone": case(
        lambda x: mb.batch_norm(x=x, mean=MEAN, variance=VARIANCE), IMAGE,
        lambda x: F.batch_norm(x, *tensors(MEAN, VARIANCE))),
    "instance_norm": case(
        lambda x: mb.instance_norm(x=x, gamma=GAMMA, beta=BETA, epsilon=0.1), IMAGE,
        lambda x: F.instance_norm(x, weight=torch.from_numpy(GAMMA), bias=torch.from_numpy(BETA),
                                  eps=0.1)),
    "layer_norm": case(
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=GAMMA, beta=BETA, epsilon=0.1), X,
        lambda x: F.layer_norm(x, (4,), *tensors(GAMMA, BETA), eps=0.1)),
    "layer_norm of channels": case(
        lambda x: mb.layer_norm(x=x, axes=[1], gamma=GAMMA, beta=BETA), IMAGE,
        lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,), *tensors(GAMMA, BETA))
        .permute(0, 3, 1, 2)),
    "l2_norm": case(lambda x: mb.l2_norm(x=x, epsilon=1e-3), IMAGE,
                    lambda x: x / (x.square().sum((1, 2, 3), keepdim=True) + 1e-3).sqrt()),
    "local_response_norm": case(
        lambda x: mb.local_response_norm(x=x, size=3, alpha=0.2, beta=0.6, k=1.5), IMAGE,
        lambda x: F.local_response_norm(x, 3, 0.2, 0.6, 1.5)),
    "softmax": unary("softmax", expected=lambda x: x.softmax(-1)),
    "softmax of an axis": unary("softmax", expected=lambda x: x.softmax(1), axis=1),
}  # fmt: skip
REDUCED = {
    "reduce_mean": torch.mean, "reduce_sum": torch.sum, "reduce_max": torch.amax,
    "reduce_min": torch.amin,
    "reduce_l1_norm": lambda x, axes, keepdim: x.abs().sum(axes, keepdim=keepdim),
    "reduce_l2_norm": lambda x, axes, keepdim: x.square().sum(axes, keepdim=keepdim).sqrt(),
    "reduce_sum_square": lambda x, axes, keepdim: x.square().sum(axes, keepdim=keepdim),
    "reduce_log_sum": lambda x, axes, keepdim: x.sum(axes, keepdim=keepdim).log(),
    "reduce_log_sum_exp": torch.logsumexp,
    "reduce_prod": lambda x, axes, keepdim: x.flatten(1).prod(1).reshape([2, 1, 1][: 3 if keepdim else 1]),
}  # fmt: skip


def reduction(name, function, keep):
    return case(
        lambda x: getattr(mb, name)(x=x, axes=[1, -1], keep_dims=keep), np.abs(X) + 0.1,
        lambda x: function(x, (1, 2), keepdim=keep),
    )  # fmt: skip


REDUCTIONS = {
    **{name: reduction(name, function, False) for name, function in REDUCED.items()},
    **{f"{name} kept": reduction(name, function, True) for name, function in REDUCED.items()},
    "reduce_sum of all": unary("reduce_sum", expected=lambda x: x.sum()),
    "reduce_sum of ints": unary("reduce_sum", INTS, lambda x: x.sum(0).int(), axes=[0]),
    "reduce_mean of ints": unary("reduce_mean", INTS, lambda x: x.double().mean(0).int(), axes=[0]),
    "reduce_argmax": unary("reduce_argmax", expected=lambda x: x.argmax(1).int(), axis=1),
    "reduce_argmin": unary("reduce_argmin", expected=lambda x: x.argmin(-1, keepdim=True).int(),
                           keep_dims=True),
    "cumsum": unary("cumsum", expected=lambda x: x.cumsum(1), axis=1),
    "cumsum of ints": unary("cumsum", INTS, lambda x: x.cumsum(0).int()),
    "cumsum backwards": unary("cumsum", expected=lambda x: x.flip(2).cumsum(2).flip(2), axis=2,
                              reverse=True),
    "cumsum of those before": unary(
        "cumsum", expected=lambda x: F.pad(x.cumsum(2), (1, 0))[..., :-1], axis=2, exclusive=True),
}  # fmt: skip

# ---- moving -------------------------------------------------------------------------------------

MOVED = {
    "reshape": unary("reshape", expected=lambda x: x.reshape(4, 6), shape=[4, -1]),
    "reshape with zeros": unary("reshape", expected=lambda x: x.reshape(1, 6, 4), shape=[1, -1, 0]),
    "reshape with zeros from the left": case(
        lambda x: mb.reshape(x=x, shape=[0, 0, 2, 2]), floats(2, 3, 4, 1),
        lambda x: x.reshape(2, 3, 2, 2), "iOS15"),
    "reshape_like": case(
        lambda x, y: mb.reshape_like(x=x, ref_tensors=(y, y), begins=(0, 1), ends=(1, 0),
                                     end_masks=(False, True)),
        (floats(6, 4), floats(3, 4, 2)), lambda x, y: x.reshape(3, 4, 2)),
    "transpose": unary("transpose", expected=lambda x: x.permute(2, 0, 1), perm=[-1, 0, 1]),
    "expand_dims": unary("expand_dims", expected=lambda x: x[None, :, :, :, None], axes=[0, -1]),
    "squeeze": unary("squeeze", floats(2, 1, 3, 1), lambda x: x[:, 0], axes=[1]),
    "squeeze of all": unary("squeeze", floats(2, 1, 3, 1), lambda x: x[:, 0, :, 0]),
    "flatten2d": unary("flatten2d", expected=lambda x: x.reshape(6, 4), axis=2),
    "slice_by_index": unary("slice_by_index", expected=lambda x: x[:, 1:3, 1:4:2],
                            begin=[0, 1, 1], end=[2, 3, 4], stride=[1, 1, 2]),
    "slice_by_index with masks": unary(
        "slice_by_index", expected=lambda x: x[1, :2, 1:], begin=[1, 1, 1], end=[0, 2, 0],
        begin_mask=[False, True, False], end_mask=[False, False, True],
        squeeze_mask=[True, False, False]),
    "slice_by_index backwards": unary(
        "slice_by_index", expected=lambda x: x.flip(2), begin=[0, 0, -1], end=[2, 3, 0],
        stride=[1, 1, -1], end_mask=[False, False, True]),
    "slice_by_size": unary("slice_by_size", expected=lambda x: x[:, 1:2, 1:], begin=[0, 1, 1],
                           size=[2, 1, -1]),
    "slice_update": case(
        lambda x, y: mb.slice_update(x=x, update=y, begin=[0, 1, 0], end=[2, 3, 4],
                                     stride=[1, 1, 2]),
        (X, floats(2, 2, 2)),
        lambda x, y: torch.stack([x[:, 0], *(torch.stack([y[:, i, 0], x[:, i + 1, 1],
                                  y[:, i, 1], x[:, i + 1, 3]], 1) for i in range(2))], 1),
        "iOS18"),
    "crop": unary("crop", IMAGE, lambda x: x[..., 1:5, 0:3], crop_height=[1, 2], crop_width=[0, 3]),
    "sliding_windows": unary(
        "sliding_windows", expected=lambda x: torch.stack([x[:, :, 0:2], x[:, :, 2:4]], 2),
        axis=2, size=2, stride=2),
    "band_part": unary("band_part", MATRIX, lambda x: x.tril(2).triu(-1), lower=1, upper=2),
    "band_part below": unary("band_part", MATRIX, torch.tril, lower=-1, upper=0),
    "concat": case(lambda x, y: mb.concat(values=(x, y), axis=-2), (X, floats(2, 5, 4)),
                   lambda x, y: torch.cat([x, y], 1)),
    "concat in turns": case(
        lambda x, y: mb.concat(values=(x, y), axis=0, interleave=True), (X, X + 1),
        lambda x, y: torch.stack([x[0], y[0], x[1], y[1]])),
    "stack": case(lambda x, y: mb.stack(values=(x, y), axis=1), (X, X + 1),
                  lambda x, y: torch.stack([x, y], 1)),
    "split": case(lambda x: mb.split(x=x, num_splits=2, axis=-1), X, lambda x: x.chunk(2, -1)),
    "split to sizes": case(lambda x: mb.split(x=x, split_sizes=[1, 3], axis=2), X,
                           lambda x: x.split([1, 3], 2)),
    "tile": unary("tile", expected=lambda x: x.repeat(2, 1, 3), reps=[2, 1, 3]),
    "pad": unary("pad", expected=lambda x: F.pad(x, (3, 0, 1, 2), value=0.5), pad=[1, 2, 3, 0],
                 constant_val=0.5),
    "pad by reflection": unary("pad", IMAGE, lambda x: F.pad(x, (3, 0, 1, 2), mode="reflect"),
                               pad=[1, 2, 3, 0], mode="reflect"),
    "pad by repetition": unary("pad", IMAGE, lambda x: F.pad(x, (3, 0, 1, 2), mode="replicate"),
                               pad=[1, 2, 3, 0], mode="replicate"),
    "reverse": unary("reverse", expected=lambda x: x.flip(0, 2), axes=[0, -1]),
    "reverse of all": unary("reverse", expected=lambda x: x.flip(0, 1, 2)),
    "reverse_sequence": unary(
        "reverse_sequence", expected=lambda x: torch.stack(
            [x[0], torch.stack([x[1, 1], x[1, 0], x[1, 2]])]),
        lengths=[1, 2], seq_axis=1, batch_axis=0),
    "pixel_shuffle": unary("pixel_shuffle", IMAGE, lambda x: F.pixel_shuffle(x, 2),
                           upscale_factor=2),
    "pixel_unshuffle": unary("pixel_unshuffle", floats(2, 3, 4, 6),
                             lambda x: F.pixel_unshuffle(x, 2), downscale_factor=np.uint32(2)),
    # By the place of the block first, then by the channel, as TensorFlow orders them.
    "depth_to_space": unary(
        "depth_to_space", floats(1, 8, 3, 2), lambda x: F.pixel_shuffle(
            x.reshape(1, 4, 2, 3, 2).transpose(1, 2).reshape(1, 8, 3, 2), 2), block_size=2),
    "space_to_depth": unary(
        "space_to_depth", floats(1, 2, 6, 4), lambda x: F.pixel_unshuffle(x, 2)
        .reshape(1, 2, 4, 3, 2).transpose(1, 2).reshape(1, 8, 3, 2), block_size=2),
    "space_to_batch": unary(
        "space_to_batch", floats(1, 2, 5, 6), lambda x: torch.cat(
            [F.pad(x, (0, 0, 1, 0))[:, :, i::2, j::3] for i in range(2) for j in range(3)]),
        block_shape=[2, 3], paddings=[[1, 0], [0, 0]]),
    "batch_to_space": unary(
        "batch_to_space", floats(6, 2, 3, 2), lambda x: torch.stack(
            [torch.stack([x[i % 2 * 3 + j % 3, :, i // 2, j // 3] for j in range(6)], -1)
             for i in range(1, 6)], -2)[None],
        block_shape=[2, 3], crops=[[1, 0], [0, 0]]),
}  # fmt: skip

# ---- indices ------------------------------------------------------------------------------------

DATA, PICKS = floats(4, 5), np.int32([[3, -1], [0, 2]])


def scattered(name, mode, expected, indices, updates, **parameters):
    return case(lambda x, y: getattr(mb, name)(data=x, indices=indices, updates=y, mode=mode,
                                               **parameters), (DATA, updates), expected)  # fmt: skip


def along_axis(mode, reduce, sign=1):
    indices = np.int32([[0, 1, 1, 3, 0], [0, 1, 2, 3, 2]])
    return scattered(
        "scatter_along_axis", mode,
        lambda x, y: x.scatter_reduce(0, torch.from_numpy(indices).long(), sign * y, reduce),
        indices, floats(2, 5), axis=0,
    )  # fmt: skip


INDEXED = {
    "gather": case(lambda x: mb.gather(x=x, indices=PICKS, axis=1), DATA,
                   lambda x: x[:, PICKS.tolist()]),
    "gather of one": case(lambda x: mb.gather(x=x, indices=2, axis=-1), X, lambda x: x[..., 2]),
    "gather in the middle": case(lambda x: mb.gather(x=x, indices=np.int32([2, 0]), axis=1), X,
                                 lambda x: x[:, [2, 0]]),
    "gather in batches": case(
        lambda x, i: mb.gather(x=x, indices=i, axis=2, batch_dims=1),
        (X, np.int32([[3, 0], [1, 1]])),
        lambda x, i: torch.stack([x[n][:, i[n].long()] for n in range(2)])),
    "gather_along_axis": case(
        lambda x, i: mb.gather_along_axis(x=x, indices=i, axis=1),
        (DATA, whole(4, 2, below=5, least=-5)),
        lambda x, i: x.gather(1, i.long() % 5)),
    "gather_nd": case(lambda x: mb.gather_nd(x=x, indices=PICKS), DATA,
                      lambda x: x[PICKS[:, 0].tolist(), PICKS[:, 1].tolist()]),
    "gather_nd of slices": case(
        lambda x: mb.gather_nd(x=x, indices=np.int32([[[1], [0]]])), X, lambda x: x[[1, 0]][None]),
    "gather_nd in batches": case(
        lambda x: mb.gather_nd(x=x, indices=np.int32([[[2], [0]], [[1], [1]]]), batch_dims=1), X,
        lambda x: torch.stack([x[0, [2, 0]], x[1, [1, 1]]])),
    "scatter": scattered("scatter", "add", lambda x, y: x.index_add(0, torch.tensor([1, 3, 1]), y),
                         np.int32([1, -1, 1]), floats(3, 5), axis=0),
    "scatter that replaces": scattered(
        "scatter", "update", lambda x, y: x.index_copy(1, torch.tensor([4, 0]), y),
        np.int32([4, 0]), floats(4, 2), axis=1),
    "scatter_along_axis": along_axis("add", "sum"),
    "scatter_along_axis that subtracts": along_axis("sub", "sum", -1),
    "scatter_along_axis that multiplies": along_axis("mul", "prod"),
    "scatter_along_axis to the most": along_axis("max", "amax"),
    "scatter_along_axis to the least": along_axis("min", "amin"),
    "scatter_nd": scattered(
        "scatter_nd", "update",
        lambda x, y: x.index_put((torch.tensor([3, 0]), torch.tensor([4, 2])), y),
        PICKS, floats(2)),
    "scatter_nd that divides": scattered(
        "scatter_nd", "div", lambda x, y: x.index_put((torch.tensor([2, 0]),), x[[2, 0]] / y),
        np.int32([[2], [0]]), floats(2, 5, low=0.5)),
    "one_hot": case(lambda x: mb.one_hot(indices=x, one_hot_vector_size=4), whole(3, below=4),
                    lambda x: F.one_hot(x.long(), 4).int()),
    "one_hot with all": case(
        lambda x: mb.one_hot(indices=x, one_hot_vector_size=4, axis=0, on_value=2.5,
                             off_value=-1.0), whole(3, below=4),
        lambda x: F.one_hot(x.long(), 4).T * 3.5 - 1),
    "topk": case(lambda x: mb.topk(x=x, k=2, axis=-1), X,
                 lambda x: (x.topk(2)[0], x.topk(2)[1].int())),
    "topk from below": case(
        lambda x: mb.topk(x=x, k=2, axis=1, ascending=True, return_indices=False), X,
        lambda x: x.topk(2, 1, largest=False)[0]),
    "topk of all": case(lambda x: mb.topk(x=x, k=4, axis=-1, output_indices_dtype="int32"), X,
                        lambda x: (x.sort(-1, True)[0], x.sort(-1, True)[1].int())),
    "argsort": unary("argsort", expected=lambda x: x.argsort(1).int(), axis=1, ascending=True),
    "non_zero": case(lambda x: mb.non_zero(x=mb.greater(x=x, y=0.0)), X,
                     lambda x: (x > 0).nonzero().int()),
}  # fmt: skip

# ---- resizing -----------------------------------------------------------------------------------


def grid(mode, size, out):
    """The places by the documentation of resize_bilinear, word by word."""
    i = torch.arange(out, dtype=torch.double)
    if mode in {"STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"}:
        if out == 1:
            return torch.tensor([0.0 if mode[0] == "S" else (size - 1) / 2], dtype=torch.double)
        places = i * ((size - 1) / (out - 1))
    elif mode == "DEFAULT":
        places = i * ((size - size / out) / max(1, out - 1))
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / out
        places = 0.5 * delta + i * delta
    else:
        places = i * (size / out) + 0.5 * (size / out) - 0.5
    return places.clamp(0, size - 1)


def interpolated(x, mode, high, wide):
    """Sample with torch at a grid, which it wants from -1 to 1."""
    def scaled(places, size):
        return places.float() * 2 / (size - 1) - 1

    rows, columns = (scaled(grid(mode, size, out), size)
                     for size, out in zip(x.shape[2:], (high, wide), strict=True))  # fmt: skip
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    return F.grid_sample(x, places.expand(len(x), -1, -1, -1), align_corners=True,
                         padding_mode="border")  # fmt: skip


MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")
RESIZED = {
    **{
        f"resize_bilinear {mode} to {high} x {wide}": unary(
            "resize_bilinear", IMAGE,
            lambda x, m=mode, h=high, w=wide: interpolated(x, m, h, w),
            target_size_height=high, target_size_width=wide, sampling_mode=mode,
        )
        for mode in MODES
        for high, wide in ((9, 4), (1, 13), (7, 6))
    },
    "resize_bilinear as torch does": unary(
        "resize_bilinear", IMAGE, lambda x: F.interpolate(x, (5, 11), mode="bilinear"),
        target_size_height=5, target_size_width=11, sampling_mode="UNALIGN_CORNERS"),
    "upsample_bilinear": unary(
        "upsample_bilinear", IMAGE,
        lambda x: F.interpolate(x, scale_factor=(2, 3), mode="bilinear", align_corners=True),
        scale_factor_height=2, scale_factor_width=3),
    "upsample_bilinear of half pixels": unary(
        "upsample_bilinear", IMAGE,
        lambda x: F.interpolate(x, size=(10, 9), mode="bilinear"), align_corners=False,
        scale_factor_height=1.5, scale_factor_width=1.5),
    "upsample_bilinear of whole pixels": unary(
        "upsample_bilinear", IMAGE, lambda x: interpolated(x, "DEFAULT", 14, 12),
        align_corners=False, half_pixel_centers=False, scale_factor_height=2,
        scale_factor_width=2),
    "upsample_nearest_neighbor": unary(
        "upsample_nearest_neighbor", IMAGE, lambda x: F.interpolate(x, scale_factor=(2, 3)),
        scale_factor_height=2, scale_factor_width=3),
    "resize_nearest_neighbor": unary(
        "resize_nearest_neighbor", IMAGE, lambda x: F.interpolate(x, (9, 4)),
        target_size_height=9, target_size_width=4),
    "resize": case(
        lambda x: mb.resize(x=x, shape=[0, 9], resized_dims=np.uint32(2),
                            sampling_mode="UNALIGN_CORNERS"), IMAGE,
        lambda x: F.interpolate(x, (7, 9), mode="bilinear")),
    "resize to the nearest": case(
        lambda x: mb.resize(x=x, shape=[5, 9], resized_dims=np.uint32(2),
                            interpolation_mode="NEAREST_NEIGHBOR"), IMAGE,
        lambda x: F.interpolate(x, (5, 9))),
}  # fmt: skip

# ---- constants ----------------------------------------------------------------------------------

CODES = RANDOM.integers(0, 16, (6, 8)).astype(np.uint8)
SIGNED = RANDOM.integers(-8, 8, (6, 8)).astype(np.int8)
SCALES, ZEROS = floats(6, low=0.1), RANDOM.integers(-8, 8, 6).astype(np.int8)
TABLE = floats(16)


def added(make, values, target="iOS18"):
    """Add what an operator unpacks to an input of zeros."""
    return case(lambda x: mb.add(x=x, y=make()), np.zeros(values.shape, np.float32),
                torch.from_numpy(values), target)  # fmt: skip


def packed(values, bits):
    each = (values.reshape(-1, 1) >> np.arange(bits)) & 1
    return np.packbits(each.astype(np.uint8).reshape(-1), bitorder="little")


def typed(values, name):
    from coremltools.converters.mil.mil.types.type_mapping import string_to_nptype

    return values.astype(string_to_nptype(name))


SPARSE = np.where(RANDOM.random((6, 8)) < 0.3, floats(6, 8), np.float32(0))
MADE = {
    "shape": case(lambda x: mb.shape(x=x), X, torch.tensor([2, 3, 4], dtype=torch.int32)),
    "fill": case(lambda x: mb.fill(shape=mb.shape(x=x), value=2.5), X, torch.full((2, 3, 4), 2.5)),
    "fill_like": case(lambda x: mb.fill_like(ref_tensor=x, value=7), X,
                      torch.full((2, 3, 4), 7, dtype=torch.int32)),
    "range_1d": case(lambda x: mb.range_1d(start=x, end=17, step=4),
                     np.array(3, np.int32).reshape(1)[:1],
                     torch.tensor([3, 7, 11, 15], dtype=torch.int32)),
    "quantize and dequantize": case(
        lambda x: mb.dequantize(
            input=mb.quantize(input=x, scale=SCALES, zero_point=ZEROS, axis=0,
                              output_dtype="int8"),
            scale=SCALES, zero_point=ZEROS, axis=0), floats(6, 8),
        lambda x: ((x / torch.from_numpy(SCALES)[:, None]).round()
                   + torch.from_numpy(ZEROS)[:, None]).clamp(-128, 127)
        .sub(torch.from_numpy(ZEROS)[:, None]) * torch.from_numpy(SCALES)[:, None]),
    "constexpr_affine_dequantize": added(
        lambda: mb.constexpr_affine_dequantize(
            quantized_data=SIGNED, zero_point=ZEROS, scale=SCALES, axis=0),
        (SIGNED.astype(np.float32) - ZEROS[:, None]) * SCALES[:, None], "iOS16"),
    "constexpr_blockwise_shift_scale": added(
        lambda: mb.constexpr_blockwise_shift_scale(
            data=typed(SIGNED, "int4"), scale=SCALES.reshape(3, 2),
            offset=typed(ZEROS.reshape(3, 2), "int4")),
        (SIGNED.astype(np.float32) - ZEROS.reshape(3, 2).repeat(2, 0).repeat(4, 1))
        * SCALES.reshape(3, 2).repeat(2, 0).repeat(4, 1)),
    "constexpr_lut_to_dense": added(
        lambda: mb.constexpr_lut_to_dense(indices=packed(CODES, 4), lut=TABLE,
                                          shape=np.uint32([6, 8])), TABLE[CODES], "iOS16"),
    **{
        f"constexpr_lut_to_dense of {bits} bits": added(
            lambda b=bits: mb.constexpr_lut_to_dense(
                indices=typed(CODES % min(2**b, 255), f"uint{b}"), lut=floats_of(b).reshape(1, 1, -1, 1)),
            floats_of(bits)[CODES % min(2**bits, 255)])
        for floats_of in [lambda bits: np.linspace(-1, 1, 2**bits, dtype=np.float32)]
        for bits in (1, 2, 3, 4, 6, 8)
    },
    "constexpr_lut_to_dense in groups": added(
        lambda: mb.constexpr_lut_to_dense(
            indices=typed(CODES % 4, "uint2"), lut=TABLE[:12].reshape(3, 1, 4, 1)),
        np.take_along_axis(TABLE[:12].reshape(3, 4).repeat(2, 0), (CODES % 4).astype(int), 1)),
    "constexpr_lut_to_dense of vectors": added(
        lambda: mb.constexpr_lut_to_dense(
            indices=typed(CODES % 4, "uint2"), lut=TABLE[:8].reshape(1, 1, 4, 2), vector_axis=0),
        TABLE[:8].reshape(4, 2)[CODES % 4].transpose(0, 2, 1).reshape(12, 8)),
    "constexpr_sparse_to_dense": added(
        lambda: mb.constexpr_sparse_to_dense(
            nonzero_data=SPARSE[SPARSE != 0], mask=packed((SPARSE != 0).astype(np.uint8), 1),
            shape=np.uint32([6, 8])), SPARSE, "iOS16"),
    "constexpr_sparse_to_dense of a mask": added(
        lambda: mb.constexpr_sparse_to_dense(
            nonzero_data=SPARSE[SPARSE != 0], mask=typed(SPARSE != 0, "uint1")), SPARSE),
    "constexpr_sparse_blockwise_shift_scale": added(
        lambda: sparse(mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=typed(SPARSE != 0, "uint1"), nonzero_data=SIGNED[SPARSE != 0],
            scale=SCALES[:, None])),
        np.where(SPARSE != 0, SIGNED.astype(np.float32) * SCALES[:, None], np.float32(0))),
    "constexpr_lut_to_sparse": added(
        lambda: sparse(mb.constexpr_lut_to_sparse(
            indices_mask=typed(SPARSE != 0, "uint1"),
            indices_nonzero_data=typed((CODES % 4)[SPARSE != 0], "uint2"),
            lut=TABLE[:4].reshape(1, 1, 4, 1))),
        np.where(SPARSE != 0, TABLE[CODES % 4], np.float32(0))),
    "constexpr_cast": added(
        lambda: mb.constexpr_cast(source_val=TABLE.astype(np.float16), output_dtype="fp32"),
        TABLE.astype(np.float16).astype(np.float32), "iOS16"),
}  # fmt: skip


def sparse(both):
    return mb.constexpr_sparse_to_dense(nonzero_data=both[1], mask=both[0])


CASES = {
    **UNARY, **BINARY, **PRODUCTS, **POOLS, **NORMS, **REDUCTIONS, **MOVED, **INDEXED, **RESIZED,
    **MADE,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_operator_gives_what_it_shall(tmp_path, name):
    test = CASES[name]
    path = save(tmp_path / "m.mlpackage", test.build, test.inputs, target=test.target)
    assert name.split(" ", maxsplit=1)[0] in operators_of(path) or " " in name
    found = run(path, test.inputs)
    expected = test.expected
    if callable(expected):
        expected = expected(*(torch.from_numpy(array) for array in test.inputs))
    for one, other in zip(
        found, expected if isinstance(expected, tuple) else (expected,), strict=True
    ):
        assert one.shape == tuple(other.shape)
        assert str(one.dtype) == str(other.dtype).removeprefix("torch.")
        np.testing.assert_allclose(one, other.numpy(), rtol=2e-5, atol=2e-6)


def test_every_operator_has_a_test():
    named = {word for name in CASES for word in name.split()}
    assert set(OPERATORS) - named == {"classify"}  # in test_coreml_reference
