"""What measuring through the device agent adds: its medians beside those of the runtime itself.

Both measure the same files on this machine, each time in a fresh process: the runtime by
``runtimes.bench``, then the agent over the local transport, then the runtime again. A round gives
the agent's median over the mean of the two beside it; the median over the rounds must lie within
3 %. Where the two equal measurements beside it differ by more than that, the machine is too busy to
tell, and no verdict is given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from devices.device import Device
from devices.measure import BATCH, Candidate, make_feeds
from devices.remote import Task, measure_on
from devices.source import resolve
from devices.transports import open_transport
from export.lower.ort import REPACKED, write_form
from export.lower.tflite import write_tflite
from export.onnx_io import specs_of
from export.passes import run_pipeline
from export.records import TensorSpec
from runtimes import open_artifact
from runtimes.bench import Budget, compare
from runtimes.environment import cpu_name

BAR = 0.03
SIZES = (1, 4)
BUDGET = Budget(warmup_runs=10, warmup_s=0.2, runs=50, seconds=1.0)
Medians = dict[str, float]


def write_artifacts(model: str, folder: Path) -> tuple[dict[str, Task], tuple[TensorSpec, ...]]:
    """Write a model in two formats; gives the tasks and the inputs."""
    graph = resolve(model).capture()
    run_pipeline("canonical", graph)
    files = {"onnx": folder / "model.onnx", "tflite": folder / "model.tflite"}
    write_form(graph, REPACKED, files["onnx"])
    write_tflite(graph, files["tflite"])
    tasks = {name: Task(Candidate(path), name) for name, path in files.items()}
    return tasks, specs_of(graph.graph.inputs)


def through_the_agent(tasks: Mapping[str, Task], specs: tuple[TensorSpec, ...]) -> Medians:
    """Measure by the agent, in a folder of its own on this machine."""
    transport = open_transport(Device("this machine", "local", python=sys.executable))
    transport.connect()
    try:
        run = measure_on(transport, tasks, specs, axis=BATCH, sizes=SIZES, budget=BUDGET)
    finally:
        transport.close()
    return {
        f"{name}, {BATCH} {size}": latency.p50
        for name, result in run.results.items()
        for size, latency in result.latency_ms_by_size.items()
    }


def directly(tasks: Mapping[str, Task]) -> Medians:
    """Measure by ``runtimes.bench`` in a fresh process."""
    paths = {name: str(task.candidate.path) for name, task in tasks.items()}
    command = [sys.executable, __file__, "--direct", json.dumps(paths)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Medians = json.loads(done.stdout)
    return found


def _print_direct(paths: Mapping[str, str]) -> None:
    sessions = {name: open_artifact(Path(path)) for name, path in paths.items()}
    specs = sessions["onnx"].inputs
    found = {
        f"{name}, {BATCH} {size}": latency.p50
        for size in SIZES
        for name, latency in compare(sessions, make_feeds(specs, BATCH, size), BUDGET).items()
    }
    print(json.dumps(found))


def main() -> None:
    """Print the ratios of each artifact and size, and fail beyond the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default="vit-pe-fmnist")
    parser.add_argument("--direct", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.direct:
        return _print_direct(json.loads(arguments.direct))
    ratios: dict[str, list[float]] = {}
    unrest: dict[str, list[float]] = {}
    console = Console()
    console.print(f"{arguments.model} on {cpu_name()}, one thread, {arguments.rounds} rounds")
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        tasks, specs = write_artifacts(arguments.model, Path(scratch))
        for _ in range(arguments.rounds):
            before, agent, after = (
                directly(tasks), through_the_agent(tasks, specs), directly(tasks)
            )  # fmt: skip
            for name, p50 in agent.items():
                ratios.setdefault(name, []).append(2 * p50 / (before[name] + after[name]))
                unrest.setdefault(name, []).append(after[name] / before[name])
    table = Table("p50", "agent / runtime", "lowest", "highest", "runtime / itself", "verdict")
    beyond = False
    for name, found in ratios.items():
        ratio, itself = statistics.median(found), unrest[name]
        busy = statistics.median(abs(each - 1) for each in itself) > BAR
        within = abs(ratio - 1) <= BAR
        beyond |= not (busy or within)
        table.add_row(
            name, f"{ratio:.3f}", f"{min(found):.3f}", f"{max(found):.3f}",
            f"{min(itself):.3f} to {max(itself):.3f}",
            "machine too busy" if busy else f"{'within' if within else 'beyond'} {BAR:.0%}",
        )  # fmt: skip
    console.print(table)
    if beyond:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
