"""Memory of an artifact, measured in a fresh process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtimes import backend_module, require_measurable
from runtimes.fresh import in_fresh_process, save_feeds
from runtimes.records import Memory

_CHILD = "runtimes.memory_child"


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
    """Load and run an artifact in a new process and read that process's memory.

    Args:
        feeds: input name to array.
        options: session options, as in the manifest.
        runs: inferences before the memory is read.

    Raises:
        MeasureError: the process failed or did not end; its last line is given.
        BadFileError: no runtime here runs files of this suffix.
    """
    path = path.parent.resolve() / path.name  # as the kernel names what is mapped
    require_measurable(path)
    module = backend_module(path)
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        folder = Path(scratch)
        request = {
            "path": str(path),
            "warm_up": str(module.warm_up_model(folder)),
            **save_feeds(feeds, folder),
            "threads": threads,
            "options": dict(options or {}),
            "runs": runs,
        }
        answer = in_fresh_process(_CHILD, request, path.name)
        bare = module.write_without_weights(path, folder)
        session_bytes = 0
        if bare:
            request |= {"path": str(bare), "feeds": None}
            session_bytes = in_fresh_process(_CHILD, request, path.name)["loaded_bytes"]
    memory = answer["memory"]
    memory["weights_resident_bytes"] = max(0, memory["weights_resident_bytes"] - session_bytes)
    return FreshRun(answer["load_ms"], answer["first_ms"], Memory(**memory))
