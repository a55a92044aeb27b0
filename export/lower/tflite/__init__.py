"""ONNX to TFLite, written directly as a flatbuffer: no TensorFlow, each weight stored once."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from export.lower import LATENCY_FIRST, MEMORY_FIRST
from export.lower.tflite.convert import convert
from export.lower.tflite.flatbuffer import write
from export.lower.tflite.fuse import fuse
from export.lower.tflite.once import compute_once
from export.lower.tflite.precision import store_as_float16
from export.lower.tflite.text_task import TextTask, append_vocabulary, describe, fit_inputs
from export.passes import run_pipeline

__all__ = ["FORMS", "TextTask", "write_tflite"]

# What each setting makes of a weight that is used more than once.
FORMS = {
    LATENCY_FIRST: "FULLY_CONNECTED and BATCH_MATMUL on one buffer; stored once, packed by XNNPACK "
    "for each use",
    MEMORY_FIRST: "BATCH_MATMUL with the weight on the left, which XNNPACK reads in place; "
    "convolutions are packed",
}


def write_tflite(
    canonical: ir.Model,
    path: Path,
    setting: str = LATENCY_FIRST,
    precision: str = "float32",
    text: TextTask | None = None,
) -> None:
    """Lower a canonical ONNX graph and write it; the graph itself is left as it is.

    Args:
        setting: ``latency-first`` or ``memory-first``.
        precision: of the stored weights, ``float32`` or ``float16``; arithmetic is in float32.
        text: of a text encoder, for MediaPipe; its integers are then of 32 bits.

    Raises:
        MissingExtraError: ai-edge-litert is not installed.
        LoweringError: operators have no form in TFLite; all are named, and nothing is written.
        OutputError: the file could not be written.
    """
    model = canonical.clone()
    InlinePass()(model)
    run_pipeline("tflite", model)
    graph = convert(model, memory_first=setting == MEMORY_FIRST)
    if text is not None:
        fit_inputs(graph, text)
    fuse(graph)
    if precision == "float16":
        store_as_float16(graph)
    compute_once(graph)
    metadata = None if text is None else describe(graph, text)
    write(graph, path, "weightspace", metadata)
    if text is not None:
        append_vocabulary(path, text)
