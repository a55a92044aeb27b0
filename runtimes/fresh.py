"""Run a module of ours in a fresh process: a request in, one line of JSON out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import MeasureError

_TIMEOUT_S = 600
_ROOT = Path(__file__).parents[1]


def in_fresh_process(module: str, request: Mapping[str, Any], name: str) -> Any:
    """Run ``python -m module`` with the request as its argument; gives what it printed last.

    Args:
        name: of the artifact, for messages.

    Raises:
        MeasureError: the process failed, crashed or did not end; its last line is given.
    """
    # -P and the path: a file called onnx.py beside the user must not be taken for the package.
    command = [sys.executable, "-P", "-m", module, json.dumps(request)]
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
        # A process that was killed said nothing of that: its last line is about something else.
        lines = done.stderr.strip().splitlines() if done.returncode > 0 else []
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise MeasureError(f"measuring {name} failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def save_feeds(feeds: Mapping[str, NDArray[np.generic]], folder: Path) -> dict[str, Any]:
    """Write inputs into a folder; gives the entries of a request that find them again."""
    path = folder / "feeds.npz"
    # By position: not every name of an input can be a name in the archive.
    np.savez(path, *feeds.values(), allow_pickle=False)
    return {"feeds": str(path), "names": list(feeds)}


def load_feeds(request: Mapping[str, Any]) -> dict[str, NDArray[np.generic]]:
    """Read the inputs that ``save_feeds`` wrote."""
    with np.load(request["feeds"], allow_pickle=False) as arrays:
        return {name: arrays[f"arr_{i}"] for i, name in enumerate(request["names"])}
