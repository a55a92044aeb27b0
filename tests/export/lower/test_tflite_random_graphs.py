from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from export.lower import SETTINGS
from export.lower.tflite import write_tflite
from export.passes import run_pipeline
from export.stored import stored_bytes
from export.tflite_io import read_tflite
from runtimes.litert import open_session
from tests.export.conftest import run_onnx
from tests.export.lower.random_nets import random_nets

# A zero bias for convolutions without one, folded scalars, masks of padded averages.
SMALL_CONSTANTS_BYTES = 128


def weight_bytes(path: Path) -> int:
    """Bytes of the constants of floats, each buffer once."""
    file = read_tflite(path)
    held = {
        tensor.buffer: file.data_of(tensor)
        for tensor in file.subgraphs[0].tensors
        if tensor.dtype in ("FLOAT32", "float32")
    }
    return sum(data.nbytes for data in held.values() if data is not None)


@pytest.mark.parametrize("setting", SETTINGS)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=random_nets())
def test_a_random_network_computes_the_same_and_stores_each_weight_once(setting, case):
    model, runs = case
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    model = ir.from_proto(proto)
    expected = [run_onnx(model, feeds, optimize=False) for feeds in runs]
    run_pipeline("canonical", model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.tflite"
        write_tflite(model, path, setting)
        assert weight_bytes(path) <= stored_bytes(model) * 1.01 + SMALL_CONSTANTS_BYTES
        session = open_session(path)
        for feeds, wanted in zip(runs, expected, strict=True):
            found = session.run(feeds)
            for value, want in zip(model.graph.outputs, wanted, strict=True):
                assert found[value.name].shape == want.shape
                scale = max(1.0, float(abs(want).max())) if want.size else 1.0
                assert math.isfinite(scale)
                np.testing.assert_allclose(found[value.name], want, rtol=0, atol=2e-5 * scale)
        session.close()
