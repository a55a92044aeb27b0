"""How far estimates are from this machine: its own figures, measured first, put into a target.

Bandwidth and peak rate are measured on one thread and made into a target, before and after each
model, since a shared machine's speed drifts. The model is timed in ONNX Runtime between them and
estimated for their mean. Printed is the estimate over the measured median: below 1 the machine is
slower than estimated. ``make bench`` runs it; ``--quick`` is shorter.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
import torch
from models import FFNStack, draw_vectors
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from devices.estimate import estimate
from devices.measure import Candidate, axis_of, time_side_by_side
from devices.options import NAIVE
from devices.report.record import Variant
from devices.target import Figure, Target, find_target
from export.capture import capture, trace
from export.lower.ort import CANDIDATES, LATENCY_FIRST, MEMORY_FIRST, write_form
from export.naive import write_naive
from export.onnx_io import load_model, specs_of
from export.passes import run_pipeline
from runtimes.bench import Budget
from runtimes.environment import cpu_name
from runtimes.ort import open_session
from weightspace.models import IMAGE_MODELS

READ_BYTES = 512 * 2**20  # far beyond any cache
MATRIX = 1536
TINY_OPERATORS = 200
QUICK = Budget(warmup_runs=5, warmup_s=0.2, runs=20, seconds=1.0)
FULL = Budget(warmup_runs=10, warmup_s=0.5, runs=50, seconds=3.0)


def rates() -> tuple[float, float]:
    """Measure what one thread reads from memory and computes, in bytes and FLOPs per second."""
    return _read_bytes_per_s(), _flops_per_s()


def target_of(bandwidth: float, peak: float) -> Target:
    """Make a target of rates that were measured here."""

    def figure(value: float) -> Figure:
        return Figure(value, "benchmarks/estimate_check.py", "measured")

    cache = _last_cache_bytes()
    return replace(
        find_target("local"),
        name="measured-here",
        read_at_run_time=False,
        cpu_cores=figure(1),  # the rates are those of one core
        l3_bytes=figure(cache) if cache else None,
        memory_bandwidth_bytes_per_s=figure(bandwidth),
        peak_flops_fp32_per_s=figure(peak),
    )


def _read_bytes_per_s() -> float:
    values = np.ones(READ_BYTES // 4, np.float32)
    return READ_BYTES / _median_s(values.max, 9)


def _flops_per_s() -> float:
    text = f"g (float[{MATRIX}, {MATRIX}] x, float[{MATRIX}, {MATRIX}] w) => (float[m, n] y)"
    seconds = _session_s(text + " { y = MatMul(x, w) }", 15)
    return 2 * MATRIX**3 / seconds


def dispatch_us() -> float:
    """Time what ONNX Runtime takes to start an operator that does next to nothing."""
    names = [f"v{i}" for i in range(TINY_OPERATORS + 1)]
    steps = " ".join(f"{b} = Abs({a})" for a, b in pairwise(names))
    text = f"g (float[4] v0) => (float[4] v{TINY_OPERATORS}) {{ {steps} }}"
    return 1e6 * _session_s(text, 51) / TINY_OPERATORS


def _session_s(text: str, runs: int) -> float:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        path = Path(scratch) / "model.onnx"
        onnx.save(model, path)
        session = open_session(path)
        feeds = {
            spec.name: np.ones([int(size) for size in spec.shape], np.float32)
            for spec in session.inputs
        }
        seconds = _median_s(lambda: session.run(feeds), runs)
        session.close()
    return seconds


def _median_s(run: Callable[[], object], runs: int) -> float:
    run()
    times = []
    for _ in range(runs):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return statistics.median(times)


def _last_cache_bytes() -> int | None:
    """Read the size of the last cache, where Linux tells it."""
    sizes = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    if not sizes:
        return None
    text = sizes[-1].read_text().strip()
    return int(text.removesuffix("K")) * 1024 if text.endswith("K") else int(text)


def cases() -> list[tuple[str, nn.Module, Tensor, dict[int, str], tuple[int, ...]]]:
    """Give each model with its example input, its varying axes and the sizes to time."""
    torch.manual_seed(0)
    tokens = {0: "batch", 1: "sequence"}
    found: list[tuple[str, nn.Module, Tensor, dict[int, str], tuple[int, ...]]] = [
        (f"FFN {layers} x {dim}", FFNStack(layers, dim), torch.randn(2, 5, dim), tokens,
         (1, 16, 128, 197))
        for layers, dim in ((6, 384), (12, 768))
    ]  # fmt: skip
    for name, spec in IMAGE_MODELS.items():
        sizes = (1,) if spec.input_shape[1] > 100 else (1, 4, 16)
        found.append((name, spec.build(), spec.example_inputs()[0], {0: "batch"}, sizes))
    return found


def check(
    name: str, module: nn.Module, example: Tensor, axes: dict[int, str], sizes: tuple[int, ...],
    budget: Budget, table: Table,
) -> list[float]:  # fmt: skip
    """Estimate and time one model; gives the ratios and adds a row for each size."""
    draw_vectors(module)
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        folder = Path(scratch)
        program = trace(module.eval(), (example,), (axes,))
        canonical = capture(program, dynamic_shapes=(axes,)).model
        run_pipeline("canonical", canonical)
        candidates = {f"onnx {NAIVE}": Candidate(folder / "naive.onnx")}
        write_naive(program, folder / "naive.onnx")
        for setting in (LATENCY_FIRST, MEMORY_FIRST):
            candidates[f"onnx {setting}"] = Candidate(folder / f"{setting}.onnx")
            write_form(canonical, CANDIDATES[setting][0], folder / f"{setting}.onnx")
        variants = [
            Variant(setting, "onnx", "onnxruntime", "float32", None, 0, 0, 1.0, "")
            for setting in (NAIVE, LATENCY_FIRST, MEMORY_FIRST)
        ]
        specs = specs_of(canonical.graph.inputs)
        axis = axis_of(specs)[0]
        naive = load_model(folder / "naive.onnx")
        before = rates()
        timed = time_side_by_side(
            candidates, specs, axis=axis, sizes=sizes, threads=1, budget=budget,
            on_step=lambda _: None,
        )  # fmt: skip
        bandwidth, peak = (statistics.mean(pair) for pair in zip(before, rates(), strict=True))
        target = target_of(bandwidth, peak)
        run = estimate(target, variants, canonical, naive, axis=axis, sizes=sizes)
    speed = f"{bandwidth / 1e9:.1f} GB/s, {peak / 1e9:.0f} GFLOPS"
    found = []
    for size in sizes:
        cells = []
        for variant in variants:
            measured = timed[size][variant.id].p50
            ratio = run.of(variant).estimate_ms_by_size[size] / measured
            found.append(ratio)
            cells.append(f"{ratio:.2f} of {measured:.2f} ms")
        table.add_row(name, f"{axis} {size}", *cells, speed)
    return found


def main() -> None:
    """Measure this machine, then print each model's ratios and their range."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a third of the runs")
    budget = QUICK if parser.parse_args().quick else FULL
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    console = Console()
    ratios: list[float] = []
    table = Table("model", "size", "naive", "latency-first", "memory-first", "machine", box=None)
    for case in cases():
        with console.status(case[0]):
            ratios += check(*case, budget=budget, table=table)
    console.print(f"{cpu_name()}, one thread; estimate over the measured median")
    console.print(table)
    console.print(
        f"starting an operator takes {dispatch_us():.1f} us, which is not in the estimate"
    )
    low, middle, high = np.percentile(ratios, [0, 50, 100])
    console.print(f"ratios {low:.2f} to {high:.2f}, median {middle:.2f}, of {len(ratios)}")


if __name__ == "__main__":
    main()
