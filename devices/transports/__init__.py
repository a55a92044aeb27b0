"""How a device is reached: one interface, one module for each way."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from devices.device import Device
from export.errors import DeviceError, UserError

OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ended on the device.

    Args:
        exit_code: as the device gave it; 128 + N where signal N ended the command.
        output: its standard output, whole.
        errors: the end of its standard error.
    """

    exit_code: int
    output: str
    errors: str

    @property
    def ending(self) -> str:
        """How it ended, in words for a message."""
        if self.exit_code <= 128:
            return f"ended with exit code {self.exit_code}"
        try:
            name = signal.Signals(self.exit_code - 128).name
        except ValueError:
            return f"ended with exit code {self.exit_code}"
        if name == "SIGKILL":
            return "was ended by SIGKILL: the device may have run out of memory"
        return f"was ended by {name}"


class Transport(Protocol):
    """One device, and one folder on it that is this transport's own.

    Names in the folder are relative and may hold any character that a file's name may. A lost
    link raises ``DeviceLostError``, everything else that fails ``DeviceError``: each message is
    one line that names the device and the remedy.
    """

    device: Device

    def connect(self) -> None:
        """Reach the device and make the folder, or find it as an interrupted run left it."""
        ...

    def push(self, files: Mapping[str, Path], on_bytes: Callable[[int], None] | None = None) -> int:
        """Copy files into the folder: name there -> file here; gives the bytes that were sent.

        A file whose SHA-256 is the same there is not sent. Each is sent under another name,
        verified by its SHA-256 on the device, and renamed.

        Args:
            on_bytes: called with the bytes that were sent so far, of all files together.
        """
        ...

    def run(
        self, command: Sequence[str], *, timeout_s: float, on_line: OnLine | None = None
    ) -> Finished:
        """Run a command in the folder; its standard input stays open until it ends.

        Args:
            command: program and arguments; each reaches the program as it is, whatever it holds.
            on_line: called with each line of standard error as it comes.

        Raises:
            DeviceError: it did not finish in time; it was ended, with all that it started.
        """
        ...

    def pull(self, name: str, to: Path) -> None:
        """Copy a file of the folder to here, whole or not at all."""
        ...

    def close(self) -> None:
        """End what still runs, remove the folder, let go of the device. May be called twice.

        Raises:
            DeviceLostError: it cannot be said that the folder is removed; names it.
        """
        ...


def require_relative(name: str) -> None:
    """Refuse a name that would lie outside of the folder.

    Raises:
        DeviceError: it does.
    """
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
        raise DeviceError(f"{name!r} is not a file's name inside of a device's folder")


# Scheme of a device's address -> the module that has `open_transport(device) -> Transport`.
TRANSPORTS: dict[str, str] = {
    "local": "devices.transports.local",
    "ssh": "devices.transports.ssh",
    "adb": "devices.transports.adb",
    "mac": "devices.transports.mac",
}


def open_transport(device: Device) -> Transport:
    """Choose the transport of a device's address; nothing is reached before ``connect``.

    Raises:
        UserError: the address is of no scheme that is known.
    """
    if device.scheme not in TRANSPORTS:
        known = ", ".join(f"{scheme}://" for scheme in TRANSPORTS if scheme != "local")
        raise UserError(
            f"device address {device.address!r} is of no known kind; it must be local or begin "
            f"with one of {known}"
        )
    module = importlib.import_module(TRANSPORTS[device.scheme])
    transport: Transport = module.open_transport(device)
    return transport
