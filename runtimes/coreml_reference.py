"""A reference evaluation of saved ML Programs, where Core ML is not at hand.

It computes what the file says, operator by operator in torch, from the saved program and weight
file alone. It is no Core ML: other kernels, no compute units, no times. What it tells is whether
the file holds the right program; every output is held to the type that the program declares.

Computation is in float32. Where the program declares float16, each operator's output is rounded to
it once, as a store to memory would; kernels that accumulate in float16 differ by more.

An image input takes a float array (1, channels, height, width) of pixel values from 0 to 255, in
the order of the image's color layout: the scale and bias that were given at conversion are
operators of the program, and are applied to it. A classifier gives the label as a text or number
without dimensions, and the probabilities as a vector in the order of the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.coreml_io import import_coremltools, quiet_coremltools, read_coreml
from export.errors import MissingExtraError, UnknownNameError

if TYPE_CHECKING:
    from runtimes.coreml_ops.evaluate import ReferenceSession

NAME = "coremltools"
EVALUATED_BY = "reference evaluation of the saved program (not Core ML)"
ROUNDING = "rounding"
"""The session option: ``declared``, or ``none`` to take float16 for float32 throughout, inputs and
outputs as well, which tells the program's own errors from those of its precision."""


def open_session(
    path: Path,
    *,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    optimize: bool = True,
) -> ReferenceSession:
    """Read a .mlpackage, or a .mlmodel with its weights beside it, for reference evaluation.

    Args:
        threads: threads of torch while it runs.
        options: ``{"rounding": "none"}`` computes in float32 throughout.
        optimize: there is nothing to turn off.

    Raises:
        MissingExtraError: coremltools or torch is not installed.
        BadFileError: the file is missing, corrupt, contradicts itself, or has an operator that is
            not known.
        UnknownNameError: an option is not known.
    """
    try:
        from runtimes.coreml_ops.evaluate import ReferenceSession
    except ImportError as error:
        raise MissingExtraError.of("torch", "torch") from error
    for key, value in (options or {}).items():
        if key != ROUNDING or value not in {"declared", "none"}:
            raise UnknownNameError(
                f"session option {key}={value} is not known; the reference evaluation has "
                f"{ROUNDING}=declared and {ROUNDING}=none"
            )
    rounded = (options or {}).get(ROUNDING) != "none"
    return ReferenceSession(read_coreml(path), threads=threads, rounded=rounded)


def warm_up_model(folder: Path) -> Path:
    """Write a small package that loads the code that runs one."""
    coremltools = import_coremltools()
    from coremltools.converters.mil.mil import Builder

    @Builder.program(input_specs=[Builder.TensorSpec((64, 64))])  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        scores = Builder.softmax(x=Builder.matmul(x=x, y=x, transpose_y=True))
        return Builder.gelu(x=Builder.matmul(x=scores, y=x), name="z")

    path = folder / "warm-up.mlpackage"
    with quiet_coremltools():
        package = coremltools.convert(program, convert_to="mlprogram", skip_model_load=True)
    package.save(str(path))
    return path


def write_without_weights(path: Path, folder: Path) -> Path | None:
    """Say that there is no such package: nothing is measured under reference evaluation."""
    return None
