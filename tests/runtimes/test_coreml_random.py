"""Operators of the reference evaluation on arguments at random, and on damaged programs."""

from __future__ import annotations

import random
import shutil
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import Function
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from export.errors import WeightspaceError
from runtimes.coreml_ops import OPERATORS
from runtimes.coreml_ops.call import Call
from tests.runtimes.coreml_programs import ct, mb, run, save

often = settings(max_examples=150, deadline=timedelta(seconds=5),
                 suppress_health_check=list(HealthCheck))  # fmt: skip
SHAPES = some.array_shapes(min_dims=1, max_dims=4, max_side=5)
NUMBERS = st.floats(-8, 8, width=32).map(lambda x: round(x, 3))


def tensor_of(value):
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    wide = {"f": np.float32, "i": np.int32, "u": np.int32, "b": np.bool_}[array.dtype.kind]
    return torch.from_numpy(np.array(array, wide))


def ours(name, dtype="float32", **arguments):
    """Compute an operator as the reference evaluation does."""
    values = {
        key: [tensor_of(each) for each in value] if isinstance(value, tuple) else [tensor_of(value)]
        for key, value in arguments.items()
        if value is not None
    }
    result = OPERATORS[name](Call(values, (dtype,), "CoreML7"))
    return result[0].numpy() if isinstance(result, tuple) else result.numpy()


def theirs(name, **arguments):
    """Compute it as coremltools does when it folds constants."""
    given = {key: value for key, value in arguments.items() if value is not None}
    with Function({}, opset_version=ct.target.iOS17):
        found = getattr(mb, name)(**given)
    found = found[0] if isinstance(found, tuple | list) else found
    return np.asarray(found.val)


def arrays(shape):
    return some.arrays(np.float32, shape, elements=NUMBERS)


@often
@given(st.data())
def test_slices(data):
    x = data.draw(arrays(data.draw(SHAPES)))
    ranks = st.tuples(*[st.integers(-size, size) for size in x.shape])
    masks = st.lists(st.booleans(), min_size=x.ndim, max_size=x.ndim)
    strides = st.lists(st.sampled_from([1, 2, 3, -1, -2]), min_size=x.ndim, max_size=x.ndim)
    arguments = {
        "begin": np.int32(data.draw(ranks)), "end": np.int32(data.draw(ranks)),
        "stride": np.int32(data.draw(strides)), "begin_mask": data.draw(masks),
        "end_mask": data.draw(masks),
    }  # fmt: skip
    index = tuple(
        slice(None if bm else int(b), None if em else int(e), int(s))
        for b, e, s, bm, em in zip(*arguments.values(), strict=True)
    )
    assume(x[index].size)
    np.testing.assert_array_equal(ours("slice_by_index", x=x, **arguments), x[index])


@often
@given(st.data())
def test_gathers(data):
    x = data.draw(arrays(data.draw(some.array_shapes(min_dims=1, max_dims=4, max_side=4))))
    axis = data.draw(st.integers(0, x.ndim - 1))
    batch = data.draw(st.integers(0, axis))
    rest = data.draw(some.array_shapes(min_dims=0, max_dims=2, max_side=3))
    numbers = st.integers(-x.shape[axis], x.shape[axis] - 1)
    indices = data.draw(some.arrays(np.int32, x.shape[:batch] + rest, elements=numbers))
    arguments = {"x": x, "indices": indices, "axis": axis, "batch_dims": batch}
    np.testing.assert_array_equal(ours("gather", **arguments), theirs("gather", **arguments))


@often
@given(st.data(), st.sampled_from(["add", "sub", "mul", "maximum", "minimum", "floor_div", "mod"]))
def test_broadcasting(data, name):
    shapes = data.draw(some.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4))
    x, y = (data.draw(arrays(shape)) for shape in shapes.input_shapes)
    y = np.where(np.abs(y) < 0.1, np.float32(1), y)
    expected = theirs(name, x=x, y=y)
    np.testing.assert_allclose(ours(name, x=x, y=y), expected, rtol=1e-5, atol=1e-5)


@often
@given(
    st.data(),
    st.sampled_from(["reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod",
                     "reduce_l1_norm", "reduce_l2_norm", "reduce_sum_square",
                     "reduce_log_sum_exp"]),
    st.booleans(),
)  # fmt: skip
def test_reductions(data, name, keep):
    x = data.draw(arrays(data.draw(SHAPES)))
    axes = data.draw(st.lists(st.integers(0, x.ndim - 1), min_size=1, max_size=x.ndim, unique=True))
    axes = [axis - x.ndim * data.draw(st.booleans()) for axis in axes]
    arguments = {"x": x, "axes": np.int32(axes), "keep_dims": keep}
    expected = theirs(name, **arguments)
    np.testing.assert_allclose(ours(name, **arguments), expected, rtol=1e-4, atol=1e-4)


@often
@given(st.data(), st.sampled_from(["constant", "reflect", "replicate"]))
def test_padding(data, mode):
    x = data.draw(arrays(data.draw(SHAPES)))
    count = data.draw(st.integers(1, x.ndim))
    limits = x.shape[x.ndim - count :]
    pad = [
        data.draw(st.integers(0, size - 1 if mode == "reflect" else 3))
        for size in limits for _ in range(2)
    ]  # fmt: skip
    arguments = {"x": x, "pad": np.int32(pad), "mode": mode, "constant_val": np.float32(0.5)}
    np.testing.assert_array_equal(ours("pad", **arguments), theirs("pad", **arguments))


@st.composite
def convolutions(draw):
    """Draw the arguments of a convolution whose output is not empty."""
    axes = draw(st.integers(1, 3))

    def several(least, most):
        return [draw(st.integers(least, most)) for _ in range(axes)]

    kernel, strides, dilations = several(1, 3), several(1, 3), several(1, 2)
    pad = [draw(st.integers(0, 2)) for _ in range(2 * axes)]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = [
        max(1, r - pad[2 * place] - pad[2 * place + 1]) + draw(st.integers(0, 4))
        for place, r in enumerate(reach)
    ]
    groups, inner, outer = (draw(st.integers(1, 2)) for _ in range(3))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    x = generator.standard_normal((2, groups * inner, *sizes)).astype(np.float32)
    weight = generator.standard_normal((groups * outer, inner, *kernel)).astype(np.float32)
    options = {"strides": strides, "dilations": dilations, "groups": groups}
    return x, weight, {**options, "pad_type": "custom", "pad": pad}


@often
@given(convolutions())
def test_a_convolution_and_its_transpose_are_adjoint(drawn):
    """<conv(x), y> is <x, conv_transpose(y)> for one weight: what a tie rests on."""
    x, weight, options = drawn
    y = ours("conv", x=x, weight=weight, **options)
    other = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    back = ours("conv_transpose", x=other, weight=weight, output_shape=list(x.shape), **options)
    assert back.shape == x.shape
    left, right = (np.sum(a.astype(float) * b) for a, b in ((y, other), (x, back)))
    assert abs(left - right) < 1e-3 * (1 + np.abs(y).sum())


@often
@given(convolutions(), st.sampled_from(["max_pool", "avg_pool"]), st.booleans(), st.booleans())
def test_pools(drawn, name, rounded_up, excluded):
    x, weight, options = drawn
    kernel, strides = list(weight.shape[2:]), options["strides"]
    assume(all(s >= k for s, k in zip(x.shape[2:], kernel, strict=True)))
    pad = [min(p, k // 2) for p, k in zip(options["pad"][::2], kernel, strict=True)]
    arguments = {"kernel_sizes": kernel, "strides": strides, "pad_type": "custom",
                 "pad": [each for each in pad for _ in range(2)],
                 "ceil_mode": rounded_up}  # fmt: skip
    rank = len(kernel)
    if name == "max_pool":
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
        expected = pool(torch.from_numpy(x), kernel, strides, pad, ceil_mode=rounded_up)
    else:
        pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
        expected = pool(torch.from_numpy(x), kernel, strides, pad, ceil_mode=rounded_up,
                        count_include_pad=not excluded)  # fmt: skip
        arguments["exclude_padding_from_average"] = excluded
    found = ours(name, x=x, **arguments)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


@often
@given(st.data(), st.sampled_from(["add", "update", "max", "min", "mul", "sub", "div"]))
def test_scattering_along_an_axis(data, mode):
    x = data.draw(arrays((4, 5)))
    # Each place once: the order of several to one place is not defined for all modes.
    indices = np.int32(data.draw(st.permutations(range(4)))[:3])
    updates = np.abs(data.draw(arrays((3, 5)))) + np.float32(0.5)
    expected = x.copy()
    combine = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
               "max": np.maximum, "min": np.minimum, "update": lambda a, b: b}[mode]  # fmt: skip
    expected[indices] = combine(x[indices], updates)
    wide = np.repeat(indices[:, None], 5, 1)
    for name, places in (("scatter", indices), ("scatter_along_axis", wide),
                         ("scatter_nd", indices[:, None])):  # fmt: skip
        axis = {} if name == "scatter_nd" else {"axis": 0}
        found = ours(name, data=x, indices=places, updates=updates, mode=mode, **axis)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


# ---- damaged programs ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    w = np.random.default_rng(0).standard_normal((8, 12)).astype(np.float32)

    def build(x):
        h = mb.gelu(x=mb.linear(x=x, weight=w, name="h"))
        y = mb.matmul(x=h, y=w)
        y = mb.layer_norm(x=mb.add(x=y, y=x), axes=[-1], epsilon=1e-5)
        y = mb.reshape(x=mb.transpose(x=y, perm=[0, 2, 1]), shape=[2, 4, -1])
        y = mb.concat(values=(y, mb.gather(x=y, indices=np.int32([1, 0]), axis=1)), axis=1)
        y = mb.slice_by_index(x=y, begin=[0, 1, 0], end=[2, 5, 9], stride=[1, 1, 2])
        return mb.softmax(x=mb.pad(x=mb.tile(x=y, reps=[1, 1, 2]), pad=[1, 1]), axis=-1)

    path = tmp_path_factory.mktemp("whole") / "m.mlpackage"
    return save(path, build, [mb.TensorSpec((2, 3, 12))], half=True)


def test_damage_is_one_line_or_harmless(whole, tmp_path):
    """A bit or two are turned in the program; no other error and no crash may come of it."""
    x = np.ones((2, 3, 12), np.float32)
    part = "Data/com.apple.CoreML/model.mlmodel"
    sound = (whole / part).read_bytes()
    package = shutil.copytree(whole, tmp_path / "m.mlpackage")
    refused, ran = 0, 0
    for seed in range(1500):
        numbers = random.Random(seed)
        data = bytearray(sound)
        for _ in range(1 + numbers.randrange(2)):
            data[numbers.randrange(len(data))] ^= 1 << numbers.randrange(8)
        (package / part).write_bytes(data)
        try:
            run(package, [x])
            ran += 1
        except WeightspaceError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
    assert ran > 50
    assert refused > 500
