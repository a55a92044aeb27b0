"""Structured nets beside the dense one: accuracy, parameters, bytes in each format, latency.

Every net of the zoo whose twin is ``resnet8-fmnist`` is exported to ONNX, TFLite, Core ML and
TensorRT, and timed in ONNX Runtime and LiteRT against its own dense-materialised export (each
structured weight as its value) and against the dense net, in turns in one process.

``python benchmarks/structures.py --write`` also writes the tables to docs/structures.md and the
plot to docs/structures.svg; ``--quick`` measures a tenth as long.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from rich.console import Console
from torch import nn

from devices.measure import Candidate, time_side_by_side
from export.audit import audit_file
from export.capture import capture, trace
from export.lower.coreml import write_mlpackage
from export.lower.ort import REPACKED, write_form
from export.lower.tensorrt import write_tensorrt
from export.lower.tflite import write_tflite
from export.naive import write_naive
from export.onnx_io import load_model, specs_of
from export.passes import run_pipeline
from runtimes.bench import Budget
from runtimes.environment import cpu_name
from weightspace import zoo
from weightspace.checkpoint import load_checkpoint
from weightspace.counts import multiply_adds
from weightspace.layers.structured import materialized
from weightspace.models import IMAGE_MODELS
from weightspace.models.spec import ImageSpec

DENSE = "resnet8-fmnist"
NETS = (DENSE, *(name for name, spec in IMAGE_MODELS.items() if spec.twin == DENSE))
DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"

# How each format is written; what TensorRT's engine stores is in tensorrt_ties.py.
FORMATS: Mapping[str, tuple[str, Callable[[ir.Model, Path], object]]] = {
    "ONNX": ("model.onnx", lambda graph, path: write_form(graph, REPACKED, path)),
    "TFLite": ("model.tflite", write_tflite),
    "Core ML": ("model.mlpackage", lambda graph, path: write_mlpackage(graph, path, "float32")),
    "TensorRT": ("model.tensorrt.onnx", lambda graph, path: write_tensorrt(graph, path, "float32")),
}
TIMED = ("ONNX", "TFLite")


@dataclass(frozen=True)
class Row:
    """What is known of one net.

    Args:
        ratios: stored bytes over unique bytes by format, indices apart.
        naive: the same of the naive ONNX export.
        indices: bytes of indices by format.
        to_materialized: median latency at batch 1 over that of the net with dense weights.
        to_dense: the same over that of the dense net, by runtime.
        to_naive: the same over that of the net's naive export.
    """

    name: str
    accuracy: float
    parameters: int
    multiply_adds: int
    materialized_multiply_adds: int
    ratios: Mapping[str, float]
    naive: float
    indices: Mapping[str, int]
    to_materialized: Mapping[str, float]
    to_dense: Mapping[str, float]
    to_naive: Mapping[str, float]


def trained(spec: ImageSpec) -> nn.Module:
    """Build a net of the zoo with its trained weights."""
    module = spec.build()
    assert spec.checkpoint is not None
    load_checkpoint(module, zoo.path_of(spec.checkpoint))
    return module.eval()


def canonical(module: nn.Module, spec: ImageSpec) -> ir.Model:
    """Write a net as a graph with each stored tensor once."""
    axes = ({0: "batch"},)
    graph = capture(trace(module, spec.example_inputs(), axes), dynamic_shapes=axes).model
    run_pipeline("canonical", graph)
    return graph


def written(graph: ir.Model, folder: Path) -> dict[str, Path]:
    """Write one graph in all formats."""
    folder.mkdir()
    paths = {}
    for name, (file, write) in FORMATS.items():
        paths[name] = folder / file
        write(graph, paths[name])
    return paths


def row(name: str, dense: Mapping[str, Path], folder: Path, budget: Budget) -> Row:
    """Export and time one net."""
    spec = IMAGE_MODELS[name]
    module, example = trained(spec), spec.example_inputs(batch=1)
    evaluated = materialized(module)
    graph = canonical(module, spec)
    ours = written(graph, folder / name)
    theirs = written(canonical(evaluated, spec), folder / f"{name}-materialized")
    naive = folder / f"{name}-naive.onnx"
    naive_bytes = write_naive(trace(module, spec.example_inputs(), ({0: "batch"},)), naive)
    naives = {"ONNX": naive, "TFLite": naive.with_suffix(".tflite")}
    write_tflite(load_model(naive), naives["TFLite"])
    unique = 4 * sum(parameter.numel() for parameter in module.parameters())
    audits = {each: audit_file(path) for each, path in ours.items()}
    to_materialized, to_dense, to_naive = {}, {}, {}
    for runtime in TIMED:
        paths = {"ours": ours, "materialized": theirs, "dense": dense, "naive": naives}
        timed = time_side_by_side(
            {each: Candidate(path[runtime]) for each, path in paths.items()},
            specs_of(graph.graph.inputs), axis="batch", sizes=(1,), threads=1, budget=budget,
            on_step=lambda _: None,
        )[1]  # fmt: skip
        to_materialized[runtime] = timed["ours"].p50 / timed["materialized"].p50
        to_dense[runtime] = timed["ours"].p50 / timed["dense"].p50
        to_naive[runtime] = timed["ours"].p50 / timed["naive"].p50
    card = zoo.card_of(name)
    assert card is not None
    return Row(
        name=name,
        accuracy=card["test_accuracy"],
        parameters=unique // 4,
        multiply_adds=multiply_adds(module, example),
        materialized_multiply_adds=multiply_adds(evaluated, example),
        ratios={each: audit.weight_bytes / unique for each, audit in audits.items()},
        naive=naive_bytes / unique,
        indices={each: audit.index_bytes for each, audit in audits.items()},
        to_materialized=to_materialized,
        to_dense=to_dense,
        to_naive=to_naive,
    )


def tables(rows: list[Row]) -> str:
    """Write the rows as two tables of Markdown."""
    dense = rows[0]
    lines = [
        "| net | test accuracy | parameters | multiply-adds | ORT / dense | LiteRT / dense |",
        "|---|---|---|---|---|---|",
    ]
    for each in rows:
        lines.append(
            f"| {each.name} | {each.accuracy:.2%} "
            f"| {each.parameters:,} ({each.parameters / dense.parameters:.1%}) "
            f"| {each.multiply_adds / 1e6:.2f} M ({each.multiply_adds / dense.multiply_adds:.0%}) "
            f"| {each.to_dense['ONNX']:.2f} | {each.to_dense['TFLite']:.2f} |"
        )
    lines += [
        "",
        "Stored bytes over unique bytes, and the median latency at batch 1 over that of the same "
        "net with its structured weights evaluated, and over its naive export:",
        "",
        f"| net | {' | '.join(FORMATS)} | naive ONNX | multiply-adds / evaluated "
        "| ORT / evaluated | LiteRT / evaluated | ORT / naive | LiteRT / naive |",
        "|---" * (len(FORMATS) + 7) + "|",
    ]
    for each in rows[1:]:
        ratios = " | ".join(f"{each.ratios[name]:.3f}" for name in FORMATS)
        work = each.multiply_adds / each.materialized_multiply_adds
        lines.append(
            f"| {each.name} | {ratios} | {each.naive:.2f} | {work:.2f} "
            f"| {each.to_materialized['ONNX']:.2f} | {each.to_materialized['TFLite']:.2f} "
            f"| {each.to_naive['ONNX']:.2f} | {each.to_naive['TFLite']:.2f} |"
        )
    if indices := {each.name: max(each.indices.values()) for each in rows}:
        counted = [f"{name} {size:,} bytes" for name, size in indices.items() if size]
        lines += ["", f"Stored indices: {', '.join(counted) or 'none'}."]
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Plot accuracy over parameters and over latency; what nothing beats is on the line."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "weightspace"  # the same drawing for the same figures
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    by = {
        "parameters": [each.parameters for each in rows],
        "latency over the dense net's, ONNX Runtime": [each.to_dense["ONNX"] for each in rows],
    }
    for axis, (title, values) in zip(axes, by.items(), strict=True):
        points = sorted(zip(values, (each.accuracy * 100 for each in rows), strict=True))
        front = [
            point for place, point in enumerate(points)
            if all(point[1] > other[1] for other in points[:place])
        ]  # fmt: skip
        axis.plot(*zip(*front, strict=True), color="0.8", zorder=1, drawstyle="steps-post")
        for value, each in zip(values, rows, strict=True):
            axis.scatter(value, each.accuracy * 100, zorder=2)
            label = each.name.removeprefix("resnet8-").removesuffix("fmnist").strip("-") or "dense"
            axis.annotate(
                label, (value, each.accuracy * 100), xytext=(4, 4), textcoords="offset points"
            )
        axis.set_xlabel(title)
    axes[0].set_xscale("log")
    axes[0].set_ylabel("test accuracy, %")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def write_docs(rows: list[Row]) -> None:
    """Put the tables between their marks in the guide, and the plot beside it."""
    guide = DOCS / "structures.md"
    before, rest = guide.read_text().split(BEGIN)
    after = rest.split(END)[1]
    measured = f"On {cpu_name()}, one thread; ratios of medians in one run."
    guide.write_text(f"{before}{BEGIN}\n{measured}\n\n{tables(rows)}\n{END}{after}")
    draw(rows, DOCS / "structures.svg")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time")
    parser.add_argument("--write", action="store_true", help="write the guide's tables and plot")
    arguments = parser.parse_args()
    console = Console()
    budget = Budget(5, 0.1, 12, 0.5) if arguments.quick else Budget(10, 0.5, 50, 5.0)
    rows = []
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        folder = Path(scratch)
        dense = written(
            canonical(trained(IMAGE_MODELS[DENSE]), IMAGE_MODELS[DENSE]), folder / "dense"
        )
        for name in NETS:
            with console.status(name):
                rows.append(row(name, dense, folder, budget))
    print(tables(rows))
    if arguments.write:
        write_docs(rows)


if __name__ == "__main__":
    main()
