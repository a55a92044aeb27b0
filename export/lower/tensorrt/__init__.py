"""ONNX prepared for TensorRT, the recipe that builds an engine from it on a device, and an engine.

TensorRT builds an engine for the GPU that it runs on, so a bundle carries the prepared graph and
the recipe. Where a TensorRT package is installed an engine is built here too: that of
TensorRT-RTX shows what a builder of the same family makes of the ties, and is no Jetson's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from export.errors import LoweringError, UnknownNameError
from export.lower.problems import listing
from export.lower.tensorrt.preflight import problems_of
from export.lower.tensorrt.profiles import Profile, profiles_of
from export.lower.tensorrt.recipe import Recipe, RecipeOptions
from export.lower.tensorrt.versions import oldest_version
from export.onnx_io import save_model, specs_of
from export.passes import run_pipeline

PRECISIONS = ("float16", "float32")
FORM = (
    "Gemm with the transpose as an attribute, convolution and transposed convolution on one "
    "weight; types are those of the graph"
)
# Protobuf ends at 2 GiB; below, one file is easier to take to a device than two.
_INLINE_BELOW_BYTES = 2**30


def write_tensorrt(canonical: ir.Model, path: Path, precision: str = "float16") -> ir.Model:
    """Prepare a canonical graph for TensorRT and write it; the graph itself is left as it is.

    Args:
        path: of the ONNX file; from 1 GiB on its weights are in a file beside it.
        precision: ``float16`` or ``float32``, of the stored weights and of the arithmetic; inputs
            and outputs stay float32 in both.

    Returns:
        The graph that was written.

    Raises:
        UnknownNameError: no such precision.
        LoweringError: TensorRT has no form for some operators; all are named, nothing is written.
        OutputError: the file could not be written.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise UnknownNameError(f"precision {precision!r} is not known; there are: {known}")
    model = canonical.clone()
    InlinePass()(model)
    run_pipeline(f"tensorrt-{precision}", model)
    problems = problems_of(model)
    if problems:
        raise LoweringError(listing(problems, "TensorRT"))
    _save(model, path)
    return model


def write_naive_tensorrt(naive: ir.Model, path: Path, precision: str) -> ir.Model:
    """Write the naive export as TensorRT takes it, its ties lost, in the same precision.

    Returns:
        The graph that was written.

    Raises:
        OutputError: the file could not be written.
    """
    model = naive.clone()
    InlinePass()(model)
    run_pipeline(f"tensorrt-naive-{precision}", model)
    _save(model, path)
    return model


def recipe_of(
    prepared: ir.Model,
    name: str,
    precision: str,
    *,
    profiles: Mapping[str, Profile] | None = None,
    options: RecipeOptions | None = None,
) -> Recipe:
    """Make the recipe of a prepared graph.

    Args:
        name: of its file.
        profiles: of its inputs; chosen by their axes where they are not given.

    Raises:
        UserError: an option does not go with the precision.
    """
    opset = prepared.opset_imports.get("", 0)
    return Recipe(
        model=name,
        engine="model.engine",
        precision=precision,
        opset=opset,
        oldest_version=oldest_version(opset, {node.op_type for node in prepared.graph.all_nodes()}),
        profiles=profiles_of(specs_of(prepared.graph.inputs)) if profiles is None else profiles,
        options=options or RecipeOptions(),
    )


def _save(model: ir.Model, path: Path) -> None:
    ir.external_data.load_to_model(model)  # a graph that was read keeps pointing to its own file
    stored = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    save_model(model, path, external=stored >= _INLINE_BELOW_BYTES)
