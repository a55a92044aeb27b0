"""Tied models in LiteRT: ours beside litert-torch's own .tflite of the same torch model.

Bytes as stored; latency at batch 1 in one process in turns, as ratios of medians; memory, each in
a process of its own; the seconds from a torch model to a file. The first run makes an environment
for litert-torch (2 GB). ``make bench`` runs all; ``--quick`` takes a few models and a tenth of the
time.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import litert_torch_env as litert_torch
import numpy as np
import onnx_ir as ir
import torch
from litert_torch_env import ToolError
from models import NAMES, Model, make
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tflite_session import TfliteSession, anonymous_bytes_of, stored_bytes_of
from torch import nn

from export.capture import capture, trace
from export.errors import WeightspaceError
from export.lower.tflite import write_tflite
from export.passes import run_pipeline
from runtimes.bench import Budget, compare, ratio_of_medians
from runtimes.environment import cpu_name
from runtimes.records import Latency

THEIRS, LATENCY_FIRST, MEMORY_FIRST, HALF = "theirs", "latency-first", "memory-first", "float16"
# Name to setting and precision.
OURS = {
    LATENCY_FIRST: (LATENCY_FIRST, "float32"),
    MEMORY_FIRST: (MEMORY_FIRST, "float32"),
    HALF: (LATENCY_FIRST, "float16"),
}
QUICK_NAMES = (
    "vit-pe-fmnist", "resnet-pe-fmnist", "vit-pe-ti16", "ffn-6x384-s16", "ffn-6x384-s128",
    "conv-bottleneck", "minilm-l6-s16",
)  # fmt: skip
_FILES = (THEIRS, "ours", HALF)
_MISSING = "-"


@dataclass
class Row:
    """What is known of one model so far; a variant that failed is missing."""

    name: str
    unique_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)
    lowering_s: dict[str, float] = field(default_factory=dict)
    grown_bytes: dict[str, int] = field(default_factory=dict)
    file_bytes: dict[str, int] = field(default_factory=dict)
    stored_bytes: dict[str, int] = field(default_factory=dict)
    latency: dict[str, Latency] = field(default_factory=dict)
    anonymous_bytes: dict[str, int] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def write_theirs(row: Row, folder: Path) -> dict[str, Path]:
    """Convert with litert-torch."""
    try:
        done = litert_torch.convert(row.name, folder)
    except ToolError as error:
        row.failures[THEIRS] = str(error)
        return {}
    row.seconds[THEIRS] = done.seconds
    return {THEIRS: done.path}


def write_ours(row: Row, model: Model, folder: Path) -> dict[str, Path]:
    """Lower with weightspace, in every setting; each time starts at the torch model as theirs."""
    paths: dict[str, Path] = {}
    start = perf_counter()
    try:
        canonical = _canonical(model)
    except WeightspaceError as error:
        row.failures["ours"] = str(error)
        return {}
    captured_s = perf_counter() - start
    for name, (setting, precision) in OURS.items():
        path = folder / f"{name}.tflite"
        before = _peak_from_now()
        start = perf_counter()
        try:
            write_tflite(canonical, path, setting=setting, precision=precision)
        except WeightspaceError as error:
            row.failures[name] = str(error)
            continue
        row.lowering_s[name] = perf_counter() - start
        row.seconds[name] = captured_s + row.lowering_s[name]
        row.grown_bytes[name] = _status_bytes("VmHWM") - before
        paths[name] = path
    return paths


def _peak_from_now() -> int:
    """Let the kernel count this process's peak memory anew (Linux, proc(5)); gives what it has."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _canonical(model: Model) -> ir.Model:
    """Capture at batch 1, as litert-torch does."""
    captured = capture(trace(model.module, model.inputs), input_names=model.input_names)
    run_pipeline("canonical", captured.model)
    return captured.model


def measure(
    row: Row, model: Model, paths: Mapping[str, Path], budget: Budget, threads: int
) -> None:
    """Run all files beside one another, then each in a process for its memory."""
    feeds = {
        name: tensor.numpy() for name, tensor in zip(model.input_names, model.inputs, strict=True)
    }
    with torch.no_grad():
        expected = model.module(*model.inputs).numpy()
    sessions: dict[str, TfliteSession] = {}
    for name, path in paths.items():
        row.file_bytes[name] = path.stat().st_size
        row.stored_bytes[name] = stored_bytes_of(path)
        try:
            session = TfliteSession(path, model.input_names, threads)
            row.error[name] = _relative_error(session, feeds, expected)
        except (RuntimeError, ValueError) as error:  # what the interpreter raises
            row.failures[name] = f"LiteRT cannot run it: {error}"
            continue
        sessions[name] = session
    try:
        row.latency = compare(sessions, feeds, budget) if sessions else {}
    finally:
        for session in sessions.values():
            session.close()
    for name in sessions:
        row.anonymous_bytes[name] = anonymous_bytes_of(paths[name], threads)


def _relative_error(
    session: TfliteSession,
    feeds: Mapping[str, NDArray[np.generic]],
    expected: NDArray[np.float32],
) -> float:
    """Largest difference from torch over torch's largest value: a wrong model is quick too."""
    (output,) = session.run(feeds).values()
    if output.shape != expected.shape:
        raise ValueError(f"its output is {output.shape}, torch's is {expected.shape}")
    found = output.astype(np.float32)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def tables(rows: list[Row]) -> list[Table]:
    """Lay out what was measured, so that each table fits a terminal of 80 columns."""
    fp32, variants = (THEIRS, LATENCY_FIRST, MEMORY_FIRST), (THEIRS, *OURS)
    stored = _table("stored bytes / unique bytes at the same precision", "unique MB", *_FILES)
    files = _table("file, MB", "unique MB", *_FILES)
    latency = _table("latency at batch 1: theirs in ms, ours / theirs", "ms", *OURS)
    error = _table("largest difference from torch / torch's largest value", *variants)
    memory = _table("anonymous memory after loading and running, MB", *variants)
    seconds = _table("from torch model to file, s", *fp32)
    lowering = _table("from ONNX graph to .tflite", "s", "peak memory / unique bytes")
    for row in rows:
        unique_mb = f"{row.unique_bytes / 1e6:.2f}"
        unique = {THEIRS: row.unique_bytes, LATENCY_FIRST: row.unique_bytes}
        unique[HALF] = row.unique_bytes // 2
        ratios = (_over(row.stored_bytes.get(name), unique[name], 3) for name in unique)
        stored.add_row(row.name, unique_mb, *ratios)
        sizes = (_over(row.file_bytes.get(name), 1e6) for name in unique)
        files.add_row(row.name, unique_mb, *sizes)
        theirs = row.latency.get(THEIRS)
        latency.add_row(
            row.name,
            f"{theirs.p50:.3f}" if theirs else _MISSING,
            *(_latency_over(row.latency.get(name), theirs) for name in OURS),
        )
        errors = (f"{row.error[n]:.0e}" if n in row.error else _MISSING for n in variants)
        error.add_row(row.name, *errors)
        grown = (_over(row.anonymous_bytes.get(name), 1e6, 1) for name in variants)
        memory.add_row(row.name, *grown)
        seconds.add_row(row.name, *(_over(row.seconds.get(name), 1, 1) for name in fp32))
        lowering.add_row(
            row.name,
            _over(row.lowering_s.get(LATENCY_FIRST), 1),
            _over(row.grown_bytes.get(LATENCY_FIRST), row.unique_bytes),
        )
    return [stored, files, latency, error, memory, seconds, lowering]


def _table(title: str, *columns: str) -> Table:
    table = Table("model", title=title, title_justify="left")
    table.columns[0].no_wrap = True
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _latency_over(ours: Latency | None, theirs: Latency | None) -> str:
    return f"{ratio_of_medians(ours, theirs):.2f}" if ours and theirs else _MISSING


def _over(value: float | None, unit: float, digits: int = 2) -> str:
    return _MISSING if value is None else f"{value / unit:.{digits}f}"


def measure_model(
    name: str, arguments: argparse.Namespace, budget: Budget, tell: Callable[[str], None]
) -> Row:
    """Make one model's files, run them and delete them."""
    model = make(name)
    row = Row(name, model.unique_bytes)
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        paths: dict[str, Path] = {}
        if not arguments.ours_alone:
            tell(f"{name}: converting with litert-torch")
            paths |= write_theirs(row, Path(scratch))
        tell(f"{name}: lowering with weightspace")
        paths |= write_ours(row, model, Path(scratch))
        tell(f"{name}: measuring")
        measure(row, model, paths, budget, arguments.threads)
    return row


def run(names: list[str], arguments: argparse.Namespace, rows: list[Row], console: Console) -> None:
    """Measure one model after the other; ``rows`` grows, so an interrupt keeps what is done.

    Raises:
        ToolError: the environment of litert-torch cannot be made.
    """
    budget = Budget(5, 0.1, 12, 0.5) if arguments.quick else Budget(10, 0.5, 50, 5.0)
    with console.status("starting") as status:
        if not arguments.ours_alone:
            status.update("installing litert-torch in an environment of its own (2 GB, once)")
            litert_torch.make_environment()
        _canonical(Model("", nn.Linear(4, 4), (torch.ones(1, 4),), ("x",)))  # imports, not timed
        for name in names:
            rows.append(measure_model(name, arguments, budget, status.update))
            for variant, reason in rows[-1].failures.items():
                console.print(f"{name}, {variant}: failed: {reason}", markup=False)


def main() -> int:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few models, a tenth of the time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="models whose name holds this text")
    parser.add_argument("--ours-alone", action="store_true", help="do without litert-torch")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    among = NAMES if arguments.only or not arguments.quick else QUICK_NAMES
    names = [name for name in among if arguments.only in name]
    if not names:
        parser.error(f"no model's name holds {arguments.only!r}; there are {', '.join(NAMES)}")
    console = Console()
    console.print(f"{cpu_name()}, {arguments.threads} thread(s); ratios of medians in one run")
    rows: list[Row] = []
    status = 0
    try:
        run(names, arguments, rows, console)
    except ToolError as error:
        console.print(str(error), style="red", markup=False)
        status = 2
    except KeyboardInterrupt:
        console.print(f"interrupted; {len(rows)} of {len(names)} models were measured")
        status = 130
    if rows:
        console.print(*tables(rows), sep="\n")
    return status or int(any(row.failures for row in rows))


if __name__ == "__main__":
    sys.exit(main())
