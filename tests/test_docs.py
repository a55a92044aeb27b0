"""What the documents say must be so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from devices.target import load_targets
from weightspace.models import MODELS
from weightspace.models.spec import is_for_fashion_mnist
from weightspace.zoo import card_of

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    for name in re.findall(
        r"`((?:weightspace|export|runtimes|devices|tests|docs)/[\w/.*]+)`", page.read_text()
    ):
        assert list(ROOT.glob(name)), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_commands_are_known(page):
    text = page.read_text()
    for name in re.findall(r"--target ([\w-]+)", text):
        assert any(name in (t.name, *t.aliases) for t in load_targets().values()), name
    for name in re.findall(r"--model ([\w.:-]+)", text):
        assert name in MODELS or ":" in name or name.endswith((".onnx", ".safetensors")), name


def test_the_docs_show_the_accuracies_of_the_cards():
    for name, spec in MODELS.items():
        if spec.checkpoint and is_for_fashion_mnist(spec):
            converted = spec.twin == "resnet8-fmnist"
            text = (ROOT / ("docs/structures.md" if converted else "README.md")).read_text()
            card = card_of(name)
            row = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
            assert f"{card['test_accuracy']:.2%}" in row
            assert f"{card['parameters']:,}" in row
            assert json.loads((ROOT / f"weightspace/zoo/{name}.json").read_text()) == card


def test_the_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for name in set(re.findall(r"(?:^|`)make (\w+)", (ROOT / "README.md").read_text(), re.M)):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name
