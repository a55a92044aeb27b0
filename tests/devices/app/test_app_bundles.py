from __future__ import annotations

import json

import pytest

from devices.app import write_app
from devices.app.wordpiece import read_wordpiece
from devices.target import load_targets
from export.errors import BadFileError
from export.manifest import artifacts_of, files_of, read_manifest
from tests.devices.app.conftest import MODEL
from tests.text_nets import DIM, TOKENIZER, TOKENS


def test_the_phone_target_gives_an_app_for_each_of_its_members(cli, tmp_path):
    out = tmp_path / "out"
    outcome = cli(
        "export", "--target", "phone", "--model", MODEL, "--app", "--no-profile",
        "--setting", "latency-first", "--out", out,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    for platform in ("android", "iphone"):
        folder = out / platform
        app = read_manifest(folder)["app"]
        assert (app["platform"], app["folder"]) == (platform, f"app/{platform}")
        assert f"{folder / 'app' / platform / 'README.md'}; carries" in outcome.out
        assert (folder / "LICENCES.md").is_file()
        assert "Apache License" in (folder / "Apache-2.0.txt").read_text()


@pytest.mark.parametrize("platform", ["android", "iphone"])
def test_the_manifest_says_what_an_app_takes_and_carries(platform, request):
    bundle = request.getfixturevalue(platform)
    app = read_manifest(bundle.folder)["app"]
    assert (app["dimension"], app["tokens"]) == (DIM, TOKENS)
    (artifact,) = artifacts_of(bundle.manifest, bundle.folder)
    assert app["artifacts"] == {artifact.format: artifact.path}
    for path, size in app["download_bytes"].items():
        assert sum(file.stat().st_size for file in files_of(bundle.folder / path)) == size
    assert artifact.path in app["download_bytes"]
    assert (app["precision"], app["golden"]) == (artifact.precision, "golden/embeddings.json")


def test_an_android_app_carries_the_model_alone_and_an_iphones_the_tokenizer_too(android, iphone):
    assert list(android.manifest["app"]["download_bytes"]) == ["model.latency-first.tflite"]
    assert list(iphone.manifest["app"]["download_bytes"]) == [
        "model.mlpackage", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    ]  # fmt: skip


@pytest.mark.parametrize("platform", ["android", "iphone"])
def test_examples_name_the_files_of_their_bundle(platform, request):
    bundle = request.getfixturevalue(platform)
    folder = bundle.folder / "app" / platform
    assert not list(folder.rglob("*.jinja"))
    text = "".join(file.read_text() for file in sorted(folder.rglob("*")) if file.is_file())
    app = bundle.manifest["app"]
    for name in (app["golden"], app["tokenizer"], *app["artifacts"].values()):
        assert name in text
        assert (bundle.folder / name).exists()
    assert f"{DIM} numbers" in text
    assert f"{TOKENS} tokens" in text


def test_the_tokenizer_is_there_in_the_forms_that_libraries_read(iphone):
    folder = iphone.folder / "tokenizer"
    assert (folder / "tokenizer.json").read_bytes() == TOKENIZER.read_bytes()
    pieces = json.loads(TOKENIZER.read_text())["model"]["vocab"]
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert {line: place for place, line in enumerate(lines)} == pieces
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "BertTokenizer"
    assert config["model_max_length"] == TOKENS


def test_a_target_without_apps_names_those_that_have_them(cli, tmp_path):
    out = tmp_path / "out"
    outcome = cli("export", "--target", "jetson", "--model", MODEL, "--app", "--out", out)
    assert outcome.code == 2
    (line,) = outcome.error_lines
    assert "has no app example" in line
    listed = line.split(": ")[-1].split(", ")
    assert {"android", "iphone", "phone"} <= set(listed)
    assert set(listed) <= set(load_targets())
    assert not out.exists()


def test_a_model_without_a_tokenizer_is_refused_before_anything_is_made(cli, tmp_path):
    out = tmp_path / "out"
    outcome = cli(
        "export", "--target", "android", "--model", "resnet18-fmnist", "--app", "--out", out
    )
    assert outcome.code == 2
    (line,) = outcome.error_lines
    assert "text encoder with its tokenizer" in line
    assert "resnet18-fmnist" in line
    assert not out.exists()


def test_a_bundle_without_app_has_no_such_key(cli, tmp_path):
    outcome = cli(
        "export", "--target", "android", "--model", MODEL, "--no-profile", "--json",
        "--setting", "latency-first", "--out", tmp_path / "out",
    )  # fmt: skip
    assert "app" not in json.loads(outcome.out)
    assert not (tmp_path / "out" / "app").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"type": "BPE", "vocab": {}}}, "BPE tokenizer"),
        ({"truncation": None}, "cuts no text"),
        ({"normalizer": None}, "does not lower"),
        ({"model": None}, "not a readable tokenizer.json"),
    ],
)
def test_other_tokenizers_are_refused(change, words, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(TOKENIZER.read_text()) | change))
    with pytest.raises(BadFileError, match=words):
        read_wordpiece(path)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(BadFileError, match=r"absent\.json"):
        read_wordpiece(tmp_path / "absent.json")


def test_templates_that_lack_something_are_an_error_and_not_an_empty_text(tmp_path):
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        write_app(tmp_path, "android", object())
