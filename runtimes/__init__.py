"""Run, time and measure an artifact with the runtime of its target."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import BadFileError
from runtimes.session import Session


@dataclass(frozen=True, slots=True)
class Backend:
    """A format that artifacts can have, and what runs it.

    Args:
        suffix: of the artifact's file.
        module: where its ``open_session`` is, and what ``runtimes.memory`` needs of the format;
            imported when it is needed.
        package: the vendor's package.
        extra: the extra of this project that installs it.
    """

    format: str
    suffix: str
    module: str
    package: str
    extra: str


BACKENDS: dict[str, Backend] = {
    "onnx": Backend("onnx", ".onnx", "runtimes.ort", "onnxruntime", "ort"),
    "tflite": Backend("tflite", ".tflite", "runtimes.litert", "ai-edge-litert", "litert"),
}


def backend_module(path: Path) -> Any:
    """Import the module that runs an artifact, chosen by the suffix of its file.

    Raises:
        BadFileError: no backend runs files of this suffix.
    """
    for backend in BACKENDS.values():
        if backend.suffix == path.suffix.lower():
            return importlib.import_module(backend.module)
    known = ", ".join(backend.suffix for backend in BACKENDS.values())
    raise BadFileError(f"{path} is of no format that can be run here; these are: {known}")


def open_artifact(
    path: Path,
    *,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    optimize: bool = True,
) -> Session:
    """Load an artifact with the runtime of its format; see the ``open_session`` of each.

    Raises:
        MissingExtraError: the runtime is not installed.
        BadFileError: the file is missing, corrupt, or of a format that cannot be run.
    """
    module = backend_module(path)
    session: Session = module.open_session(
        path, threads=threads, options=options, optimize=optimize
    )
    return session
