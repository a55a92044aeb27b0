"""The process that ``runtimes.memory`` measures: load, run, read /proc, print one JSON line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from runtimes import open_artifact
from runtimes.fresh import load_feeds
from runtimes.session import Session

_SMAPS = Path("/proc/self/smaps_rollup")
_STATUS = Path("/proc/self/status")


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Measure one artifact.

    Args:
        request: ``path``, ``warm_up`` (a small model of the same format), ``feeds`` (an .npz, or
            None to load the artifact and not run it), ``names`` of the feeds, ``threads``,
            ``options`` and ``runs``.
    """
    if request["feeds"] is None:
        return {"loaded_bytes": _loaded_bytes(request)}
    feeds = load_feeds(request)
    _warm_the_runtime(request)
    baseline = _smaps()
    start = perf_counter_ns()
    session = _open(request)
    load_ms = (perf_counter_ns() - start) / 1e6
    loaded = _smaps()
    start = perf_counter_ns()
    session.run(feeds)
    first_ms = (perf_counter_ns() - start) / 1e6
    for _ in range(request["runs"]):
        session.run(feeds)
    settled = _smaps()
    peak = _peak_bytes()
    mapped = _mapped_bytes(Path(request["path"]))
    return {
        "load_ms": load_ms,
        "first_ms": first_ms,
        "memory": {
            "baseline_rss_bytes": baseline["Rss"],
            "loaded_rss_bytes": loaded["Rss"],
            "settled_rss_bytes": settled["Rss"],
            "peak_rss_bytes": peak,
            "anonymous_bytes": settled["Anonymous"] - baseline["Anonymous"],
            "file_bytes": _file_bytes(settled) - _file_bytes(baseline),
            "weights_resident_bytes": loaded["Anonymous"] - baseline["Anonymous"] + mapped,
        },
    }


def _loaded_bytes(request: dict[str, Any]) -> int:
    """Load an artifact and give the anonymous memory that this took."""
    _warm_the_runtime(request)
    before = _smaps()["Anonymous"]
    session = _open(request)
    grown = _smaps()["Anonymous"] - before
    session.close()
    return grown


def _open(request: dict[str, Any]) -> Session:
    return open_artifact(
        Path(request["path"]), threads=request["threads"], options=request["options"]
    )


def _warm_the_runtime(request: dict[str, Any]) -> None:
    """Load the runtime's own code and pools, so that the baseline holds them."""
    session = open_artifact(Path(request["warm_up"]), threads=request["threads"])
    session.run(
        {
            spec.name: np.ones([64 if isinstance(n, str) else n for n in spec.shape], spec.dtype)
            for spec in session.inputs
        }
    )
    session.close()


def _smaps() -> dict[str, int]:
    """Read the sums of this process's memory map, in bytes (Linux, proc(5))."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", _SMAPS.read_text(), re.MULTILINE)
    return {key: int(value) * 1024 for key, value in found}


def _file_bytes(smaps: dict[str, int]) -> int:
    return smaps["Rss"] - smaps["Anonymous"]


def _mapped_bytes(artifact: Path) -> int:
    """Sum the resident pages that are mapped from the artifact's own files."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        mapping = re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)", line)
        if mapping:
            file = Path(mapping.group(1))
            inside = file.parent == artifact.parent and file.name.startswith(artifact.name)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def _peak_bytes() -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))) + "\n")
