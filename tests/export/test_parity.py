from __future__ import annotations

import numpy as np
import pytest

from export.errors import ParityError
from export.parity import compare_outputs, enforce


def parity(reference, actual, **more):
    return compare_outputs([reference], [actual], source="test", evaluated_by="numpy", **more)


def test_equal_outputs_have_no_error():
    y = np.linspace(-3, 5, 20, dtype=np.float32).reshape(4, 5)
    found = parity(y, y, classifier=True)
    assert (found.max_abs, found.max_rel, found.psnr_db) == (0, 0, None)
    assert found.cosine == pytest.approx(1)
    assert (found.inputs, found.top1_agreement) == (4, 1.0)


def test_the_figures_are_those_of_the_definitions():
    y = np.array([[1.0, -4.0, 2.0]])
    found = parity(y, y + np.array([[0.0, 0.2, 0.0]]), classifier=True)
    assert found.max_abs == pytest.approx(0.2)
    assert found.max_rel == pytest.approx(0.05)  # over the largest magnitude, 4
    assert found.psnr_db == pytest.approx(10 * np.log10(16 / (0.04 / 3)))


def test_a_small_error_passes_and_a_larger_one_fails():
    y = np.ones((2, 3))
    enforce(parity(y, y + 0.9e-4))
    with pytest.raises(ParityError, match=r"1\.10e-04 of their scale"):
        enforce(parity(y, y + 1.1e-4))


def test_top1_disagreement_is_counted():
    y = np.eye(4)
    other = y.copy()
    other[0] = [0, 1, 0, 0]
    assert parity(y, other, classifier=True).top1_agreement == 0.75


def test_nan_and_other_shapes_never_pass():
    y = np.ones((2, 3))
    bad = y.copy()
    bad[0, 0] = np.nan
    with pytest.raises(ParityError, match="not finite"):
        parity(y, bad)
    with pytest.raises(ParityError, match="shapes differ"):
        parity(y, y[:1])
