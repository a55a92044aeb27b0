"""Tied models in ONNX Runtime: ours beside the naive export, and what other tools store.

For each model: stored bytes over unique bytes as written by five tools; then, for each length, the
median latency over that of the naive export, all in one process in turns; then memory, each in a
process of its own. ``make bench`` runs it; ``--quick`` measures a tenth as long.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from models import FFNStack, draw_vectors
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from devices.measure import Candidate, axis_of, make_feeds, time_side_by_side
from export.capture import OPSET, capture, trace
from export.lower.ort import CANDIDATES, LATENCY_FIRST, MEMORY_FIRST, write_form
from export.naive import write_naive
from export.onnx_io import load_model
from export.passes import run_pipeline
from export.stored import stored_bytes
from runtimes.bench import Budget
from runtimes.environment import cpu_name
from runtimes.memory import measure_fresh
from runtimes.ort import open_session
from weightspace.models import IMAGE_MODELS


@dataclass(frozen=True)
class Case:
    """A model to measure, its example input, its varying axes and the sizes to time."""

    name: str
    module: nn.Module
    example: Tensor
    axes: dict[int, str]
    sizes: tuple[int, ...]


def cases() -> list[Case]:
    """Make the models of the table, at random weights."""
    torch.manual_seed(0)
    tokens = {0: "batch", 1: "sequence"}
    made = [
        Case(f"FFN {layers} x {dim}", FFNStack(layers, dim), torch.randn(2, 5, dim), tokens, sizes)
        for layers, dim, sizes in [
            (6, 384, (1, 4, 16, 64, 128, 197)),
            (12, 768, (1, 4, 16, 64, 128, 197)),
        ]
    ]
    for stack in made:
        draw_vectors(stack.module)
    for name in ("vit-pe-b16", "resnet50-pe", "vit-pe-fmnist", "resnet-pe-fmnist"):
        spec = IMAGE_MODELS[name]
        module = spec.build()
        draw_vectors(module)
        sizes = (1,) if spec.input_shape[1] > 100 else (1, 4, 16)
        made.append(Case(name, module, spec.example_inputs()[0], {0: "batch"}, sizes))
    return made


def bytes_by_tool(case: Case, canonical: ir.Model, naive: Path, folder: Path) -> dict[str, int]:
    """Count the stored bytes that each tool writes for one model."""
    exported = folder / "dynamo.onnx"
    program = trace(case.module, (case.example,), (case.axes,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        dynamo = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
        dynamo.save(exported, external_data=True)
        script = folder / "script.onnx"
        torch.onnx.export(
            case.module.eval(), (case.example,), script, dynamo=False, opset_version=OPSET,
            input_names=["x"], dynamic_axes={"x": case.axes},
        )  # fmt: skip
    return {
        "ours": stored_bytes(canonical),
        "torch dynamo": stored_bytes(load_model(exported)),
        "torch dynamo, onnxsim": stored_bytes(load_model(naive)),
        "torch TorchScript": stored_bytes(load_model(script)),
        "ORT optimizer": _optimized_by_ort(exported, folder),
    }


def _optimized_by_ort(path: Path, folder: Path) -> int:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    data = "session.optimized_model_external_initializers_file_name"
    options.add_session_config_entry(data, "optimized.data")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return stored_bytes(load_model(folder / "optimized.onnx"))


def run(case: Case, budget: Budget, threads: int, console: Console) -> None:
    """Measure one model and print its three tables."""
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        folder = Path(scratch)
        program = trace(case.module, (case.example,), (case.axes,))
        captured = capture(program, dynamic_shapes=(case.axes,))
        run_pipeline("canonical", captured.model)
        unique = captured.ties.unique_bytes
        candidates = {"naive": Candidate(folder / "naive.onnx")}
        write_naive(program, candidates["naive"].path)
        for setting in (LATENCY_FIRST, MEMORY_FIRST):
            for form in CANDIDATES[setting]:
                path = folder / f"{form.pipeline}.onnx"
                candidates[form.pipeline] = Candidate(path, form.options_here)
                write_form(captured.model, form, path)
        tools = bytes_by_tool(case, captured.model, candidates["naive"].path, folder)

        console.rule(f"{case.name}: {unique / 1e6:.1f} MB of unique parameters")
        table = Table("stored bytes / unique", *tools)
        table.add_row("", *(f"{count / unique:.3f}" for count in tools.values()))
        console.print(table)

        session = open_session(candidates[CANDIDATES[MEMORY_FIRST][0].pipeline].path)
        specs, axis = session.inputs, axis_of(session.inputs)[0]
        session.close()
        with console.status("timing") as status:
            timed = time_side_by_side(
                candidates, specs, axis=axis, sizes=case.sizes, threads=threads, budget=budget,
                on_step=status.update,
            )  # fmt: skip
        table = Table(f"p50 / naive, by {axis}", "naive ms", *list(candidates)[1:])
        for size, latency in timed.items():
            base = latency["naive"].p50
            ratios = [f"{latency[name].p50 / base:.2f}" for name in list(candidates)[1:]]
            table.add_row(str(size), f"{base:.3f}", *ratios)
        console.print(table)

        table = Table("memory / unique", "weights resident", "peak growth", "load ms")
        feeds = make_feeds(specs, axis, 1)
        for name, candidate in candidates.items():
            fresh = measure_fresh(candidate.path, feeds, threads=threads, options=candidate.options)
            memory = fresh.memory
            grown = memory.peak_rss_bytes - memory.baseline_rss_bytes
            resident = memory.weights_resident_bytes
            table.add_row(
                name, f"{resident / unique:.2f}", f"{grown / unique:.2f}", f"{fresh.load_ms:.0f}"
            )
        console.print(table)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="models whose name holds this text")
    arguments = parser.parse_args()
    console = Console()
    console.print(f"{cpu_name()}, {arguments.threads} thread(s); ratios of medians in one run")
    budget = Budget(5, 0.1, 12, 0.5) if arguments.quick else Budget(10, 0.5, 50, 5.0)
    for case in cases():
        if arguments.only in case.name:
            run(case, budget, arguments.threads, console)


if __name__ == "__main__":
    main()
