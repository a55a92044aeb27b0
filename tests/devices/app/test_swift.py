"""The Swift of the iPhone example: parsed. There is no compiler for it where this runs."""

from __future__ import annotations

import re

import pytest
import tree_sitter_swift
from tree_sitter import Language, Node, Parser

from tests.text_nets import DIM, TOKENS


def mistakes(source: str) -> list[str]:
    """What the grammar cannot read, and what it misses."""
    tree = Parser(Language(tree_sitter_swift.language())).parse(source.encode())
    found: list[str] = []

    def walk(node: Node) -> None:
        if node.is_error or node.is_missing:
            found.append(f"line {node.start_point.row + 1}: {node.type}")
        for child in node.children:
            walk(child)

    walk(tree.root_node)
    return found


@pytest.fixture(scope="module")
def sources(iphone):
    folder = iphone.folder / "app" / "iphone"
    return {path.name: path.read_text() for path in sorted(folder.rglob("*.swift"))}


def test_the_example_its_test_and_its_manifest_are_swift(sources):
    assert set(sources) == {"Package.swift", "TextEmbedding.swift", "TextEmbeddingTests.swift"}
    for name, source in sources.items():
        assert mistakes(source) == [], name


def test_code_in_the_instructions_is_swift(iphone):
    text = (iphone.folder / "app" / "iphone" / "README.md").read_text()
    blocks = re.findall(r"```swift\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    assert mistakes(blocks[-1]) == []


def test_the_example_names_what_the_bundle_has(sources, iphone):
    (artifact,) = iphone.manifest["artifacts"]
    for spec in (*artifact["inputs"], *artifact["outputs"]):
        assert f'"{spec["name"]}"' in sources["TextEmbedding.swift"]
    assert f"mostTokens = {TOKENS}" in sources["TextEmbedding.swift"]
    assert f"{DIM} numbers" in sources["TextEmbedding.swift"]
    for name in (artifact["path"], "tokenizer", "golden/embeddings.json"):
        assert f'"{name}"' in sources["TextEmbeddingTests.swift"]


def test_a_mistake_in_the_example_would_be_found(sources):
    assert mistakes(sources["TextEmbedding.swift"].replace("guard let", "guard guard let"))
