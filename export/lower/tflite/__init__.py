"""ONNX to TFLite, written directly as a flatbuffer: no TensorFlow, each weight stored once."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from export.lower.tflite.convert import convert
from export.lower.tflite.flatbuffer import write
from export.lower.tflite.fuse import fuse


def write_tflite(canonical: ir.Model, path: Path) -> None:
    """Lower a canonical ONNX graph and write it; the graph itself is left as it is.

    Raises:
        MissingExtraError: ai-edge-litert is not installed.
        LoweringError: operators have no form in TFLite; all are named, and nothing is written.
        OutputError: the file could not be written.
    """
    graph = convert(canonical)
    fuse(graph)
    write(graph, path, "weightspace")
