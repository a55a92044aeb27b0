"""Convert the benchmarks' models with litert-torch, each in a process of its own.

``python benchmarks/litert_torch_export.py OUT_DIR NAME [NAME ...]`` runs in an environment of
litert-torch's own (benchmarks/litert-torch.txt), writes OUT_DIR/NAME.tflite with the tool's
defaults and prints one JSON line a model.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[1]
# Linux counts the peak in KiB, macOS in bytes.
_MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


def convert(name: str, path: Path) -> dict[str, str | float | int]:
    """Convert one model and say what that took.

    The peak is of this process, torch and the converter included; ``loaded_rss_bytes`` is what
    it held when the conversion began.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import litert_torch  # type: ignore[import-not-found]
    import torch

    # weightspace is not installed beside litert-torch
    sys.path.append(str(ROOT))
    from models import make

    model = make(name)
    with torch.no_grad():
        # The first conversion loads most of the tool: neither its time nor its memory is a model's.
        litert_torch.convert(torch.nn.Linear(4, 4).eval(), (torch.ones(1, 4),))
    loaded = _peak_rss_bytes()
    start = perf_counter()
    with torch.no_grad():
        edge_model = litert_torch.convert(model.module, model.inputs)
    convert_s = perf_counter() - start
    edge_model.export(str(path))
    return {
        "name": name,
        "path": str(path),
        "convert_s": round(convert_s, 2),
        "file_bytes": path.stat().st_size,
        "unique_bytes": model.unique_bytes,
        "loaded_rss_bytes": loaded,
        "peak_rss_bytes": _peak_rss_bytes(),
    }


def _peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT_BYTES


def main() -> int:
    """Convert all models that were asked for; one that fails does not stop the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--here", action="store_true", help="one model, in this process")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.here:
        (name,) = arguments.names
        answer = convert(name, arguments.out / f"{name}.tflite")
        print(json.dumps(answer), flush=True)
        return 0
    failed = 0
    for name in arguments.names:
        # A process each: the peak memory is the model's own, and a crash takes no other along.
        command = [sys.executable, __file__, "--here", str(arguments.out), name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            print(done.stdout.splitlines()[-1], flush=True)
        else:
            failed += 1
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            print(json.dumps({"name": name, "error": lines[-1]}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
