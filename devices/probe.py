"""Looks at the machine that it runs on: ``python3 -c SOURCE`` on a device, Python 3.8 or newer.

It prints one line of JSON. Each runtime is imported in a process of its own: one that was built for
another processor ends its process, and nothing else.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from typing import Any

MODULES = ("numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime", "tensorrt")
if sys.platform == "darwin":  # elsewhere it runs nothing
    MODULES += ("coremltools",)
IMPORT = """
import importlib, sys
name = sys.argv[1]
module = importlib.import_module(name + '.interpreter' if name in sys.argv[2:] else name)
version = getattr(sys.modules[name], '__version__', '')
if not version:
    from importlib.metadata import version as version_of
    version = version_of(name.replace('_', '-'))
print(version)
"""


def look() -> dict[str, Any]:
    """Describe this machine."""
    runtimes, broken = {}, {}
    for name in MODULES:
        found = subprocess.run(
            [sys.executable, "-c", IMPORT, name, "ai_edge_litert", "tflite_runtime"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        words = found.stderr.decode(errors="replace").strip().splitlines()
        last = words[-1] if words else ""
        if found.returncode == 0:
            runtimes[name] = found.stdout.decode(errors="replace").strip().splitlines()[-1]
        elif found.returncode < 0:
            broken[name] = f"signal {-found.returncode} ended it"
        elif not last.startswith(f"ModuleNotFoundError: No module named '{name}'"):
            broken[name] = last or f"exit code {found.returncode}"
    return {
        "system": system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "runtimes": runtimes,
        "broken": broken,
        "free_disk_bytes": shutil.disk_usage(".").free,
        "free_memory_bytes": free_memory_bytes(),
        "home": os.path.expanduser("~"),
        "managed": sys.prefix == sys.base_prefix
        and os.path.exists(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")),
    }


def system() -> str:
    """Name the operating system."""
    if platform.mac_ver()[0]:
        return f"macOS {platform.mac_ver()[0]}"
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            for line in file:
                if line.startswith("PRETTY_NAME="):
                    return line.partition("=")[2].strip().strip("\"'")
    except OSError:
        pass
    return f"{platform.system()} {platform.release()}"


def free_memory_bytes() -> int | None:
    """Say how much memory is available; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(look()) + "\n")
