"""Golden vectors: a few inputs of a model and its outputs, kept in the bundle.

Embeddings stand beside their texts or images as well, in a form that any language reads.

With them whoever runs an artifact, on a device or in an app, can check what it computes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from export.errors import BadFileError

GOLDEN = "golden.npz"
EMBEDDINGS = "golden/embeddings.json"
_DIGITS = 7  # after the point; the rounding is a tenth of what float32 computes differently
_MOST_BYTES = 4 << 20
_MOST_ROWS = 64
_IMAGES = 8  # as text

Arrays = Sequence[NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs and the model's own outputs, each in the order of the artifacts' specs.

    Args:
        source: where the inputs are from, in words.
        pixels: the inputs for artifacts that take the pixels of an image; None where none does.
    """

    inputs: tuple[NDArray[np.generic], ...]
    outputs: tuple[NDArray[np.generic], ...]
    source: str
    pixels: tuple[NDArray[np.generic], ...] | None = None


def write_golden(folder: Path, golden: Golden, *, whole: bool = False) -> None:
    """Keep the first samples, as many as fit into 4 MB.

    Args:
        whole: keep all, as for a model whose batch is fixed.
    """
    named = {f"input_{i}": array for i, array in enumerate(golden.inputs)}
    named |= {f"output_{i}": array for i, array in enumerate(golden.outputs)}
    named |= {f"pixels_{i}": array for i, array in enumerate(golden.pixels or ())}
    rows = len(golden.inputs[0])
    if not whole and all(array.ndim and len(array) == rows for array in named.values()):
        row_bytes = sum(array.nbytes for array in named.values()) // max(1, rows)
        kept = max(1, min(rows, _MOST_ROWS, _MOST_BYTES // max(1, row_bytes)))
        named = {name: array[:kept] for name, array in named.items()}
    source = np.asarray(golden.source)
    np.savez_compressed(folder / GOLDEN, source=source, **named, allow_pickle=False)


def write_embeddings(
    folder: Path,
    texts: Sequence[str],
    input_ids: Sequence[Sequence[int]],
    embeddings: NDArray[np.generic],
) -> None:
    """Keep texts, the token ids of each without padding, and the embedding of each.

    Args:
        embeddings: the model's own, ``(texts, dim)``.
    """
    ids = [list(each) for each in input_ids]
    _write_embeddings(folder, {"texts": list(texts), "input_ids": ids}, embeddings)


def write_image_embeddings(
    folder: Path, images: NDArray[np.generic], embeddings: NDArray[np.generic]
) -> None:
    """Keep the first images as pixels from 0 to 255, and the embedding of each.

    Args:
        images: ``(images, channels, height, width)``.
        embeddings: the model's own, ``(images, dim)``.
    """
    pixels = images[:_IMAGES].astype(np.uint8).tolist()
    _write_embeddings(folder, {"images": pixels}, embeddings[:_IMAGES])


def _write_embeddings(
    folder: Path, content: dict[str, list[Any]], embeddings: NDArray[np.generic]
) -> None:
    path = folder / EMBEDDINGS
    path.parent.mkdir(exist_ok=True)
    rows = np.asarray(embeddings, np.float64).round(_DIGITS).tolist()
    words = json.dumps(content | {"embeddings": rows}, ensure_ascii=False)
    path.write_text(words + "\n", encoding="utf-8")


def read_golden(folder: Path) -> Golden | None:
    """Read a bundle's golden vectors; None where it has none, as bundles of older versions.

    Raises:
        BadFileError: the file is damaged.
    """
    path = folder / GOLDEN
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        inputs, outputs, pixels = (_all(found, kind) for kind in ("input", "output", "pixels"))
        return Golden(inputs, outputs, str(found["source"]), pixels or None)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise BadFileError(f"{path} is damaged ({error}); export the bundle again") from error


def _all(named: dict[str, NDArray[np.generic]], kind: str) -> tuple[NDArray[np.generic], ...]:
    count = sum(name.startswith(f"{kind}_") for name in named)
    return tuple(named[f"{kind}_{i}"] for i in range(count))
