"""Run, time and measure an artifact with the runtime of its target."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import BadFileError, MeasureError
from runtimes.session import Session


@dataclass(frozen=True, slots=True)
class Backend:
    """A format that artifacts can have, and what runs it.

    Args:
        suffix: of the artifact's file or folder.
        module: where its ``open_session`` is, and what ``runtimes.memory`` needs of the format;
            imported when it is needed.
        package: the vendor's package.
        extra: the extra of this project that installs it.
        system: the one system, as in ``sys.platform``, that has the runtime; None for any.
        reference: the module that evaluates an artifact on other systems, for parity alone.
    """

    format: str
    suffix: str
    module: str
    package: str
    extra: str
    system: str | None = None
    reference: str | None = None

    @property
    def measurable(self) -> bool:
        """Whether the runtime itself is here; if not, its artifacts may be run but not timed."""
        return self.system is None or sys.platform == self.system

    @property
    def runtime(self) -> str:
        """What runs an artifact on its target, as reports name it."""
        return "Core ML" if self.format == "mlpackage" else self.package

    @property
    def evaluated_by(self) -> str:
        """What runs an artifact here, as a record of parity names it."""
        module = importlib.import_module(self.module_here)
        return str(getattr(module, "EVALUATED_BY", self.package))

    @property
    def module_here(self) -> str:
        """The module that runs an artifact here."""
        return self.module if self.measurable or self.reference is None else self.reference


BACKENDS: dict[str, Backend] = {
    "onnx": Backend("onnx", ".onnx", "runtimes.ort", "onnxruntime", "ort"),
    "tflite": Backend("tflite", ".tflite", "runtimes.litert", "ai-edge-litert", "litert"),
    "mlpackage": Backend(
        "mlpackage", ".mlpackage", "runtimes.coreml", "coremltools", "coreml",
        system="darwin", reference="runtimes.coreml_reference",
    ),
}  # fmt: skip


def backend_of(path: Path) -> Backend:
    """Choose the backend of an artifact by the suffix of its file or folder.

    Raises:
        BadFileError: no backend runs files of this suffix.
    """
    for backend in BACKENDS.values():
        if backend.suffix == path.suffix.lower():
            return backend
    known = ", ".join(backend.suffix for backend in BACKENDS.values())
    raise BadFileError(f"{path} is of no format that can be run here; these are: {known}")


def backend_module(path: Path) -> Any:
    """Import the module that runs an artifact here.

    Raises:
        BadFileError: no backend runs files of this suffix.
    """
    return importlib.import_module(backend_of(path).module_here)


def require_measurable(path: Path) -> None:
    """Refuse to measure an artifact whose runtime is not here: its reference has no times.

    Raises:
        MeasureError: the runtime is not here.
        BadFileError: no backend runs files of this suffix.
    """
    backend = backend_of(path)
    if not backend.measurable:
        raise MeasureError(
            f"{path.name} cannot be measured on this system: what runs it here is a "
            f"{backend.evaluated_by}"
        )


def open_artifact(
    path: Path,
    *,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    optimize: bool = True,
) -> Session:
    """Load an artifact with the runtime of its format; see the ``open_session`` of each.

    Where the runtime is not to be had, a reference evaluation takes its place for parity.

    Raises:
        MissingExtraError: the runtime is not installed.
        BadFileError: the file is missing, corrupt, or of a format that cannot be run.
    """
    module = backend_module(path)
    session: Session = module.open_session(
        path, threads=threads, options=options, optimize=optimize
    )
    return session
