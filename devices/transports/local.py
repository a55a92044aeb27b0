"""This machine, in a folder and a process of its own, as a device."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from devices.device import Device
from devices.transports import Finished, OnLine
from export.errors import DeviceError
from export.manifest import sha256_of

_TAIL_LINES = 50


class LocalTransport:
    """Runs commands as children of this process; see ``Transport``."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._folder: Path | None = None

    def connect(self) -> None:
        """Make the folder."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="weightspace-"))

    def push(self, files: Mapping[str, Path], on_bytes: Callable[[int], None] | None = None) -> int:
        """Copy files into the folder."""
        sent = 0
        for name, file in files.items():
            place = self._place(name)
            if place.is_file() and sha256_of(place) == sha256_of(file):
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            part = place.with_name(f"{place.name}.part")
            try:
                shutil.copyfile(file, part)
            except OSError as error:
                raise DeviceError(f"{file} cannot be copied to {part}: {error.strerror}") from error
            part.replace(place)
            sent += file.stat().st_size
            if on_bytes:
                on_bytes(sent)
        return sent

    def run(
        self, command: Sequence[str], *, timeout_s: float, on_line: OnLine | None = None
    ) -> Finished:
        """Run a command in the folder."""
        try:
            process = subprocess.Popen(
                command,
                cwd=self._place(""),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(f"{command[0]} cannot be run here: {error.strerror}") from error
        errors: list[str] = []

        def read_errors() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                errors.append(line.rstrip("\n"))
                del errors[:-_TAIL_LINES]
                if on_line:
                    on_line(line.rstrip("\n"))

        timer = threading.Timer(timeout_s, _end, [process])
        reader = threading.Thread(target=read_errors, daemon=True)
        timer.start()
        reader.start()
        try:
            assert process.stdout is not None
            output = process.stdout.read()
            code = process.wait()
        finally:
            late = not timer.is_alive()
            timer.cancel()
            _end(process)
        reader.join()
        if late:
            raise DeviceError(f"{command[0]} did not finish within {timeout_s:g} s")
        return Finished(code if code >= 0 else 128 - code, output, "\n".join(errors))

    def pull(self, name: str, to: Path) -> None:
        """Copy a file of the folder to here."""
        part = to.with_name(f"{to.name}.part")
        try:
            shutil.copyfile(self._place(name), part)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DeviceError(f"{name} cannot be fetched: {error.strerror}") from error
        part.replace(to)

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _place(self, name: str) -> Path:
        if self._folder is None:
            raise DeviceError("the transport is not connected")
        return self._folder / name


def _end(process: subprocess.Popen[str]) -> None:
    """Kill what a command started, in the group that is its own."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def open_transport(device: Device) -> LocalTransport:
    """Make the transport of this machine."""
    return LocalTransport(device)
