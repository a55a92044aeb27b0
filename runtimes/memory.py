"""Memory of an artifact, measured in a fresh process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.errors import MeasureError
from runtimes.records import Memory

_TIMEOUT_S = 600
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
    with tempfile.TemporaryDirectory(prefix="weightspace-") as folder:
        inputs = Path(folder) / "feeds.npz"
        np.savez(inputs, *feeds.values(), allow_pickle=False)
        request = {
            "path": str(path.parent.resolve() / path.name),
            "feeds": str(inputs),
            "names": list(feeds),
            "threads": threads,
            "options": dict(options or {}),
            "runs": runs,
        }
        command = [sys.executable, "-P", "-m", "runtimes.memory_child", json.dumps(request)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(
                        [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
                    ),
                },
            )
        except subprocess.TimeoutExpired as error:
            raise MeasureError(f"{path.name} did not finish within {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MeasureError(f"measuring {path.name} failed: {lines[-1]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return FreshRun(answer["load_ms"], answer["first_ms"], Memory(**answer["memory"]))
