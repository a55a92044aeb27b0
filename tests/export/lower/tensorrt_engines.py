"""Engines of small graphs, built with the real TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from export.lower.tensorrt import recipe_of, write_naive_tensorrt, write_tensorrt
from export.lower.tensorrt.build_engine import build, build_empty, load_module


def weights_in_engine(model: ir.Model, folder: Path, precision: str, *, naive: bool = False) -> int:
    """Bytes that the builder counts as weights of a graph's engine, an empty network's off."""
    trt = load_module(["tensorrt_rtx"])
    write = write_naive_tensorrt if naive else write_tensorrt
    prepared = write(model, folder / "net.tensorrt.onnx", precision)
    recipe = recipe_of(prepared, "net.tensorrt.onnx", precision).as_dict()
    _, facts = build(trt, {**recipe, "timing_cache": None}, str(folder))
    return int(facts["weights_bytes"]) - int(build_empty(trt)["weights_bytes"])
