"""The Kotlin of the Android example: compiled against stubs of the libraries, and run in part."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.text_nets import TEXTS, TOKENIZER
from weightspace.tokens import sample_texts

HERE = Path(__file__).parent / "kotlin"
STUBS = sorted((HERE / "stubs").glob("*.kt"))
MISSING = [name for name in ("java", "npm") if shutil.which(name) is None]
REQUIRED = os.environ.get("WEIGHTSPACE_KOTLIN") == "required"

pytestmark = pytest.mark.skipif(
    bool(MISSING) and not REQUIRED,
    reason=f"{' and '.join(MISSING)} not installed; the Kotlin compiler of npm needs both",
)


def run(*command, **options):
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compiler(pytestconfig):
    """The folder of npm's Kotlin compiler, which stays from one run of the tests to the next."""
    folder = pytestconfig.cache.mkdir("kotlin")
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(HERE / name, folder / name)
    found = folder / "node_modules" / "kotlin-compiler"
    if not (found / "bin" / "kotlinc").is_file():
        run("npm", "ci", "--no-audit", "--no-fund", cwd=folder)
    return found


@pytest.fixture(scope="module")
def classes(android, compiler, tmp_path_factory):
    """What the compiler makes of the example and the stubs; a warning is an error."""
    out = tmp_path_factory.mktemp("classes")
    sources = sorted((android.folder / "app" / "android").rglob("*.kt"))
    assert len(sources) == 2
    run("bash", compiler / "bin" / "kotlinc", "-Werror", "-d", out, *sources, *STUBS)
    return out


def test_the_example_and_its_test_compile_without_a_warning(classes):
    names = {path.name for path in (classes / "weightspace").iterdir()}
    assert {"TextEmbedding.class", "TextEmbeddingTest.class"} <= names


def test_texts_are_written_as_the_tokenizer_writes_them(classes, compiler):
    texts = [*TEXTS, *sample_texts(), "Straße İstanbul ΚΕΦΑΛΑΙΑ Übergrößenträger", "ﬁn de siècle"]
    library = compiler / "lib" / "kotlin-stdlib.jar"
    java = (
        "java",
        "-Dfile.encoding=UTF-8",
        "-Dstdout.encoding=UTF-8",
        "-cp",
        f"{classes}:{library}",
    )
    found = run(*java, "stubs.MainKt", input="\n".join(texts), encoding="utf-8").splitlines()
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    assert len(found) == len(texts)
    for text, written in zip(texts, found, strict=True):
        assert tokenizer.encode(written).ids == tokenizer.encode(text).ids
        normalizer = tokenizer.normalizer
        assert normalizer.normalize_str(text) == normalizer.normalize_str(written)
        assert written == written.lower()


def test_a_mistake_in_the_example_would_be_found(android, compiler, tmp_path):
    source = tmp_path / "TextEmbedding.kt"
    original = next((android.folder / "app" / "android").rglob("TextEmbedding.kt")).read_text()
    source.write_text(original.replace("floatEmbedding()", "floats()"))
    command = ["bash", compiler / "bin" / "kotlinc", "-d", tmp_path, source, *STUBS]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "unresolved reference 'floats'" in done.stderr.lower()
