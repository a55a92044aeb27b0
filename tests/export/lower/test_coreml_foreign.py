"""Architectures of transformers and the zoo, lowered and evaluated beside torch."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from export.audit import LIMIT
from export.capture import capture, trace
from export.lower.coreml import write_mlpackage
from export.passes import run_pipeline
from runtimes.coreml_reference import open_session
from tests.export.lower.coreml_models import blobs_of
from tests.export.lower.test_tflite_foreign import FOREIGN, Output, feeds
from weightspace.checkpoint import load_checkpoint
from weightspace.models import MODELS
from weightspace.models.spec import is_for_fashion_mnist
from weightspace.zoo import path_of

LIMITS = {"float32": 1e-4, "float16": 2e-2}
ZOO = [name for name, spec in MODELS.items() if spec.checkpoint and is_for_fashion_mnist(spec)]
# Buffers, not parameters: the masks of Swin's windows.
BUFFERS = {"Swin": 4 * 16 * 16}


@pytest.fixture(scope="module", params=FOREIGN)
def foreign(request, tmp_path_factory):
    """A model of another library, its ties, and its packages by precision."""
    kind = FOREIGN[request.param]
    torch.manual_seed(0)
    module = kind.make()
    with torch.no_grad():
        for parameter in module.parameters():
            # Norms at 1 and biases at 0 would hide a mistake; small numbers vanish in the output.
            parameter.add_(0.1 * torch.randn_like(parameter))
    module = Output(module, kind.output).eval()
    axes = {0: "batch"} if kind.image else {0: "batch", 1: "sequence"}
    dynamic = [axes] * len(feeds(kind, 2, 8))
    names = ["x", "mask"][: len(dynamic)]
    program = trace(module, feeds(kind, 2, 8), dynamic)
    captured = capture(program, input_names=names, dynamic_shapes=dynamic)
    run_pipeline("canonical", captured.model)
    return (
        request.param,
        module,
        captured.ties,
        _packages(captured.model, tmp_path_factory.mktemp(request.param)),
    )


def _packages(model, folder):
    gc.collect()
    gc.freeze()  # coremltools collects garbage after each conversion
    packages = {}
    for precision in LIMITS:
        packages[precision] = folder / f"{precision}.mlpackage"
        write_mlpackage(model, packages[precision], precision)
    gc.unfreeze()
    return packages


def stored_bytes(path):
    return sum(blob.nbytes for blob in blobs_of(path))


@pytest.mark.parametrize("precision", LIMITS)
def test_a_foreign_model_agrees_with_torch_at_every_size(foreign, precision):
    name, module, _, packages = foreign
    session = open_session(packages[precision])
    for batch, length in ((1, 5), (3, 12), (2, 7)):
        inputs = feeds(FOREIGN[name], batch, length)
        with torch.no_grad():
            expected = module(*inputs).numpy()
        named = dict(zip(("x", "mask"), (t.numpy() for t in inputs), strict=False))
        (found,) = session.run(named).values()
        assert abs(expected).max() > 1e-2
        limit = LIMITS[precision] * abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("precision", LIMITS)
def test_a_foreign_model_stores_each_weight_once(foreign, precision):
    name, _, ties, packages = foreign
    size = np.dtype(precision).itemsize
    unique = ties.unique_bytes_at(precision) + size * BUFFERS.get(name, 0)
    assert stored_bytes(packages[precision]) <= LIMIT * unique
    blobs = [blob.tobytes() for blob in blobs_of(packages[precision])]
    assert len(set(blobs)) == len(blobs)


@pytest.fixture(scope="module", params=ZOO)
def trained(request, tmp_path_factory):
    """A model of the zoo, its ties, and its packages by precision."""
    spec = MODELS[request.param]
    module = spec.build()
    load_checkpoint(module, path_of(spec.checkpoint))
    module.eval()
    axes = spec.dynamic_axes
    program = trace(module, spec.example_inputs(2), axes)
    captured = capture(program, input_names=spec.input_names, dynamic_shapes=axes)
    run_pipeline("canonical", captured.model)
    folder = tmp_path_factory.mktemp(request.param)
    return spec, module, captured.ties, _packages(captured.model, folder)


@pytest.mark.parametrize("precision", LIMITS)
def test_a_model_of_the_zoo_agrees_with_torch_and_is_stored_once(trained, precision):
    spec, module, ties, packages = trained
    session = open_session(packages[precision])
    for batch in (1, 5):
        inputs = spec.example_inputs(batch)
        with torch.no_grad():
            expected = module(*inputs).numpy()
        (found,) = session.run({spec.input_names[0]: inputs[0].numpy()}).values()
        limit = LIMITS[precision] * abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit)
    assert stored_bytes(packages[precision]) <= LIMIT * ties.unique_bytes_at(precision)
