"""The web's example in a real browser: what a page computes, ranks and shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from devices.deploy import capture_canonical, deploy
from devices.options import Options
from devices.report.json_form import read_json
from devices.source import resolve
from devices.target import find_target
from export.audit import LIMIT
from export.lower import MEMORY_FIRST, SETTINGS
from export.lower.tflite import write_tflite
from tests.browser.chromium import served
from tests.browser.encoders import TOKENIZER
from tests.browser.fixtures import packages

EXAMPLE = Path(__file__).parents[3] / "devices" / "app" / "web"
TOOLS = Path(__file__).parents[2] / "browser" / "packages"
WITH_APP = Options(profile=False, app=True)
COSINES = {"float32": 0.9999, "float16": 0.999}
TEXTS = [
    "Café prices rose by 3.5% — in 2024!",
    "naïve Übergröße, ÅNGSTRÖM; don't",
    "東京で寿司を食べる",
    "👍🏽 ok \t\n two\u00a0spaces\u200b and \ufffd",
    "antidisestablishmentarianism " * 3,
    "x" * 150,
    "",
    "[MASK] is a word of its own",
]


def bundle_of(model: str, folder: Path, **options) -> Path:
    given = Options(**{"profile": False, "app": True, **options})
    deploy(model, find_target("web"), folder, given)
    (folder / "app" / "web" / "node_modules").symlink_to(packages(EXAMPLE))
    return folder


@contextmanager
def opened(browser, folder: Path, *, isolated: bool = False):
    """The example's page, loaded and checked by itself; nothing may fail in it."""
    with served(folder, isolated=isolated) as url, browser.new_page() as page:
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("requestfailed", lambda request: errors.append(request.url))
        page.on("response", lambda r: r.status >= 400 and errors.append(f"{r.status} {r.url}"))
        page.on(
            "request", lambda r: r.url.startswith((url, "data:", "blob:")) or errors.append(r.url)
        )
        page.goto(f"{url}app/web/")
        page.wait_for_function(_CHECKED, timeout=120_000)
        yield page
        assert errors == []


_CHECKED = "document.querySelector('#check').textContent.includes('cosine')"


def embeddings_in(page, texts: list[str]) -> np.ndarray:
    found = page.evaluate(
        "texts => embedder.embed(texts).then(rows => rows.map(row => Array.from(row)))", texts
    )
    return np.array(found)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)


@pytest.fixture(scope="module")
def real(browser, tmp_path_factory) -> Path:
    """The bundle of the encoder that ships."""
    return bundle_of("minilm-pe", tmp_path_factory.mktemp("web") / "bundle")


def test_a_page_ranks_the_right_sentence_first_and_shows_the_latency(browser, real):
    queries = {  # none of the sentence's own words, but small ones
        "I forgot how to sign in": "How do I reset my password?",
        "ending a paid plan": "You can cancel the subscription at any time in your settings.",
        "where do suns come from": "Stars are born in clouds of gas and dust.",
        "exercise is good for the heart": "Regular walks lower the blood pressure.",
    }
    with opened(browser, real) as page:
        for query, sentence in queries.items():
            page.fill("#query", query)
            page.wait_for_selector(f'#status[data-query="{query}"]')
            assert page.locator("#results li span").first.inner_text() == sentence
            assert re.fullmatch(r"\d+\.\d ms for \d+ tokens", page.inner_text("#status"))


def test_a_trained_encoder_in_a_page_is_the_model(browser, real):
    golden = json.loads((real / "golden" / "embeddings.json").read_text())
    with opened(browser, real) as page:
        found = embeddings_in(page, golden["texts"])
    assert cosines(found, np.array(golden["embeddings"])).min() >= COSINES["float16"]


def test_a_web_bundle_stores_each_weight_once_in_float16(real):
    naive, *ours = read_json(real / "report.json").variants
    assert naive.precision == "float16"
    for variant in ours:
        assert variant.ratio <= LIMIT
        assert variant.precision == "float16"


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_form_computes_in_a_page_what_torch_computes(browser, precision, setting, tmp_path):
    folder = bundle_of(
        "tests.browser.encoders:small", tmp_path / "bundle",
        precisions=(precision,), settings=(setting,),
    )  # fmt: skip
    golden = json.loads((folder / "golden" / "embeddings.json").read_text())
    with opened(browser, folder) as page:
        found = embeddings_in(page, golden["texts"])
    assert cosines(found, np.array(golden["embeddings"])).min() >= COSINES[precision]


@pytest.fixture(scope="module")
def small(browser, tmp_path_factory) -> Path:
    return bundle_of("tests.browser.encoders:small", tmp_path_factory.mktemp("web") / "bundle")


def test_tokens_in_a_page_are_those_of_the_tokenizers_library(browser, small):
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.no_padding()
    texts = [*TEXTS, "a long text " * 100]
    with opened(browser, small) as page:
        found = page.evaluate("texts => texts.map(text => embedder.tokens(text))", texts)
    assert found == [tokenizer.encode(text).ids for text in texts]


def test_an_isolated_page_computes_the_same_with_threads(browser, small):
    with opened(browser, small, isolated=True) as page:
        assert page.evaluate("crossOriginIsolated")
        assert page.inner_text("#check").endswith("1.000000")


def test_a_page_says_what_is_missing(browser, small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "bundle", symlinks=True)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with served(folder) as url, browser.new_page() as page:
        page.goto(f"{url}app/web/")
        page.wait_for_function("document.querySelector('#status').textContent.includes('404')")
        assert "tokenizer.json cannot be fetched: 404" in page.inner_text("#status")


def test_typescript_accepts_the_example(small):
    tsc = packages(TOOLS) / ".bin" / "tsc"
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "es2022",
               "--moduleResolution", "bundler", "--allowJs", "--checkJs",
               "--skipLibCheck"]  # fmt: skip
    done = subprocess.run(
        [tsc, *options, "embedder.js", "search.js"],
        cwd=small / "app" / "web", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_instructions_name_the_versions_that_were_tested(small):
    folder = small / "app" / "web"
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    locked = json.loads((folder / "package-lock.json").read_text())["packages"]
    readme = (folder / "README.md").read_text()
    for name, version in wanted.items():
        assert locked[f"node_modules/{name}"]["version"] == version
        assert f"{name}@{version}" in readme


@pytest.mark.parametrize("folder", [EXAMPLE, TOOLS], ids=["example", "tools"])
def test_a_lock_file_names_no_host(folder):
    assert "://" not in (folder / "package-lock.json").read_text()


def test_litert_js_computes_a_fixed_length_as_torch_does(browser, tmp_path):
    source = resolve("tests.browser.encoders:fixed_length")
    _, canonical = capture_canonical(source, lambda _: None)
    write_tflite(canonical, tmp_path / "model.tflite", MEMORY_FIRST, "float32")
    (tmp_path / "node_modules").symlink_to(packages(TOOLS))
    (tmp_path / "index.html").write_text(_LITERT_PAGE)
    ids = np.random.default_rng(0).integers(1, 30_000, (1, 32), dtype=np.int32)
    mask = (np.arange(32) < 20).astype(np.int32)[None]
    (expected,) = source.reference([ids, mask])
    with served(tmp_path) as url, browser.new_page() as page:
        page.goto(url)
        page.wait_for_function("'embed' in globalThis")
        found = page.evaluate(
            "([ids, mask]) => embed(ids, mask)", [ids.tolist()[0], mask.tolist()[0]]
        )
    assert cosines(np.array(found), expected[0]) >= COSINES["float32"]


_LITERT_PAGE = """<!doctype html>
<script type="importmap">{"imports": {
  "@litertjs/core": "./node_modules/@litertjs/core/dist/index.js",
  "@litertjs/wasm-utils": "./node_modules/@litertjs/wasm-utils/dist/index.js"
}}</script>
<script type="module">
  import { loadLiteRt, loadAndCompile, Tensor } from "@litertjs/core";
  await loadLiteRt("./node_modules/@litertjs/core/wasm/");
  const model = await loadAndCompile("model.tflite", { accelerator: "wasm" });
  const tensor = (values) => new Tensor(Int32Array.from(values), [1, values.length]);
  globalThis.embed = async (ids, mask) => {
    const outputs = await model.run({ input_ids: tensor(ids), attention_mask: tensor(mask) });
    return Array.from(Object.values(outputs)[0].toTypedArray());
  };
</script>
"""
