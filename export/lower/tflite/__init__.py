"""ONNX to TFLite, written directly as a flatbuffer: no TensorFlow, each weight stored once."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from export.lower import LATENCY_FIRST, MEMORY_FIRST
from export.lower.tflite.convert import convert
from export.lower.tflite.flatbuffer import write
from export.lower.tflite.fuse import fuse
from export.lower.tflite.graph import Graph
from export.lower.tflite.image_task import ImageTask, describe_image
from export.lower.tflite.once import compute_once
from export.lower.tflite.precision import store_as_float16
from export.lower.tflite.text_task import (
    TextTask,
    append_vocabulary,
    describe_text,
    fit_inputs,
)
from export.passes import run_pipeline

__all__ = ["FORMS", "ImageTask", "TextTask", "write_tflite"]

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
    task: TextTask | ImageTask | None = None,
) -> None:
    """Lower a canonical ONNX graph and write it; the graph itself is left as it is.

    Args:
        setting: ``latency-first`` or ``memory-first``.
        precision: of the stored weights, ``float32`` or ``float16``; arithmetic is in float32.
        task: what the file tells of itself in TFLite's metadata; None for a file without. The
            integers of a text encoder are then of 32 bits, for MediaPipe.

    Raises:
        MissingExtraError: ai-edge-litert is not installed.
        LoweringError: operators have no form in TFLite; all are named, and nothing is written.
        OutputError: the file could not be written.
    """
    model = canonical.clone()
    InlinePass()(model)
    run_pipeline("tflite", model)
    graph = convert(model, memory_first=setting == MEMORY_FIRST)
    if isinstance(task, TextTask):
        fit_inputs(graph, task)
    fuse(graph)
    if precision == "float16":
        store_as_float16(graph)
    compute_once(graph)
    write(graph, path, "weightspace", _metadata(graph, task))
    if isinstance(task, TextTask):
        append_vocabulary(path, task)


def _metadata(graph: Graph, task: TextTask | ImageTask | None) -> bytes | None:
    if isinstance(task, TextTask):
        return describe_text(graph, task)
    return None if task is None else describe_image(graph, task)
