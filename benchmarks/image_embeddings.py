"""Retrieval by image embeddings, by class: torch's and each artifact's.

For each of the 1,000 test images that ship, is the nearest other one of its class::

    python benchmarks/image_embeddings.py

Prints the table of docs/embeddings.md.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from devices.deploy import deploy
from devices.options import Options
from devices.source import resolve
from devices.target import find_target
from export.lower import LATENCY_FIRST
from runtimes import open_artifact
from weightspace.data import CLASS_NAMES, load_slice, preprocess
from weightspace.models import IMAGE_ENCODERS
from weightspace.retrieval import finds_its_class

NAME, TWIN = "vit-pe-fmnist-features", "vit-fmnist-features"
FORMATS = ("onnx", "tflite", "mlpackage")
IMAGES = load_slice()


def row_of(name: str, embeddings: NDArray[np.floating]) -> str:
    """Write a row: R@1 of all, then of each class."""
    found = finds_its_class(embeddings, IMAGES.labels)
    by_class = [found[IMAGES.labels == label].mean() for label in range(len(CLASS_NAMES))]
    return f"| {name} | " + " | ".join(f"{share:.1%}" for share in (found.mean(), *by_class)) + " |"


def embed(path: Path, *, takes_pixels: bool) -> NDArray[np.floating]:
    """Run an artifact, on pixels image by image where it takes them."""
    given = IMAGES.pixels[:, None].astype(np.float32)
    step = 1 if takes_pixels else 250
    session = open_artifact(path)
    (name,) = IMAGE_ENCODERS[NAME].input_names
    given = given if takes_pixels else preprocess(IMAGES.pixels)
    parts = [session.run({name: given[i : i + step]}) for i in range(0, len(given), step)]
    session.close()
    return np.concatenate([part["embedding"] for part in parts])


def main() -> None:
    """Export, embed and print."""
    print("| embeddings | all | " + " | ".join(CLASS_NAMES) + " |")
    print("|---" * (len(CLASS_NAMES) + 2) + "|")
    pixels = IMAGES.pixels.reshape(len(IMAGES.pixels), -1).astype(np.float32)
    print(row_of("the pixels", pixels / np.linalg.norm(pixels, axis=1, keepdims=True)))
    for name in (TWIN, NAME):
        (embeddings,) = resolve(name).reference([preprocess(IMAGES.pixels)])
        print(row_of(f"`{name}`, torch", embeddings))
    target = replace(find_target("raspberry-pi"), formats=FORMATS)
    options = Options(profile=False, settings=(LATENCY_FIRST,), precisions=("float32", "float16"))
    with tempfile.TemporaryDirectory(prefix="weightspace-") as folder:
        bundle = deploy(NAME, target, Path(folder) / "out", options)
        for artifact in bundle.manifest["artifacts"]:
            kind = artifact["format"]
            path = bundle.folder / artifact["path"]
            embeddings = embed(path, takes_pixels=kind == "mlpackage")
            print(row_of(f"{kind}, {artifact['precision']}", embeddings))


if __name__ == "__main__":
    main()
