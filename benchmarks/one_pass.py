"""The one-pass tied FFN beside the naive export and the best stock form, in ONNX Runtime.

Median latency over that of the naive export, in one process in turns, with weights hot (left in
the caches by the run before) and cold (pushed out of them before each run, and a small model of the
same form run then, so that the runtime itself is not cold too); beside it the machine's streaming
bandwidth, measured in the same turns. At length 1 once more with the runtime left cold. One thread
is timed by its processor time, in which other programs' turns on the core do not count; two by the
clock on the wall, on an idle machine.
``make bench`` runs it; ``--quick`` measures less.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, thread_time

import numpy as np
import onnx
import torch
from models import FFNStack, draw_vectors
from rich.console import Console
from rich.table import Table

from export.capture import capture, trace
from export.lower.ort import CANDIDATES, LATENCY_FIRST, write_form
from export.naive import write_naive
from export.passes import run_pipeline
from runtimes.environment import cpu_name
from runtimes.kernels import library, why_not
from runtimes.kernels.compile import compiler

SIZES = (1, 4, 16, 64, 128, 197)
STACKS = ((6, 384), (12, 768))
EVICTED_BYTES = 256 << 20  # read before a cold run: more than the caches hold
ONE_PASS = "one pass"
HOT, COLD, ALL_COLD = "hot", "cold", "all cold"  # the last: the runtime's code and data as well
SMALL = 8  # the width of a stack whose weights are next to nothing
_MEMORY = """
import json, sys, numpy, onnxruntime
path, dim, kernels = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
if kernels: options.register_custom_ops_library(kernels)
session = onnxruntime.InferenceSession(path, options)
feeds = {session.get_inputs()[0].name: numpy.zeros((1, 1, int(dim)), numpy.float32)}
for _ in range(5): session.run(None, feeds)
kb = dict(line.split()[:2] for line in open("/proc/self/smaps_rollup").readlines()[1:])
print(json.dumps([1024 * int(kb[key]) for key in ("Rss:", "Anonymous:")]))
"""


@dataclass(frozen=True)
class Turn:
    """Something to time: called once for each sample."""

    name: str
    call: Callable[[], object]
    small: Callable[[], object]  # the same code on next to no weights


def write_one_pass(stack: FFNStack, path: Path) -> None:
    """Write the stack with one operator for each tied FFN, its weights in a file to be mapped."""
    nodes, stored, value = [], [], "x"
    for i, layer in enumerate(stack.layers):
        tensors = {"w": layer.weight, "b1": layer.hidden_bias, "b2": layer.bias}
        for name, tensor in tensors.items():
            array = tensor.detach().numpy()
            stored.append(onnx.numpy_helper.from_array(array, f"{name}.{i}"))
        inputs = [value, *(f"{name}.{i}" for name in tensors)]
        nodes.append(
            onnx.helper.make_node(
                "TiedFFN", inputs, [f"t.{i}"], domain="weightspace", activation="gelu"
            )
        )
        nodes.append(onnx.helper.make_node("Add", [value, f"t.{i}"], [f"x.{i}"]))
        value = f"x.{i}"
    dim = stack.layers[0].weight.shape[1]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", "sequence", dim])
        for name in ("x", value)
    ]
    graph = onnx.helper.make_graph(nodes, "stack", ends[:1], ends[1:], stored)
    domains = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("weightspace", 1)]
    model = onnx.helper.make_model(graph, opset_imports=domains, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")


def write_all(layers: int, dim: int, folder: Path) -> tuple[dict[str, Path], int]:
    """Write the naive export, the stock forms and the one-pass form; with the unique bytes."""
    torch.manual_seed(0)
    stack = FFNStack(layers, dim)
    draw_vectors(stack)
    axes = {0: "batch", 1: "sequence"}
    program = trace(stack.eval(), (torch.randn(2, 5, dim),), (axes,))
    paths = {"naive": folder / "naive.onnx"}
    write_naive(program, paths["naive"])
    captured = capture(program, dynamic_shapes=(axes,))
    run_pipeline("canonical", captured.model)
    for form in (form for form in CANDIDATES[LATENCY_FIRST] if not form.has_kernel):
        paths[form.pipeline] = folder / f"{form.pipeline}.onnx"
        write_form(captured.model, form, paths[form.pipeline])
    paths[ONE_PASS] = folder / "one-pass.onnx"
    write_one_pass(stack, paths[ONE_PASS])
    return paths, captured.ties.unique_bytes


def open_all(
    paths: Mapping[str, Path], kernels: Path, threads: int
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Open each file; the sessions' threads do not spin, as they are timed in turns."""
    import onnxruntime

    def opened(path: Path) -> Callable[[np.ndarray], np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.register_custom_ops_library(str(kernels))
        session = onnxruntime.InferenceSession(str(path), options)
        (spec,) = session.get_inputs()
        return lambda x: session.run(None, {spec.name: x})[0]

    return {name: opened(path) for name, path in paths.items()}


def stream_reader(folder: Path, threads: int) -> Callable[[np.ndarray], None]:
    """Compile a loop that reads an array once, each thread its share."""
    path = folder / "stream.so"
    source = Path(__file__).with_name("stream.cpp")
    program = compiler(platform.machine())
    assert program is not None
    flags = ("-O3", "-march=native", "-shared", "-fPIC")
    subprocess.run([program, *flags, str(source), "-o", str(path)], check=True)
    function = ctypes.CDLL(str(path)).stream
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_float
    pool = ThreadPoolExecutor(threads)

    def read(array: np.ndarray) -> None:
        if threads == 1:
            function(array.ctypes.data, array.size)
            return
        list(pool.map(lambda part: function(part.ctypes.data, part.size), np.split(array, threads)))

    return read


def medians(
    turns: list[Turn],
    clock: Callable[[], float],
    *,
    rounds: int,
    seconds: float,
    evict: Callable[[], None],
    state: str,
) -> dict[str, float]:
    """Time in turns; the order is reversed each round. Hot turns run twice and count once."""
    samples: dict[str, list[float]] = {turn.name: [] for turn in turns}
    start, done = perf_counter(), 0
    while done < rounds or perf_counter() - start < seconds:
        for turn in turns if done % 2 else reversed(turns):
            if state != HOT:
                evict()
            if state != ALL_COLD:
                (turn.call if state == HOT else turn.small)()
            before = clock()
            turn.call()
            samples[turn.name].append(clock() - before)
        done += 1
    return {name: float(np.median(values)) for name, values in samples.items()}


def resident(path: Path, dim: int, kernels: str) -> tuple[int, int]:
    """Resident and anonymous bytes of a new process that has run the model at length 1."""
    command = (sys.executable, "-c", _MEMORY, str(path), str(dim), kernels)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rss, anonymous = json.loads(done.stdout)
    return rss, anonymous


def run(layers: int, dim: int, threads: int, quick: bool, console: Console) -> None:
    """Print one stack's table."""
    kernels = library(platform.machine())
    if kernels is None:
        sys.exit(str(why_not(platform.machine())))
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        folder = Path(scratch)
        paths, unique = write_all(layers, dim, folder)
        models = open_all(paths, kernels, threads)
        (folder / "small").mkdir()
        small = open_all(write_all(layers, SMALL, folder / "small")[0], kernels, threads)
        read = stream_reader(folder, threads)
        others = np.ones(EVICTED_BYTES // 4, np.float32)  # zeros would be one page, read many times
        stored = np.ones(unique // 4 // 256 * 256, np.float32)
        stock = [name for name in paths if name not in ("naive", ONE_PASS)]
        table = Table(
            "weights", "length", "naive ms", "best stock form", ONE_PASS, "difference",
            "read once, ms", "GB/s", "of the stream",
            title=f"FFN {layers} x {dim}, {unique / 1e6:.1f} MB, {threads} thread(s)",
        )  # fmt: skip
        for state in (HOT, COLD, ALL_COLD):
            for size in SIZES if state != ALL_COLD else SIZES[:1]:
                x = np.random.default_rng(size).standard_normal((1, size, dim), np.float32)
                narrow = np.ascontiguousarray(x[..., :SMALL])
                answers = {name: model(x) for name, model in models.items()}
                error = np.abs(answers[ONE_PASS] - answers["naive"]).max()
                turns = [
                    Turn(name, partial(model, x), partial(small[name], narrow))
                    for name, model in models.items()
                ]
                turns.append(Turn("stream", partial(read, stored), partial(read, stored[:256])))
                p50 = medians(
                    turns,
                    thread_time if threads == 1 else perf_counter,
                    rounds=4 if quick else 12,
                    seconds=0.7 if quick else 6.0,
                    evict=partial(read, others),
                    state=state,
                )
                ratio = {name: value / p50["naive"] for name, value in p50.items()}
                table.add_row(
                    state, str(size), f"{p50['naive'] * 1e3:.3f}",
                    f"{min(ratio[name] for name in stock):.2f}", f"{ratio[ONE_PASS]:.2f}",
                    f"{error / np.abs(answers['naive']).max():.0e}", f"{p50['stream'] * 1e3:.3f}",
                    f"{unique / p50[ONE_PASS] / 1e9:.1f}",
                    f"{p50['stream'] / p50[ONE_PASS] * unique / stored.nbytes:.0%}",
                )  # fmt: skip
        console.print(table)
        baseline = folder / "baseline.onnx"
        write_one_pass(FFNStack(1, SMALL), baseline)
        rss, anonymous = (
            (one - other) / unique
            for one, other in zip(
                resident(paths[ONE_PASS], dim, str(kernels)),
                resident(baseline, SMALL, str(kernels)),
                strict=True,
            )
        )
        console.print(f"memory / unique, one pass: resident {rss:.2f}, anonymous {anonymous:.2f}\n")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="stacks whose name holds this text")
    arguments = parser.parse_args()
    console = Console(width=120)
    console.print(f"{cpu_name()}; ratios of medians to the naive export in one run")
    for layers, dim in STACKS:
        if arguments.only in f"{layers}x{dim}":
            for threads in arguments.threads:
                run(layers, dim, threads, arguments.quick, console)


if __name__ == "__main__":
    main()
