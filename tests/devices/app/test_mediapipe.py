"""MediaPipe's own Text Embedder on a bundle's .tflite, as an Android app has it."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from devices.deploy import deploy
from devices.options import Options
from devices.target import find_target
from tests.devices.app.conftest import MODEL
from tests.text_nets import LONG, TEXTS, encoder, tokens_of

pytestmark = pytest.mark.skipif(
    find_spec("mediapipe") is None, reason="mediapipe is not installed; there is none for ARM"
)

# In a process of its own: MediaPipe brings a copy of LiteRT.
EMBED = """
import json, sys
from mediapipe.tasks.python.text import TextEmbedder
with TextEmbedder.create_from_model_path(sys.argv[1]) as embedder:
    found = [embedder.embed(text).embeddings[0].embedding.tolist() for text in json.load(sys.stdin)]
print(json.dumps(found))
"""


def embedded(path, texts):
    command = [sys.executable, "-c", EMBED, path]
    done = subprocess.run(
        command, input=json.dumps(texts), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.asarray(json.loads(done.stdout))


def written(text):
    """As `normalized` of the Kotlin example; test_kotlin.py holds that against the tokenizer."""
    kept = (c for c in text if c in "\t\n\r" or unicodedata.category(c) not in ("Cc", "Cf"))
    apart = unicodedata.normalize("NFD", "".join(kept))
    return "".join(c for c in apart if unicodedata.category(c) != "Mn").lower()


def torchs(texts):
    module = encoder()
    with torch.no_grad():
        rows = [module(ids, torch.ones_like(ids)) for ids in map(tokens_of, texts)]
    return torch.cat(rows).numpy()


@pytest.fixture(scope="module")
def float16(tmp_path_factory):
    options = Options(precisions=("float16",), profile=False, app=True)
    folder = tmp_path_factory.mktemp("bundles") / "float16"
    return deploy(MODEL, find_target("android"), folder, options)


def test_its_embeddings_are_torchs(android):
    found = embedded(android.folder / "model.latency-first.tflite", [*map(written, TEXTS)])
    assert ((found * torchs(TEXTS)).sum(1) >= 0.9999).all()


def test_so_are_those_of_the_bundles_golden_texts(android):
    golden = json.loads((android.folder / "golden" / "embeddings.json").read_text())
    texts = [written(text) for text in golden["texts"]]
    found = embedded(android.folder / "model.latency-first.tflite", texts)
    assert ((found * np.asarray(golden["embeddings"])).sum(1) >= 0.9999).all()


@pytest.mark.parametrize("setting", ["latency-first", "memory-first"])
def test_weights_of_16_bits_in_either_setting_give_them_too(float16, setting):
    found = embedded(float16.folder / f"model.{setting}.tflite", [*map(written, TEXTS)])
    assert ((found * torchs(TEXTS)).sum(1) >= 0.999).all()


def test_the_encoder_that_ships_gives_its_golden_embeddings(tmp_path):
    options = Options(settings=("latency-first",), precisions=("float16",), profile=False, app=True)
    bundle = deploy("minilm-pe", find_target("android"), tmp_path / "out", options)
    (artifact,) = bundle.manifest["artifacts"]
    assert artifact["weight_bytes"] <= 1.01 * artifact["unique_bytes"]
    golden = json.loads((bundle.folder / "golden" / "embeddings.json").read_text())
    texts = [written(text) for text in golden["texts"]]
    found = embedded(bundle.folder / artifact["path"], texts)
    assert len(found) == 64
    assert ((found * np.asarray(golden["embeddings"])).sum(1) >= 0.999).all()


def test_a_text_that_is_too_long_is_cut_and_the_next_one_is_embedded_all_the_same(android):
    found = embedded(android.folder / "model.latency-first.tflite", [LONG, TEXTS[0]])
    assert ((found * torchs([LONG, TEXTS[0]])).sum(1) >= 0.9999).all()


def test_the_way_the_kotlin_example_writes_texts_matters(android):
    found = embedded(android.folder / "model.latency-first.tflite", [TEXTS[2]])
    assert (found[0] * torchs(TEXTS[2:3])[0]).sum() < 0.99
