from __future__ import annotations

import contextlib
import re

import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from export.errors import LoweringError
from export.lower import LATENCY_FIRST, MEMORY_FIRST, SETTINGS
from export.lower.tflite import write_tflite
from export.lower.tflite.ops import OPERATORS
from tests.export.lower.cases import CASES
from tests.export.lower.single_operators import Case, check, expected_of, feeds_of, model_of

TAKEN = [one for one in CASES if not one.refused]
WITH_WEIGHTS = [one for one in TAKEN if {"MatMul", "Gemm", "Conv"} & set(one.kinds)]
FIRST = (0,)
REFUSED = [(one, one.refused, ()) for one in CASES if one.refused] + [
    (one, one.varies, FIRST) for one in TAKEN if isinstance(one.varies, str)
]


def can_grow(one: Case) -> bool:
    """Whether an image is all that a case is fed."""
    return [x.ndim for x in one.inputs.values()] == [4]


def test_every_operator_has_a_case():
    assert set(OPERATORS) <= {kind for one in TAKEN for kind in one.kinds}


@pytest.mark.parametrize("one", TAKEN, ids=str)
def test_an_operator_computes_what_onnx_runtime_does(one, tmp_path):
    check(one, tmp_path / "one.tflite")


@pytest.mark.parametrize("one", [one for one in TAKEN if one.varies is True], ids=str)
def test_an_operator_follows_a_first_axis_that_grows_and_shrinks(one, tmp_path):
    check(one, tmp_path / "one.tflite", FIRST)


@pytest.mark.parametrize("one", WITH_WEIGHTS, ids=str)
def test_weights_that_are_read_in_place_give_the_same(one, tmp_path):
    check(one, tmp_path / "one.tflite", FIRST if one.varies is True else (), setting=MEMORY_FIRST)


@pytest.mark.parametrize("axes", [(1,), (2, 3)])
@pytest.mark.parametrize("one", [one for one in TAKEN if can_grow(one)], ids=str)
def test_other_axes_that_vary_are_followed_or_refused(one, axes, tmp_path):
    try:
        model = model_of(one, axes)
        for feeds in feeds_of(one, axes):
            expected_of(model, feeds)
    except (Fail, InvalidArgument):  # ONNX Runtime, of a case that cannot grow
        return
    with contextlib.suppress(LoweringError):
        check(one, tmp_path / "one.tflite", axes)


@pytest.mark.parametrize(("one", "reason", "axes"), REFUSED, ids=str)
def test_what_has_no_form_is_refused_by_name(one, reason, axes, tmp_path):
    path = tmp_path / "one.tflite"
    for setting in SETTINGS:
        with pytest.raises(LoweringError, match=re.escape(reason)) as found:
            write_tflite(model_of(one, axes), path, setting)
        named = [rf"{kind} 'node\d'|'node\d' \({kind}\)" for kind in one.kinds]
        assert re.search("|".join([*named, "output 'y"]), str(found.value))
    assert not path.exists()


def test_latency_comes_first_where_nothing_is_said(tmp_path):
    one = WITH_WEIGHTS[0]
    for name, setting in (("a", None), ("b", LATENCY_FIRST)):
        write_tflite(model_of(one), tmp_path / name, *([setting] if setting else []))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
