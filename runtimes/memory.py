"""Memory of an artifact, measured in a fresh process of its own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.errors import MeasureError
from runtimes.records import Memory

_TIMEOUT_S = 600
# Shapes and scalars stay in the graph: without them it could not be loaded.
_SMALLEST_WEIGHT_ELEMENTS = 64
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class FreshRun:
    """One cold start: loading, the first inference, and the memory that both took."""

    load_ms: float
    first_ms: float
    memory: Memory


def measure_fresh(
    path: Path,
    feeds: Mapping[str, NDArray[np.generic]],
    *,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    runs: int = 5,
) -> FreshRun:
    """Load and run an ONNX artifact in a new process and read that process's memory.

    Args:
        feeds: input name to array.
        options: session configuration entries, as in the manifest.
        runs: inferences before the memory is read.

    Raises:
        MeasureError: the process failed or did not end; its last line is given.
    """
    path = path.parent.resolve() / path.name  # as the kernel names what is mapped
    with tempfile.TemporaryDirectory(prefix="weightspace-") as folder:
        inputs = Path(folder) / "feeds.npz"
        np.savez(inputs, *feeds.values(), allow_pickle=False)
        request = {
            "path": str(path),
            "feeds": str(inputs),
            "names": list(feeds),
            "threads": threads,
            "options": dict(options or {}),
            "runs": runs,
        }
        answer = _in_fresh_process(request, path.name)
        bare = {**request, "path": str(_without_weights(path, Path(folder))), "feeds": None}
        session_bytes = _in_fresh_process(bare, path.name)["loaded_bytes"]
    memory = answer["memory"]
    memory["weights_resident_bytes"] = max(0, memory["weights_resident_bytes"] - session_bytes)
    return FreshRun(answer["load_ms"], answer["first_ms"], Memory(**memory))


def _without_weights(path: Path, folder: Path) -> Path:
    """Write the same graph with its weights as plain inputs, for which nothing is stored.

    What loading it takes is what the session itself takes: nodes, kernels, names.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise MeasureError(f"measuring {path.name} failed: it is no readable model") from error
    graph = model.graph
    inputs = {value.name for value in graph.input}
    kept = []
    for tensor in graph.initializer:
        if math.prod(tensor.dims) < _SMALLEST_WEIGHT_ELEMENTS:
            kept.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    del graph.initializer[:]
    graph.initializer.extend(kept)
    bare = folder / "without weights.onnx"
    onnx.save(model, bare)
    return bare


def _in_fresh_process(request: Mapping[str, Any], name: str) -> dict[str, Any]:
    # -P and the path: a file called onnx.py beside the user must not be taken for the package.
    command = [sys.executable, "-P", "-m", "runtimes.memory_child", json.dumps(request)]
    before = os.environ.get("PYTHONPATH")
    search = os.pathsep.join([str(_ROOT), *([before] if before else [])])
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env={**os.environ, "PYTHONPATH": search},
        )
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"{name} did not finish within {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MeasureError(f"measuring {name} failed: {lines[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
