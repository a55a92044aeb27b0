"""Text encoders in each format: ids and mask in, one vector of length 1 for each text out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.audit import LIMIT, audit_file
from export.capture import capture, trace
from export.lower import SETTINGS
from export.lower.coreml import write_mlpackage
from export.lower.ort import CANDIDATES, one_pass_weights, write_form
from export.lower.tensorrt import write_tensorrt
from export.lower.tflite import write_tflite
from export.passes import run_pipeline
from runtimes import open_artifact
from runtimes.coreml_reference import open_session as evaluate
from runtimes.ort import open_session
from tests.text_encoders import AXES, NAMES, small_encoder, token_inputs

PRECISIONS = ("float32", "float16")
SIZES = ((1, 1), (1, 7), (4, 48), (3, 20))  # texts and tokens; 48 are all positions
# Cosine of each embedding with torch's.
LEAST = {"float32": 0.9999, "float16": 0.999}
SOME = {"float32": 1e-5, "float16": 5e-3}


@pytest.fixture(scope="module", params=[None, 16], ids=["plain", "factorised"])
def encoder(request):
    """A module, its ties and its canonical graph."""
    module = small_encoder(request.param)
    program = trace(module, token_inputs(2, 16), AXES)
    captured = capture(program, input_names=NAMES, output_names=["embedding"], dynamic_shapes=AXES)
    run_pipeline("canonical", captured.model)
    return module, captured.ties, captured.model


def agrees(session, module, precision):
    for size in SIZES:
        inputs = token_inputs(*size)
        with torch.no_grad():
            expected = module(*inputs).numpy()
        feeds = dict(zip((spec.name for spec in session.inputs), inputs, strict=True))
        given = {name: value.numpy() for name, value in feeds.items()}
        (found,) = session.run(given).values()
        np.testing.assert_allclose(found, expected, rtol=0, atol=SOME[precision])
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=SOME[precision])
        assert ((found * expected).sum(-1) >= LEAST[precision]).all()
    nothing = {name: np.zeros_like(value) for name, value in given.items()}
    (found,) = session.run(nothing).values()  # padding alone: no division by a length of 0
    assert abs(found).max() == 0
    session.close()


def stored_once(path, ties, precision):
    audit = audit_file(path)
    assert audit.weight_bytes <= LIMIT * ties.unique_bytes_at(precision)
    assert [found for found in audit.duplicates if found.bytes >= 1024] == []


@pytest.mark.parametrize("form", [f for forms in CANDIDATES.values() for f in forms], ids=str)
def test_onnx_runtime_gives_torchs_embeddings_in_every_form(encoder, form, tmp_path):
    module, ties, canonical = encoder
    path = tmp_path / "model.onnx"
    write_form(canonical, form, path)
    stored_once(path, ties, "float32")
    agrees(open_session(path), module, "float32")


def test_the_tied_ffns_with_gain_and_map_are_found_for_the_one_pass_kernel(encoder):
    assert len(one_pass_weights(encoder[2])) == 2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_tflite_file_gives_torchs_embeddings(encoder, setting, precision, tmp_path):
    module, ties, canonical = encoder
    path = tmp_path / "model.tflite"
    write_tflite(canonical, path, setting, precision)
    stored_once(path, ties, precision)
    agrees(open_artifact(path), module, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_core_ml_package_gives_torchs_embeddings(encoder, precision, tmp_path):
    module, ties, canonical = encoder
    path = tmp_path / "model.mlpackage"
    write_mlpackage(canonical, path, precision)
    stored_once(path, ties, precision)
    agrees(evaluate(path), module, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_graph_for_tensorrt_gives_torchs_embeddings(encoder, precision, tmp_path):
    module, ties, canonical = encoder
    path = tmp_path / "model.onnx"
    write_tensorrt(canonical, path, precision)
    stored_once(path, ties, precision)
    agrees(open_session(path), module, precision)
