from __future__ import annotations

import re

import pytest

from export.errors import LoweringError
from export.lower import LATENCY_FIRST, MEMORY_FIRST, SETTINGS
from export.lower.tflite import write_tflite
from export.lower.tflite.ops import OPERATORS
from tests.export.lower.cases import CASES
from tests.export.lower.single_operators import check, model_of

TAKEN = [one for one in CASES if not one.refused]
WITH_WEIGHTS = [one for one in TAKEN if {"MatMul", "Gemm", "Conv"} & set(one.kinds)]
REFUSED = [(one, one.refused, False) for one in CASES if one.refused] + [
    (one, one.varies, True) for one in TAKEN if isinstance(one.varies, str)
]


def test_every_operator_has_a_case():
    assert set(OPERATORS) <= {kind for one in TAKEN for kind in one.kinds}


@pytest.mark.parametrize("one", TAKEN, ids=str)
def test_an_operator_computes_what_onnx_runtime_does(one, tmp_path):
    check(one, tmp_path / "one.tflite")


@pytest.mark.parametrize("one", [one for one in TAKEN if one.varies is True], ids=str)
def test_an_operator_follows_a_first_axis_that_grows_and_shrinks(one, tmp_path):
    check(one, tmp_path / "one.tflite", vary=True)


@pytest.mark.parametrize("one", WITH_WEIGHTS, ids=str)
def test_weights_that_are_read_in_place_give_the_same(one, tmp_path):
    check(one, tmp_path / "one.tflite", vary=one.varies is True, setting=MEMORY_FIRST)


@pytest.mark.parametrize(("one", "reason", "vary"), REFUSED, ids=str)
def test_what_has_no_form_is_refused_by_name(one, reason, vary, tmp_path):
    path = tmp_path / "one.tflite"
    for setting in SETTINGS:
        with pytest.raises(LoweringError, match=re.escape(reason)) as found:
            write_tflite(model_of(one, vary=vary), path, setting)
        named = [rf"{kind} 'node\d'|'node\d' \({kind}\)" for kind in one.kinds]
        assert re.search("|".join([*named, "output 'y"]), str(found.value))
    assert not path.exists()


def test_latency_comes_first_where_nothing_is_said(tmp_path):
    one = WITH_WEIGHTS[0]
    for name, setting in (("a", None), ("b", LATENCY_FIRST)):
        write_tflite(model_of(one), tmp_path / name, *([setting] if setting else []))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
