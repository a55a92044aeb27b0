"""The zoo's text encoder from end to end: samples, artifacts of each format, golden vectors."""

from __future__ import annotations

import json
from dataclasses import replace

import coremltools
import numpy as np
import pytest

from devices.deploy import deploy
from devices.golden import EMBEDDINGS, read_golden
from devices.measure import axis_of
from devices.options import Options
from devices.target import find_target
from export.audit import LIMIT, audit_file
from export.records import TensorSpec
from runtimes import open_artifact
from weightspace.models import TEXT_MODELS
from weightspace.tokens import encode, load_tokenizer, padded, sample_texts
from weightspace.zoo import path_of

SPEC = TEXT_MODELS["minilm-pe"]
FORMATS = ("onnx", "tflite", "mlpackage")
COSINES = {"float32": 0.9999, "float16": 0.999}

needs_checkpoint = pytest.mark.skipif(
    not path_of(SPEC.checkpoint).is_file(), reason=f"{SPEC.checkpoint} is not in the zoo"
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("text") / "out"
    target = replace(find_target("raspberry-pi"), formats=FORMATS, precision="float16")
    return deploy(SPEC.name, target, out, Options(profile=False))


@needs_checkpoint
def test_the_text_encoder_arrives_in_every_format_at_one_copy(bundle):
    artifacts = bundle.manifest["artifacts"]
    assert {artifact["format"] for artifact in artifacts} == set(FORMATS)
    for artifact in artifacts:
        assert artifact["weight_bytes"] <= LIMIT * artifact["unique_bytes"]
        assert artifact["naive_bytes"] > 1.15 * artifact["unique_bytes"]
        assert artifact["parity"]["cosine"] >= COSINES[artifact["precision"]]
        assert artifact["parity"]["inputs"] == 64
        assert artifact["parity"]["source"] == "64 English texts of 3 to 129 tokens"
        assert [(i["name"], list(i["shape"])) for i in artifact["inputs"]] == [
            (name, ["batch", "sequence"]) for name in SPEC.input_names
        ]
        duplicates = audit_file(bundle.folder / artifact["path"]).duplicates
        assert [found for found in duplicates if found.bytes >= 1024] == []


@needs_checkpoint
def test_golden_embeddings_are_checked_without_anything_but_a_tokenizer(bundle):
    golden = json.loads((bundle.folder / EMBEDDINGS).read_text(encoding="utf-8"))
    assert golden["texts"] == sample_texts()
    assert golden["input_ids"] == encode(load_tokenizer(path_of(SPEC.tokenizer)), golden["texts"])
    expected = np.asarray(golden["embeddings"])
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    arrays = read_golden(bundle.folder)
    np.testing.assert_allclose(expected, arrays.outputs[0], rtol=0, atol=1e-6)
    session = open_artifact(bundle.folder / "model.latency-first.tflite")
    for row in (0, 40, 63):  # one text at a time, as an app does, without padding
        ids, mask = padded(golden["input_ids"][row : row + 1])
        (found,) = session.run({"input_ids": ids.numpy(), "attention_mask": mask.numpy()}).values()
        assert (found[0] * expected[row]).sum() >= 0.999
    session.close()


@needs_checkpoint
def test_the_package_promises_no_more_tokens_than_the_model_has_positions(bundle):
    package = coremltools.models.MLModel(
        str(bundle.folder / "model.mlpackage"), skip_model_load=True
    )
    (_, tokens) = package.get_spec().description.input[0].type.multiArrayType.shapeRange.sizeRanges
    assert (tokens.lowerBound, tokens.upperBound) == (1, SPEC.positions)


def test_text_is_timed_at_16_and_128_tokens_and_vectors_at_one_as_well():
    ids, floats = (TensorSpec("x", dtype, ("batch", "sequence")) for dtype in ("int64", "float32"))
    assert axis_of([ids]) == ("sequence", (16, 128))
    assert axis_of([floats, ids]) == ("sequence", (1, 16, 128))
