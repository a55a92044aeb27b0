"""The machine that a measurement was made on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import psutil

from export.manifest import versions
from runtimes.records import Environment

_CPUINFO = Path("/proc/cpuinfo")
_MODEL = Path("/proc/device-tree/model")  # names the board on ARM
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def read_environment(*runtimes: str, swapped: bool = False) -> Environment:
    """Describe this machine; what the system does not tell is left empty.

    Args:
        runtimes: the packages of the runtimes that measure, to note their versions, each once.
        swapped: whether pages were swapped while measuring.
    """
    packages = dict.fromkeys(runtimes)
    found = versions(*packages)
    return Environment(
        host=platform.node(),
        cpu=cpu_name(),
        arch=platform.machine(),
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        os=f"{platform.system()} {platform.release()}",
        governor=_text(_GOVERNOR),
        runtime=", ".join(f"{name} {found.get(name, 'not installed')}" for name in packages),
        python=platform.python_version(),
        swapped=swapped,
    )


def cpu_name() -> str:
    """Name the processor, or the board where the system names that."""
    board = _text(_MODEL)
    if board:
        return board.rstrip("\0")
    found = re.search(r"^model name\s*:\s*(.+)$", _text(_CPUINFO) or "", re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def swapped_bytes() -> int:
    """Sum the bytes that the system has swapped in and out since it started."""
    swap = psutil.swap_memory()
    return int(swap.sin + swap.sout)


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
