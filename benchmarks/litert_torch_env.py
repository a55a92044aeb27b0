"""An environment of litert-torch's own, and conversions in it.

Its pins exclude ours (see litert-torch.txt), so it is never imported here: it runs as a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_PINS = _HERE / "litert-torch.txt"
_SCRIPT = _HERE / "litert_torch_export.py"
FOLDER = _HERE.parent / ".venv-litert-torch"


class ToolError(Exception):
    """The other tool could not be set up or failed; the text says why, in one line."""


@dataclass(frozen=True)
class Conversion:
    """A file written by litert-torch.

    Args:
        seconds: of the conversion alone, without starting Python or making the model.
        grown_bytes: by how much the conversion raised the process's peak memory.
    """

    path: Path
    seconds: float
    grown_bytes: int


def ready(folder: Path = FOLDER) -> bool:
    """Whether the environment is there, with the pins as they are now."""
    stamp = _stamp(folder)
    return stamp.is_file() and stamp.read_text() == _PINS.read_text()


def make_environment(folder: Path = FOLDER) -> None:
    """Make the environment, or complete one that was interrupted: some 2 GB.

    Raises:
        ToolError: the packages could not be had.
    """
    if ready(folder):
        return
    try:
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([_python(folder), "-m", "pip", "install", "--quiet", "-r", str(_PINS)])
    except ToolError as error:
        raise ToolError(
            f"litert-torch cannot be installed in {folder.name} ({error}); connect to a package "
            "registry and try again, or measure ours alone with --ours-alone"
        ) from error
    _stamp(folder).write_text(_PINS.read_text())


def convert(name: str, out: Path, folder: Path = FOLDER) -> Conversion:
    """Write ``out/NAME.tflite`` with litert-torch's defaults.

    Raises:
        ToolError: the conversion failed, with its last line.
    """
    answer = json.loads(_run([_python(folder), str(_SCRIPT), "--here", str(out), name]))
    grown = answer["peak_rss_bytes"] - answer["loaded_rss_bytes"]
    return Conversion(Path(answer["path"]), answer["convert_s"], grown)


def _python(folder: Path) -> str:
    return str(folder / "bin" / "python")


def _stamp(folder: Path) -> Path:
    return folder / "installed"


def _run(command: Sequence[str]) -> str:
    """Run a command and give the last line that it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith("ERROR")] or lines
        raise ToolError(telling[-1].strip() if telling else f"exit status {done.returncode}")
    return (done.stdout.splitlines() or [""])[-1]
