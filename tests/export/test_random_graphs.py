from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from export.audit_onnx import audit_model
from export.passes import PIPELINES, run_pipeline
from export.stored import stored_bytes
from tests.export.conftest import run_onnx
from tests.export.random_graphs import random_graphs


@pytest.mark.parametrize("pipeline", PIPELINES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=random_graphs())
def test_passes_keep_outputs_and_never_store_more(pipeline, case):
    model, feeds = case
    (expected,) = run_onnx(model, feeds, optimize=False)
    before = stored_bytes(model)
    for name in dict.fromkeys(("canonical", pipeline)):
        run_pipeline(name, model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    # Bounds, and constants of formulas, that pipelines for TensorRT add once for a whole graph.
    assert stored_bytes(model) <= before + (64 if "tensorrt" in pipeline else 0)
    tolerance = 2e-2 if "float16" in pipeline else 2e-5
    for optimize in (False, True):
        (found,) = run_onnx(model, feeds, optimize=optimize)
        # float32: a norm folded into a filter rounds once more than the two operators did
        scale = max(1.0, float(abs(expected).max()))
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=random_graphs())
def test_nothing_tied_is_stored_twice(case):
    model, _ = case
    run_pipeline("canonical", model)
    assert audit_model(model).duplicates == ()
