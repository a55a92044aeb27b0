"""A folder with the agent and a request in it, as a device has it, and the agent run there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from devices import agent
from runtimes import litert, ort
from tests.runtimes.models import matmul, random_weight, save
from tests.runtimes.tflite_models import linear

COLUMNS = 32
BRIEF = {"warmup_runs": 2, "warmup_s": 0.0, "runs": 5, "seconds": 0.0, "most_runs": 100}
LONG = {"warmup_runs": 2, "warmup_s": 0.0, "runs": 5, "seconds": 100.0, "most_runs": 10**9}


def onnx_file(folder, name="net.onnx"):
    return save(matmul(random_weight(COLUMNS, 8)), folder / name)


def tflite_file(folder, name="net.tflite"):
    return linear(folder / name, random_weight(COLUMNS, 8).T.copy())


def entry(path, *, bare=None, parity=None):
    return {
        "id": path.name,
        "format": path.suffix.removeprefix("."),
        "path": path.name,
        "options": {},
        "bare": bare,
        "parity": parity,
    }


def prepare(folder, entries, *, sizes=(1, 4), budget=BRIEF, **changes):
    """Write the request and all that it names but the artifacts."""
    shutil.copy(agent.__file__, folder / "agent.py")
    generator = np.random.default_rng(0)
    listed = []
    for size in sizes:
        feeds = generator.standard_normal((size, COLUMNS)).astype(np.float32)
        np.savez(folder / f"feeds-{size}.npz", feeds)
        listed.append({"size": size, "feeds": f"feeds-{size}.npz"})
    shutil.copy(litert.warm_up_model(folder), folder / "warm-up.tflite")
    request = {
        "schema": 1,
        "run": "the tests",
        "threads": 1,
        "axis": "batch",
        "memory_runs": 2,
        "budget": budget,
        "sizes": listed,
        "feed_names": ["x"],
        "warm_up": {"onnx": ort.warm_up_model(folder).name, "tflite": "warm-up.tflite"},
        "trtexec": "trtexec",
        "artifacts": entries,
        **changes,
    }
    (folder / "request.json").write_text(json.dumps(request))


def start(folder, *flags, python=sys.executable, **settings):
    return subprocess.Popen(
        [python, str(folder / "agent.py"), *flags, str(folder / "request.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def answer_of(folder: Path):
    return json.loads((folder / "answer.json").read_text())


def run(folder, **settings):
    """Run the agent to its end; gives its answer."""
    with start(folder, **settings) as process:
        # Not communicate: that would close the input, which ends the agent.
        errors = process.stderr.read()
        output = process.stdout.read()
        assert process.wait() in (0, agent.UNPREPARED), errors
    assert json.loads(output.splitlines()[-1])["weightspace"] == agent.SCHEMA
    assert len(output.splitlines()) == 1
    return answer_of(folder)
