"""The TensorRT packages under one roof: classic ``tensorrt`` from 8.6 on, and ``tensorrt_rtx``.

Both have one interface with differences at the edges; what is asked here is answered by what a
package has, not by its version. What a device needs to build stands in ``build_engine``, which is
sent there as it is; the rest stands here.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from export.errors import MissingExtraError
from export.lower.tensorrt.build_engine import CLASSIC, RTX

PACKAGE = "tensorrt-rtx-cu13"
EXTRA = "tensorrt"
RTX_MAGIC = b"vtrt"
"""How a plan of tensorrt_rtx begins; those of the classic package begin otherwise."""


def installed() -> list[str]:
    """Name the packages that are installed, the classic one first; nothing is imported."""
    return [name for name in (CLASSIC, RTX) if importlib.util.find_spec(name)]


def import_tensorrt(name: str) -> Any:
    """Import ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if name == RTX:
            raise MissingExtraError.of(PACKAGE, EXTRA) from error
        raise MissingExtraError(
            "package 'tensorrt' is not installed; JetPack brings it to a Jetson as "
            "python3-libnvinfer, which a virtual environment must be allowed to see"
        ) from error


def version_of(tensorrt: Any) -> tuple[int, int, int] | None:
    """Read the version of an imported package; None where it is of no usual form."""
    parts = str(getattr(tensorrt, "__version__", "")).split(".")[:3]
    if len(parts) < 3 or not all(part.isdigit() for part in parts):
        return None
    major, minor, patch = map(int, parts)
    return major, minor, patch


def make_context(tensorrt: Any, engine: Any) -> Any:
    """Make a context to run an engine; None where TensorRT cannot.

    RTX finishes kernels on the device. By default it does so in the background while slower ones
    run; here it does before the first run at a shape, so that what is timed stays the same.
    """
    strategies = getattr(tensorrt, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is None:
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    return engine.create_execution_context(config)
