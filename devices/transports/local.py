"""This machine, in a folder and a process of its own, as a device."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from devices.device import Device
from devices.transports import Finished, OnLine, require_relative
from export.errors import DeviceError
from export.manifest import sha256_of

_TAIL_LINES = 50
_MARK = "WEIGHTSPACE_RUN"  # in the environment of all that a run starts
_NOT_RUNNABLE, _NOT_FOUND = 126, 127  # as shells answer


class LocalTransport:
    """Runs commands as children of this process; see ``Transport``."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._folder: Path | None = None

    def connect(self) -> None:
        """Make the folder."""
        if self._folder is not None:
            return
        # Known before it is there: Ctrl-C at any moment leaves a folder that `close` removes.
        self._folder = Path(tempfile.gettempdir()) / f"weightspace-{secrets.token_hex(8)}"
        try:
            self._folder.mkdir(mode=0o700)
        except OSError as error:
            raise DeviceError(f"{self._folder} cannot be made: {error.strerror}") from error

    def push(self, files: Mapping[str, Path], on_bytes: Callable[[int], None] | None = None) -> int:
        """Copy files into the folder."""
        sent = 0
        for name, file in files.items():
            place = self._place(name)
            if place.is_file() and sha256_of(place) == sha256_of(file):
                continue
            part = place.with_name(f"{place.name}.part")
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, part)
                part.replace(place)
            except OSError as error:
                part.unlink(missing_ok=True)
                if error.errno == errno.ENOSPC:
                    raise DeviceError(
                        f"{self.device.name}: no space left in {self._folder} "
                        f"(needs {file.stat().st_size / 1e6:.1f} MB)"
                    ) from error
                raise DeviceError(f"{file} cannot be copied to {part}: {error.strerror}") from error
            sent += file.stat().st_size
            if on_bytes:
                on_bytes(sent)
        return sent

    def run(
        self, command: Sequence[str], *, timeout_s: float, on_line: OnLine | None = None
    ) -> Finished:
        """Run a command in the folder."""
        folder = self._root()
        try:
            return self._run(folder, command, timeout_s, on_line)
        finally:
            _end_all(folder)

    def _run(
        self, folder: Path, command: Sequence[str], timeout_s: float, on_line: OnLine | None
    ) -> Finished:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, _MARK: str(folder)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:  # what a shell on a device answers
            code = _NOT_FOUND if error.errno == errno.ENOENT else _NOT_RUNNABLE
            return Finished(code, "", f"{command[0]}: {error.strerror}")
        output: list[str] = []
        errors: list[str] = []

        def read_output() -> None:
            assert process.stdout is not None
            output.append(process.stdout.read())

        def read_errors() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                errors.append(line.rstrip("\n"))
                del errors[:-_TAIL_LINES]
                if on_line:
                    on_line(line.rstrip("\n"))

        readers = [
            threading.Thread(target=each, daemon=True) for each in (read_output, read_errors)
        ]
        for reader in readers:
            reader.start()
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"{self.device.name}: {command[0]} did not finish within {timeout_s:g} s"
            ) from None
        _end_all(folder)  # what it started holds its output
        for reader in readers:
            reader.join()
        return Finished(code if code >= 0 else 128 - code, "".join(output), "\n".join(errors))

    def pull(self, name: str, to: Path) -> None:
        """Copy a file of the folder to here."""
        place = self._place(name)
        part = to.with_name(f"{to.name}.part")
        try:
            shutil.copyfile(place, part)
            part.replace(to)
        except OSError as error:
            raise DeviceError(
                f"{self.device.name}: fetching {name} failed: {error.strerror}"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _place(self, name: str) -> Path:
        require_relative(name)
        return self._root() / name

    def _root(self) -> Path:
        if self._folder is None:
            raise DeviceError(f"{self.device.name}: the transport is not connected")
        return self._folder


def _end_all(folder: Path) -> None:
    """Kill what was started in a folder, in whichever process group it is."""
    while found := [each for each in psutil.process_iter() if _is_of(each, folder)]:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=1)


def _is_of(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get(_MARK) == str(folder)
    except (psutil.Error, OSError):  # it has ended, or is another user's
        return False


def open_transport(device: Device) -> LocalTransport:
    """Make the transport of this machine."""
    return LocalTransport(device)
