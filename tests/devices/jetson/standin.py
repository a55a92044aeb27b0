"""A Jetson's trtexec for machines without one: a real program over a real transport.

What it prints was recorded on other machines (tests/data/trtexec), so nothing that comes of it is
a measurement.
"""

from __future__ import annotations

from pathlib import Path

RECORDED = "recorded trtexec output, no measurement"
TRTEXEC = Path(__file__).with_name("trtexec")
RECORDINGS = Path(__file__).parents[2] / "data" / "trtexec"


def files_for_a_device() -> dict[str, Path]:
    """Name on the device -> file here: the program and its recordings, in one folder.

    Run it there as ``env RECORDED_TRTEXEC=. python3 trtexec ...``: a push keeps no mode.
    """
    recordings = [path for path in RECORDINGS.iterdir() if path.suffix in {".log", ".json"}]
    return {"trtexec": TRTEXEC, **{path.name: path for path in recordings}}
