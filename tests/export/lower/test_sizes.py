from __future__ import annotations

import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.lower.sizes import (
    Derivation,
    Dim,
    broadcast,
    derive,
    in_file,
    is_static,
    largest,
    product,
    signature,
    size_of,
    sum_of,
)

BATCH, LENGTH = Dim((1, 2, 4)), Dim((5, 9, 8))
TRIALS = st.lists(st.integers(0, 50), min_size=3, max_size=3)


def values_of(size: int | Dim) -> list[int]:
    return list(size.values) if isinstance(size, Dim) else [size] * 3


@given(TRIALS, TRIALS)
def test_arithmetic_works_trial_by_trial(one, other):
    left, right = size_of(one), size_of(other)
    for op in (operator.add, operator.sub, operator.mul):
        assert values_of(op(left, right)) == [op(a, b) for a, b in zip(one, other, strict=True)]
    varying = Dim((one[0], one[1], one[0] + one[1] + 1))
    divisor = size_of([b + 1 for b in other])
    expected = [a // (b + 1) for a, b in zip(varying.values, other, strict=True)]
    assert values_of(varying // divisor) == expected


@given(TRIALS)
def test_a_size_that_never_varies_is_a_number(values):
    size = size_of(values)
    assert isinstance(size, int) is (len(set(values)) == 1)
    assert size - size == 0
    assert size * 0 == 0
    assert 1 - size == size_of([1 - value for value in values])
    assert largest(size) == max(values)


def test_sizes_are_the_same_when_they_were_so_in_every_trial():
    n = Dim((1, 3, 5))
    assert n + 1 - 1 == n
    assert n * 2 == n + n
    assert n * 2 != n
    assert (n * 4) // 4 == n
    assert len({n, Dim((1, 3, 5)), n + 0}) == 1
    assert size_of(np.asarray([2, 2, 2])) == 2


def test_a_file_states_the_first_trial_and_where_sizes_vary():
    shape = (Dim((1, 3, 5)), 4, Dim((8, 24, 40)))
    assert in_file(shape) == (1, 4, 8)
    assert signature(shape) == (-1, 4, -1)
    assert not is_static(shape)
    assert is_static((1, 4))
    assert product(shape) == Dim((32, 288, 800))
    assert sum_of(shape) == Dim((13, 31, 49))
    assert (product(()), sum_of(())) == (1, 0)


@given(
    st.lists(st.lists(st.sampled_from((1, 2, 3)), max_size=4).map(tuple), min_size=1, max_size=3)
)
def test_shapes_are_broadcast_as_numpy_does(shapes):
    try:
        expected = np.broadcast_shapes(*shapes)
    except ValueError:
        with pytest.raises(ValueError, match="cannot be broadcast"):
            broadcast(*shapes)
    else:
        assert broadcast(*shapes) == expected


def test_a_size_that_varies_is_broadcast_with_1_and_with_itself():
    n, m = Dim((1, 3, 5)), Dim((1, 5, 7))
    assert broadcast((n, 1), (4,), (1, 1, 1)) == (1, n, 4)
    assert broadcast((n,), (n,)) == (n,)
    for other in (m, 3):
        with pytest.raises(ValueError, match="cannot be broadcast"):
            broadcast((n,), (other,))


@pytest.mark.parametrize(
    ("size", "found"),
    [
        (BATCH * 3 + 2, Derivation((BATCH,), 3, 2)),
        (BATCH * LENGTH * 4, Derivation((BATCH, LENGTH), 4)),
        (LENGTH * LENGTH, Derivation((LENGTH, LENGTH), 1)),
        (BATCH * BATCH * LENGTH, None),
    ],
)
def test_a_size_follows_from_those_that_are_known(size, found):
    assert derive(size, (BATCH, 7, LENGTH)) == found
