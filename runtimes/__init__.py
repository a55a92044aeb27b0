"""Run, time and measure an artifact with the runtime of its target."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import BadFileError, MeasureError
from runtimes.session import Session


def _anywhere() -> bool:
    return True


def _on_macos() -> bool:
    return sys.platform == "darwin"


def _nowhere() -> bool:
    return False


def _with_tensorrt_and_gpu() -> bool:
    return bool(importlib.import_module("runtimes.trt").is_here())


@dataclass(frozen=True, slots=True)
class Backend:
    """A format that artifacts can have, and what runs it.

    Args:
        suffix: of the artifact's file or folder.
        module: where its ``open_session`` is, and what ``runtimes.memory`` needs of the format;
            imported when it is needed.
        package: the vendor's package.
        extra: the extra of this project that installs it.
        runtime: what runs an artifact on its target, as reports name it.
        here: whether this machine has the runtime, or could have it by installing the extra.
        needs: what a machine must have besides the package, in words.
        reference: the module that evaluates an artifact on other machines, for parity alone.
    """

    format: str
    suffix: str
    module: str
    package: str
    extra: str
    runtime: str
    here: Callable[[], bool] = _anywhere
    needs: str = ""
    reference: str | None = None

    @property
    def measurable(self) -> bool:
        """Whether the runtime itself is here; if not, its artifacts may be run but not timed."""
        return self.here()

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
    "onnx": Backend("onnx", ".onnx", "runtimes.ort", "onnxruntime", "ort", "onnxruntime"),
    "tflite": Backend(
        "tflite", ".tflite", "runtimes.litert", "ai-edge-litert", "litert", "ai-edge-litert"
    ),
    "mlpackage": Backend(
        "mlpackage", ".mlpackage", "runtimes.coreml", "coremltools", "coreml", "Core ML",
        here=_on_macos, needs="macOS", reference="runtimes.coreml_reference",
    ),
    # A graph that a device builds its engine from; ONNX Runtime stands in for parity.
    "tensorrt": Backend(
        "tensorrt", ".tensorrt.onnx", "runtimes.ort", "onnxruntime", "ort", "TensorRT",
        here=_nowhere, needs="an engine that is built from it", reference="runtimes.ort",
    ),
    "engine": Backend(
        "engine", ".engine", "runtimes.trt", "tensorrt-rtx-cu13", "tensorrt", "TensorRT",
        here=_with_tensorrt_and_gpu, needs="an NVIDIA GPU, its driver and a TensorRT package",
    ),
}  # fmt: skip


def backend_of(path: Path) -> Backend:
    """Choose the backend of an artifact by the suffix of its file or folder.

    Raises:
        BadFileError: no backend runs files of this suffix.
    """
    name = path.name.lower()
    found = [b for b in BACKENDS.values() if name.endswith(b.suffix) and name != b.suffix]
    if found:
        return max(found, key=lambda backend: len(backend.suffix))
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
        instead = f"what runs it here is a {backend.evaluated_by}"
        reason = instead if backend.reference else f"{backend.runtime} needs {backend.needs}"
        raise MeasureError(f"{path.name} cannot be measured on this system: {reason}")


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
