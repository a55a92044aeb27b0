from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch

from export.audit import audit_file
from export.capture import capture, trace
from export.errors import MeasureError
from export.flatbuffer import Schema, read_flatbuffer
from export.lower import SETTINGS
from export.lower.tflite import TextTask, write_tflite
from export.passes import run_pipeline
from export.tflite_io import read_tflite
from runtimes.litert import open_session, operator_profile
from tests.text_nets import AXES, LONG, TEXTS, TOKENIZER, TOKENS, encoder, example_inputs, tokens_of

# The part of mediapipe/tasks/metadata/metadata_schema.fbs that text tasks read.
METADATA = Schema.parse(
    """
ModelMetadata = name:s description:s version:s subgraphs:[SubGraphMetadata] author:s license:s
    associated_files:[AssociatedFile] min_parser_version:s
SubGraphMetadata = name:s description:s inputs:[TensorMetadata] outputs:[TensorMetadata]
    associated_files:[AssociatedFile] input_process_units:[ProcessUnit]
TensorMetadata = name:s description:s
ProcessUnit = options_type:B options:ProcessUnitOptions
BertTokenizerOptions = vocab_file:[AssociatedFile]
AssociatedFile = name:s description:s type:b
""",
    "ProcessUnitOptions = - - - BertTokenizerOptions",
)
VOCABULARY = "".join(
    f"{piece}\n" for piece in json.loads(TOKENIZER.read_text())["model"]["vocab"]
).encode()
TASK = TextTask("tiny", "input_ids", "attention_mask", TOKENS, VOCABULARY, "Apache-2.0")


@pytest.fixture(scope="module")
def module():
    return encoder()


@pytest.fixture(scope="module")
def canonical(module):
    program = trace(module, example_inputs(), AXES)
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["vector"]}
    graph = capture(program, dynamic_shapes=AXES, **names).model
    run_pipeline("canonical", graph)
    return graph


@pytest.fixture(scope="module", params=["latency-first", "memory-first"])
def path(canonical, request, tmp_path_factory):
    assert request.param in SETTINGS
    file = tmp_path_factory.mktemp("text") / "model.tflite"
    write_tflite(canonical, file, request.param, task=TASK)
    return file


def expected(module, ids):
    with torch.no_grad():
        return module(ids, torch.ones_like(ids)).numpy()


def embed(session, ids):
    array = ids.numpy()
    (found,) = session.run({"input_ids": array, "attention_mask": np.ones_like(array)}).values()
    return found


@pytest.mark.parametrize("kind", ["int64", "int32"])
def test_litert_gives_torchs_embeddings_from_integers_of_either_width(path, module, kind):
    session = open_session(path)
    assert [(spec.name, spec.dtype) for spec in session.inputs] == [
        ("input_ids", "int32"), ("attention_mask", "int32"),
    ]  # fmt: skip
    for text in TEXTS:
        ids = tokens_of(text)
        found = embed(session, ids.to(getattr(torch, kind)))
        np.testing.assert_allclose(found, expected(module, ids), atol=1e-5)


def test_ids_that_do_not_fit_are_refused(path):
    with pytest.raises(MeasureError, match=r"'input_ids' of model\.tflite is int32"):
        embed(open_session(path), torch.tensor([[2**40]]))


def test_a_text_that_is_too_long_is_cut_as_the_tokenizer_cuts_it(path, module):
    cut = tokens_of(LONG)
    assert cut.shape[1] == TOKENS
    words = tokens_of("the cat sat")
    whole = torch.cat([words[:, :1], words[:, 1:-1].repeat(1, 20), words[:, -1:]], 1)
    assert whole.shape[1] > TOKENS
    np.testing.assert_allclose(embed(open_session(path), whole), expected(module, cut), atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, TOKENS - 1, TOKENS])
def test_no_token_of_a_shorter_text_is_lost(path, module, tokens):
    ids = torch.arange(tokens)[None] + 5
    np.testing.assert_allclose(embed(open_session(path), ids), expected(module, ids), atol=1e-5)


def test_the_compiled_model_of_litert_takes_the_file(path):
    array = tokens_of(LONG).numpy()
    feeds = {"input_ids": array, "attention_mask": np.ones_like(array)}
    assert {one.op for one in operator_profile(path, feeds, runs=1)} > {"GATHER"}


def test_the_metadata_names_the_inputs_and_the_tokenizer_as_mediapipe_looks_for_them(path):
    file = read_tflite(path)
    ((name, place),) = file.metadata
    assert name == "TFLITE_METADATA"
    data = file.buffers[place].data.tobytes()
    assert data[4:8] == b"M001"
    metadata = read_flatbuffer(data, METADATA, "ModelMetadata")
    assert (metadata["name"], metadata["license"]) == ("tiny", "Apache-2.0")
    (graph,) = metadata["subgraphs"]
    assert [each["name"] for each in graph["inputs"]] == ["ids", "mask", "segment_ids"]
    assert [port.name for port in file.subgraphs[0].inputs] == [
        "input_ids", "attention_mask", "unused_segment_ids",
    ]  # fmt: skip
    (unit,) = graph["input_process_units"]
    (vocabulary,) = unit["options"]["vocab_file"]
    assert (vocabulary["name"], vocabulary["type"]) == ("vocab.txt", 5)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("vocab.txt") == VOCABULARY
        assert archive.getinfo("vocab.txt").compress_type == zipfile.ZIP_STORED


def test_metadata_and_vocabulary_are_bytes_but_no_weights(canonical, path, tmp_path):
    plain = tmp_path / "plain.tflite"
    write_tflite(canonical, plain)
    more = path.stat().st_size - plain.stat().st_size
    assert more > len(VOCABULARY)
    # What cuts the texts are a few integers.
    assert 0 <= audit_file(path).weight_bytes - audit_file(plain).weight_bytes <= 128
    assert not audit_file(path).duplicates


def test_the_same_model_gives_the_same_file(canonical, tmp_path):
    for name in ("one", "other"):
        write_tflite(canonical, tmp_path / name, task=TASK)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
