"""Operators for ONNX Runtime, compiled for an architecture when they are first asked for."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from runtimes.kernels.compile import LIBRARY, SOURCES, build, why_not

__all__ = ["LIBRARY", "library", "why_not"]


def library(architecture: str) -> Path | None:
    """Find the operators' library for an architecture such as ``x86_64``; build it where need be.

    One that lies beside the sources, in ``lib/ARCHITECTURE``, is taken first: a wheel that was
    built with ``WEIGHTSPACE_KERNELS=build`` brings it. Otherwise it is compiled once into
    ``~/.cache/weightspace`` (or ``XDG_CACHE_HOME``), under a digest of its sources.

    Returns:
        The file, or None where there is no kernel or no compiler for the architecture;
        ``why_not`` says which.

    Raises:
        MeasureError: the compiler failed.
    """
    shipped = SOURCES / "lib" / architecture / LIBRARY
    if shipped.is_file():
        return shipped
    cached = _cache() / _digest() / architecture / LIBRARY
    if cached.is_file():
        return cached
    if why_not(architecture) is not None:
        return None
    return build(architecture, cached)


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "weightspace" / "kernels"


def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*")):
        if path.suffix in {".cpp", ".h"} or path.name == "compile.py":
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
