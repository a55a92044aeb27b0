"""ONNX to a Core ML ML Program, written with coremltools' builder: each weight stored once.

Core ML has no 64-bit integers, and takes no booleans: int64 inputs and outputs become int32, and
boolean ones float32. Names keep to letters, digits and underscores; any other character of an
input's or output's name becomes an underscore.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx_ir as ir

from export.coreml_io import import_coremltools, quiet_coremltools
from export.errors import UnknownNameError
from export.lower.coreml.convert import convert
from export.lower.coreml.options import (
    DEPLOYMENT_TARGETS,
    PRECISIONS,
    CoremlOptions,
    ImageInput,
    Range,
)
from export.lower.coreml.package import write_package
from export.passes import run_pipeline

FORM = "linear and matmul, conv and conv_transpose on one constant"

__all__ = ["FORM", "CoremlOptions", "ImageInput", "Range", "write_mlpackage"]


def write_mlpackage(
    canonical: ir.Model,
    path: Path,
    precision: str = "float16",
    *,
    options: CoremlOptions | None = None,
) -> None:
    """Lower a canonical ONNX graph and write it; the graph itself is left as it is.

    Args:
        path: of the package, a folder whose name ends in ``.mlpackage``.
        precision: ``float16`` or ``float32``, of the stored weights and of the arithmetic; inputs
            and outputs are float32 in both.

    Raises:
        MissingExtraError: coremltools is not installed.
        UnknownNameError: no such precision or deployment target.
        LoweringError: operators have no form in Core ML, or the options do not fit the model; all
            operators are named, and nothing is written.
        OutputError: the package could not be written.
    """
    chosen = options or CoremlOptions()
    _check("precision", precision, PRECISIONS)
    _check("deployment target", chosen.deployment_target, DEPLOYMENT_TARGETS)
    ct = import_coremltools()
    model = canonical.clone()
    run_pipeline("coreml", model)
    with quiet_coremltools(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = convert(ct, model, chosen, half=precision == "float16")
        write_package(ct, converted, path, chosen)


def _check(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UnknownNameError(f"{kind} {name!r} is not known; there are: {', '.join(known)}")
