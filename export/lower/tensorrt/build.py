"""Builds an engine here, in a process of its own, where a TensorRT package allows it.

Beside torch and its model a builder may run out of memory, and what it takes it keeps until its
process ends. The process runs the very script that goes to the device.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from export.errors import LoweringError, MissingExtraError
from export.lower.tensorrt import build_engine
from export.lower.tensorrt.api import EXTRA, PACKAGE, installed
from export.lower.tensorrt.build_engine import CLASSIC, RTX

LIMIT = 1.02  # of an engine's weights over unique bytes: it pads each tensor to 256 bytes
_TIMEOUT_S = 3600
_POLL_S = 0.5
_TOLD_EVERY_S = 5


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine that was built on this machine.

    Args:
        library: ``tensorrt`` or ``tensorrt_rtx``.
        bytes: of the file.
        weights_bytes: the builder's own count, less that of an empty network.
        empty_bytes: of the engine of an empty network, built beside it.
        build_s: of the builder alone.
        precision: what an inspector found of the layers' types, in words.
    """

    path: Path
    library: str
    version: str
    bytes: int
    weights_bytes: int
    empty_bytes: int
    build_s: float
    layers: int
    precision: str

    @property
    def words(self) -> str:
        """Which engine it is, and what it is not."""
        if self.library == RTX:
            return (
                f"engine of TensorRT-RTX {self.version}, built here without looking for a GPU: it "
                "shows the ties and runs on no Jetson"
            )
        return f"engine of TensorRT {self.version} for this machine's GPU; it runs on no other"


def usable_module() -> str:
    """Choose the package that can build here: the classic one with a GPU, else that for RTX.

    Raises:
        MissingExtraError: neither is installed.
    """
    found = installed()
    if CLASSIC in found and _has_gpu():
        return CLASSIC
    if RTX in found:
        return RTX
    raise MissingExtraError.of(PACKAGE, EXTRA)


def suffix_of(module: str) -> str:
    """The suffix of an engine's file: one for RTX says so."""
    return ".rtx.engine" if module == RTX else ".engine"


def _has_gpu() -> bool:
    """Whether a driver's device is there; nothing is loaded for it."""
    places = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu")  # PC, Jetson to 5, from 6 on
    return any(Path(place).exists() for place in places)


def build(
    recipe: Path, engine: Path, module: str, on_step: Callable[[str], None] | None = None
) -> BuiltEngine:
    """Build the engine of a recipe.

    Args:
        recipe: the file; the prepared graph lies beside it.
        module: as given by ``usable_module``.
        on_step: called with words and the seconds gone, every few seconds.

    Raises:
        LoweringError: the parser refused nodes, the builder gave up, or its process was killed.
    """
    tell = on_step or (lambda _: None)
    words = f"building {engine.name}"
    script = Path(build_engine.__file__)
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        facts_path = Path(scratch) / "facts.json"
        command = [sys.executable, "-P", str(script), str(recipe), "--module", module,
                   "--engine", str(engine), "--facts", str(facts_path), "--no-timings"]  # fmt: skip
        code, errors = _run(command, words, tell)
        if code != 0:
            raise LoweringError(f"{engine.name} was not built: {_reason(code, errors)}")
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
    empty = facts["empty"]
    return BuiltEngine(
        path=engine,
        library=facts["library"],
        version=facts["version"],
        bytes=facts["bytes"],
        weights_bytes=facts["weights_bytes"] - empty["weights_bytes"],
        empty_bytes=empty["bytes"],
        build_s=facts["build_s"],
        layers=facts["layers"],
        precision=facts["precision"],
    )


def _run(command: list[str], words: str, tell: Callable[[str], None]) -> tuple[int, str]:
    """Run to the end, whatever ends it; gives the exit code and what stood on standard error."""
    with _process(command) as process:
        captured: list[str] = []
        stream = process.stderr
        assert stream is not None
        reader = threading.Thread(target=lambda: captured.append(stream.read()))
        reader.start()
        gone_s = 0.0
        while True:
            try:
                process.wait(_POLL_S)
                break
            except subprocess.TimeoutExpired:
                gone_s += _POLL_S
                if gone_s % _TOLD_EVERY_S == 0:
                    tell(f"{words}: {gone_s:.0f} s")
                if gone_s > _TIMEOUT_S:
                    raise LoweringError(f"{words} did not end within {_TIMEOUT_S} s") from None
        reader.join()
        return process.returncode, "".join(captured)


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A child that does not outlive this block: Ctrl-C and errors end it as well."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "CUDA_MODULE_LOADING": "LAZY"},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _reason(code: int, errors: str) -> str:
    if code == -signal.SIGKILL:
        return (
            "its process was killed, most likely for want of memory; close other programs, or "
            "build it on the device with build_engine.py"
        )
    if code < 0:
        return f"its process ended with signal {signal.Signals(-code).name}"
    if code == 3:
        return "its layers do not have the precision that was asked for"
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
