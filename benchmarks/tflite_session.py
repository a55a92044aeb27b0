"""A .tflite file: what it stores, how it runs, and the memory that it takes.

``python benchmarks/tflite_session.py FILE`` prints the memory of a fresh process as JSON.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from export.records import TensorSpec

_MEMORY_RUNS = 3


class TfliteSession:
    """A file in LiteRT's interpreter with XNNPACK, which is its default.

    Args:
        input_names: in the order of the model's arguments. Converters name inputs anew, so the
            place counts: by the number in the name (``args_1``) where there is one.
    """

    def __init__(self, path: Path, input_names: Sequence[str], threads: int = 1) -> None:
        from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

        with _silence():
            self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        details = self._interpreter.get_input_details()
        by_place = sorted(details, key=lambda detail: _place(detail["name"], input_names))
        self._inputs = dict(zip(input_names, by_place, strict=True))
        self._outputs = self._interpreter.get_output_details()
        self.inputs = tuple(_spec(name, detail) for name, detail in self._inputs.items())
        self.outputs = tuple(_spec(detail["name"], detail) for detail in self._outputs)

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run once: input name to array in, output name to array out."""
        for name, detail in self._inputs.items():
            array = feeds[name].astype(detail["dtype"], copy=False)
            self._interpreter.set_tensor(detail["index"], array)
        self._interpreter.invoke()
        return {
            detail["name"]: self._interpreter.get_tensor(detail["index"])
            for detail in self._outputs
        }

    def close(self) -> None:
        """Free the interpreter."""
        self._interpreter = None
        gc.collect()


def stored_bytes_of(path: Path) -> int:
    """Sum the bytes of all distinct buffers that tensors of a .tflite file read."""
    from ai_edge_litert import schema_py_generated as schema  # type: ignore[import-untyped]

    model = schema.Model.GetRootAs(path.read_bytes())
    buffers: set[int] = set()
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        buffers |= {graph.Tensors(j).Buffer() for j in range(graph.TensorsLength())}
    # Bytes that lie behind the flatbuffer, as in a file over 2 GB, are noted by their size alone.
    return sum(max(model.Buffers(i).DataLength(), model.Buffers(i).Size()) for i in buffers)


def anonymous_bytes_of(path: Path, threads: int) -> int:
    """Measure in a fresh process how much anonymous memory loading and running a file takes."""
    command = [sys.executable, __file__, str(path), str(threads)]
    search = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": search},
    )
    return int(json.loads(done.stdout.splitlines()[-1])["anonymous_bytes"])


def _grown_bytes(path: Path, threads: int) -> int:
    """Load the file and run it; zeros will do, as no kernel's memory depends on the values."""
    from ai_edge_litert.interpreter import Interpreter

    before = _anonymous_bytes()  # with the runtime's own code loaded
    with _silence():
        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    for _ in range(_MEMORY_RUNS):
        interpreter.invoke()
    return _anonymous_bytes() - before


def _anonymous_bytes() -> int:
    return sum(part.anonymous for part in psutil.Process().memory_maps(grouped=True))


def _place(name: str, input_names: Sequence[str]) -> int:
    """Find the argument that an input stands for; inputs that tell nothing keep their order."""
    for place, input_name in enumerate(input_names):
        if input_name in name or f"args_{place}" in name:
            return place
    return 0


def _spec(name: str, detail: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(int(size) for size in detail["shape"])
    return TensorSpec(name, np.dtype(detail["dtype"]).name, shape)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hold back what the runtime writes to the standard error by itself."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


if __name__ == "__main__":
    grown = _grown_bytes(Path(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps({"anonymous_bytes": grown}))
