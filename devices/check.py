"""What a device is, what it can run, and what it lacks."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices import probe
from devices.device import Device
from devices.transports import Transport, open_transport
from devices.transports.mac import MacTransport
from export.errors import DeviceError

_TIMEOUT_S = 300.0  # a small board takes a minute to load every runtime from its card
_NOT_THERE = (126, 127)
_RUNNERS = ("onnxruntime", "ai_edge_litert", "tflite_runtime", "coremltools")
_JETPACK_TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # which is in no PATH


@dataclass(frozen=True, slots=True)
class DeviceCheck:
    """What was found on a device.

    Args:
        system: the operating system with its version.
        machine: the processor's architecture, as ``uname -m`` gives it.
        python: version of the interpreter; empty where it cannot be run.
        runtimes: module -> version, of those that can be imported.
        broken: module -> why it is installed and yet cannot be imported.
        programs: other programs that run artifacts -> where they are.
        phones: names of the phones that are attached to a Mac.
        free_disk_bytes: where the work folder is; None where the device does not say.
        free_memory_bytes: what is available now; None where the device does not say.
        missing: what is not there, each with the command that brings it.
    """

    name: str
    address: str
    system: str
    machine: str
    python: str
    runtimes: dict[str, str]
    broken: dict[str, str]
    programs: dict[str, str]
    phones: tuple[str, ...]
    free_disk_bytes: int | None
    free_memory_bytes: int | None
    missing: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether artifacts of any format can be run there."""
        runners = [name for name in self.runtimes if name in _RUNNERS]
        return bool(self.programs) or ("numpy" in self.runtimes and bool(runners))


def check_device(device: Device) -> DeviceCheck:
    """Connect to a device and look at it; nothing is left there.

    Raises:
        DeviceError: it cannot be reached, or does not answer.
    """
    transport = open_transport(device)
    try:
        transport.connect()
        programs = _programs(device, transport)
        found = _probe(device, transport)
        if found is None:
            system, _, machine = _uname(transport).rpartition(" ")
            found = {"system": system, "machine": machine}
        return DeviceCheck(
            name=device.name,
            address=device.address,
            system=found["system"],
            machine=found["machine"],
            python=found.get("python", ""),
            runtimes=found.get("runtimes", {}),
            broken=found.get("broken", {}),
            programs=programs,
            phones=_phones(transport),
            free_disk_bytes=found.get("free_disk_bytes"),
            free_memory_bytes=found.get("free_memory_bytes"),
            missing=tuple(_missing(device, programs, found)),
        )
    finally:
        transport.close()


def _probe(device: Device, transport: Transport) -> dict[str, Any] | None:
    """Run the probe; None where there is no Python.

    Raises:
        DeviceError: there is one, and it fails.
    """
    source = Path(probe.__file__).read_text(encoding="utf-8")
    done = transport.run([device.python, "-c", source], timeout_s=_TIMEOUT_S)
    if done.exit_code in _NOT_THERE:
        return None
    try:
        found: dict[str, Any] = json.loads(done.output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        reason = (done.errors.strip().splitlines() or ["without a word"])[-1]
        raise DeviceError(
            f"{device.name}: {device.python} {done.ending}: {reason}; it must be Python 3.8 or "
            "newer"
        ) from None
    return found


def _uname(transport: Transport) -> str:
    return transport.run(["uname", "-srm"], timeout_s=_TIMEOUT_S).output.strip()


def _programs(device: Device, transport: Transport) -> dict[str, str]:
    """The programs that run artifacts without Python."""
    if device.scheme == "adb":
        binary = Path(device.benchmark_binary)
        return {"benchmark_model": str(binary)} if binary.is_file() else {}
    for program in (device.trtexec, _JETPACK_TRTEXEC):
        script = 'command -v -- "$1"'
        done = transport.run(["sh", "-c", script, "sh", program], timeout_s=_TIMEOUT_S)
        if done.exit_code == 0:
            return {"trtexec": done.output.strip()}
    return {}


def _phones(transport: Transport) -> tuple[str, ...]:
    if not isinstance(transport, MacTransport):
        return ()
    try:
        return transport.phones()
    except DeviceError:  # without Xcode no phone can be seen, and none is needed
        return ()


def _missing(device: Device, programs: dict[str, str], found: dict[str, Any]) -> Iterator[str]:
    """Say what is not there, with the command that brings it."""
    if device.scheme == "adb":  # phones have no Python
        if not programs:
            yield "benchmark_model: give LiteRT's program with --benchmark-binary"
        return
    python = shlex.quote(device.python)
    if not found.get("python"):
        yield f"{python}: install python3 and python3-venv there, or name another with --python"
        return
    for module, why in found["broken"].items():
        yield f"{module}: it is installed, and cannot be imported: {why}"
    present = set(found["runtimes"]) | set(found["broken"])
    if "tflite_runtime" in found["runtimes"]:
        present.add("ai_edge_litert")  # its successor, which reads the same files
    wanted = ("coremltools",) if device.scheme == "mac" else ("onnxruntime", "ai_edge_litert")
    packages = [name.replace("_", "-") for name in ("numpy", *wanted) if name not in present]
    if not packages:
        return
    words, install = ", ".join(packages), f"install {' '.join(packages)}"
    if found["managed"]:  # Debian refuses pip outside of a virtual environment
        folder = shlex.quote(f"{found['home']}/weightspace")
        yield (
            f"{words}: run there `{python} -m venv {folder} && {folder}/bin/pip {install}`, and "
            f"here `weightspace devices add {device.name} {device.address} --python "
            f"{folder}/bin/python`"
        )
    else:
        yield f"{words}: run there `{python} -m pip {install}`"
