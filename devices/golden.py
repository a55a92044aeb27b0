"""Golden vectors: a few inputs of a model and its outputs, kept in the bundle.

With them whoever runs an artifact, on a device or in an app, can check what it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from export.errors import BadFileError

GOLDEN = "golden.npz"
_MOST_BYTES = 4 << 20
_MOST_ROWS = 64

Arrays = Sequence[NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs and the model's own outputs, each in the order of the artifacts' specs.

    Args:
        source: where the inputs are from, in words.
    """

    inputs: tuple[NDArray[np.generic], ...]
    outputs: tuple[NDArray[np.generic], ...]
    source: str


def write_golden(
    folder: Path, inputs: Arrays, outputs: Arrays, source: str, *, whole: bool = False
) -> None:
    """Keep the first samples, as many as fit into 4 MB.

    Args:
        whole: keep all, as for a model whose batch is fixed.
    """
    rows = len(inputs[0])
    by_sample = not whole and all(
        array.ndim and len(array) == rows for array in (*inputs, *outputs)
    )
    if by_sample:
        row_bytes = sum(array.nbytes for array in (*inputs, *outputs)) // rows
        rows = max(1, min(rows, _MOST_ROWS, _MOST_BYTES // max(1, row_bytes)))
    kept = {f"input_{i}": array[:rows] if by_sample else array for i, array in enumerate(inputs)}
    kept |= {f"output_{i}": array[:rows] if by_sample else array for i, array in enumerate(outputs)}
    np.savez_compressed(folder / GOLDEN, source=np.asarray(source), **kept, allow_pickle=False)


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
        return Golden(
            tuple(found[f"input_{i}"] for i in range(_count(found, "input_"))),
            tuple(found[f"output_{i}"] for i in range(_count(found, "output_"))),
            str(found["source"]),
        )
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise BadFileError(f"{path} is damaged ({error}); export the bundle again") from error


def _count(names: dict[str, NDArray[np.generic]], prefix: str) -> int:
    return sum(name.startswith(prefix) for name in names)
