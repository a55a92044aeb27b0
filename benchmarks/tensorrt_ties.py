"""Tied models as TensorRT-RTX engines: ours beside the naive export of the same torch model.

Bytes that the builder counts as weights, and of the engine's file, each less those of an empty
network, over the unique parameters' bytes; and the builder's seconds. No GPU is needed, and none
is used: nothing is run.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from models import NAMES, Model, make
from rich.console import Console
from rich.table import Table

from export.capture import capture, trace
from export.errors import WeightspaceError
from export.lower.tensorrt import PRECISIONS, recipe_of, write_naive_tensorrt, write_tensorrt
from export.lower.tensorrt.build import BuiltEngine, build
from export.lower.tensorrt.build_engine import RTX
from export.lower.tensorrt.recipe import RECIPE, write_recipe
from export.naive import write_naive
from export.onnx_io import load_model
from export.passes import run_pipeline
from runtimes.environment import cpu_name

QUICK_NAMES = ("vit-pe-fmnist", "resnet-pe-fmnist", "ffn-6x384-s16", "conv-bottleneck")
TOOLS = ("ours", "naive")
_BYTES = {"float32": 4, "float16": 2}


@dataclass
class Row:
    """What is known of one model; an engine that was not built is missing."""

    name: str
    parameters: int
    engines: dict[tuple[str, str], BuiltEngine] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def build_all(row: Row, model: Model, folder: Path) -> None:
    """Build four engines: ours and the naive one, in both precisions."""
    axes = [{0: "batch"}] * len(model.inputs)  # as a bundle is exported
    program = trace(model.module, model.inputs, axes)
    captured = capture(program, input_names=model.input_names, dynamic_shapes=axes)
    run_pipeline("canonical", captured.model)
    write_naive(program, folder / "naive.onnx", input_names=model.input_names)
    for precision in sorted(PRECISIONS, reverse=True):
        for tool in TOOLS:
            place = folder / f"{tool}.{precision}"
            place.mkdir()
            try:
                row.engines[tool, precision] = build_one(
                    captured.model if tool == "ours" else load_model(folder / "naive.onnx"),
                    write_tensorrt if tool == "ours" else write_naive_tensorrt,
                    precision,
                    place,
                )
            except WeightspaceError as error:
                row.failures.append(f"{tool}, {precision}: {error}")


def build_one(model: ir.Model, write: object, precision: str, folder: Path) -> BuiltEngine:
    """Prepare a graph and build its engine in a process of its own."""
    assert callable(write)
    prepared = write(model, folder / "net.onnx", precision)
    write_recipe(recipe_of(prepared, "net.onnx", precision), folder)
    return build(folder / RECIPE, folder / "net.rtx.engine", RTX)


def tables(rows: list[Row]) -> list[Table]:
    """Lay out what was found."""
    columns = [(tool, precision) for precision in ("float32", "float16") for tool in TOOLS]
    titles = [f"{tool} {precision}" for tool, precision in columns]
    weights = Table("model", "unique MB", *titles, title="weights in the engine / unique bytes")
    files = Table("model", *titles, title="engine file, MB, less an empty one")
    seconds = Table("model", *titles, title="built in, s")
    for row in rows:
        found = [row.engines.get(key) for key in columns]
        unique = [row.parameters * _BYTES[precision] for _, precision in columns]
        ratios = [
            f"{engine.weights_bytes / size:.3f}" if engine else "-"
            for engine, size in zip(found, unique, strict=True)
        ]
        weights.add_row(row.name, f"{row.parameters * 4 / 1e6:.2f}", *ratios)
        files.add_row(
            row.name, *(f"{(e.bytes - e.empty_bytes) / 1e6:.2f}" if e else "-" for e in found)
        )
        seconds.add_row(row.name, *(f"{engine.build_s:.1f}" if engine else "-" for engine in found))
    return [weights, files, seconds]


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few small models")
    parser.add_argument("--only", default="", help="models whose name holds this text")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    among = NAMES if arguments.only or not arguments.quick else QUICK_NAMES
    names = [name for name in among if arguments.only in name]
    if not names:
        parser.error(f"no model's name holds {arguments.only!r}; there are {', '.join(NAMES)}")
    console = Console()
    console.print(cpu_name())
    rows: list[Row] = []
    try:
        with console.status("starting") as status:
            for name in names:
                model = make(name)
                row = Row(name, model.unique_bytes // 4)
                rows.append(row)
                status.update(name)
                with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
                    build_all(row, model, Path(scratch))
                for failure in row.failures:
                    console.print(f"{name}, {failure}", markup=False)
    except KeyboardInterrupt:
        console.print(f"interrupted; {len(rows)} of {len(names)} models were begun")
        return 130
    console.print(*tables(rows), sep="\n")
    return int(any(failure.startswith("ours") for row in rows for failure in row.failures))


if __name__ == "__main__":
    sys.exit(main())
