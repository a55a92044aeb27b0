"""Layouts, held against numpy: what is in memory must be what the ONNX value holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.lower.tflite.layout import (
    between,
    channels_last,
    moves_data,
    plain,
    rearranged,
    reshaped,
    stored,
)

SHAPES = st.lists(st.sampled_from((1, 1, 2, 3, 4, 6)), min_size=0, max_size=5).map(tuple)


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape), dtype=np.int32).reshape(shape)


@st.composite
def laid_out(draw) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = draw(SHAPES)
    return shape, tuple(draw(st.permutations(range(len(shape)))))


@st.composite
def resplit(draw, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Another shape of as many elements: some axes merged, some split, some of size 1 added."""
    factors = [f for size in shape for f in draw(st.sampled_from(_SPLITS[size]))]
    after: list[int] = []
    for factor in factors:
        if after and draw(st.booleans()):
            after[-1] *= factor
        else:
            after.append(factor)
        if draw(st.integers(0, 4)) == 0:
            after.append(1)
    return tuple(after)


_SPLITS = {1: ([], [1]), 2: ([2],), 3: ([3],), 4: ([4], [2, 2]), 6: ([6], [2, 3], [3, 2])}


@given(laid_out(), st.data())
def test_a_permutation_leads_from_any_layout_to_any_other(case, data):
    shape, have = case
    want = tuple(data.draw(st.permutations(have)))
    value = numbered(shape)
    assert stored(shape, have) == value.transpose(have).shape
    moved = value.transpose(have).transpose(between(have, want))
    np.testing.assert_array_equal(moved, value.transpose(want))


@given(laid_out())
def test_data_moves_exactly_where_the_bytes_change_their_order(case):
    shape, perm = case
    value = numbered(shape)
    same = value.transpose(perm).tobytes() == value.tobytes()
    assert moves_data(shape, perm) is not same


@given(laid_out(), st.data())
def test_a_reshape_that_stays_in_its_layout_leaves_the_bytes_alone(case, data):
    before, layout = case
    after = data.draw(resplit(before))
    value = numbered(before)
    found = reshaped(before, after, layout)
    if found is not None:
        assert sorted(found) == list(range(len(after)))
        in_memory = value.transpose(layout)
        expected = value.reshape(after).transpose(found)
        np.testing.assert_array_equal(in_memory.reshape(stored(after, found)), expected)
    elif not moves_data(before, layout):
        pytest.fail("a reshape of what lies in ONNX's order never has to move anything")


@given(SHAPES)
def test_axes_of_one_element_never_stand_in_the_way(shape):
    layout = channels_last(len(shape)) if len(shape) > 2 else plain(len(shape))
    with_ones = tuple(size for each in shape for size in (each, 1))
    assert reshaped(shape, with_ones, layout) is not None


@given(laid_out(), st.data())
def test_one_order_of_parameters_is_made_from_another(case, data):
    shape, one = case
    value = numbered(shape)
    other = data.draw(st.permutations(range(len(shape))))
    split = value.reshape(data.draw(resplit(shape)))
    first, second = (
        value.transpose(one),
        data.draw(st.sampled_from((value.transpose(other), split))),
    )
    plan = rearranged(first, second)
    if plan is not None:
        sizes, perm = plan
        made = np.ascontiguousarray(first).reshape(sizes).transpose(perm)
        np.testing.assert_array_equal(made.reshape(second.shape), second)
    elif second is not split:
        assert value.size <= 1


def test_a_part_of_the_parameters_is_not_made_from_the_whole():
    value = numbered((4, 6))
    assert rearranged(value, value[:2]) is None
    assert rearranged(value[:, ::2], value[:, ::2].T) is None
    assert rearranged(np.broadcast_to(value[:1], (4, 6)), value) is None
