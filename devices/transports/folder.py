"""Which folder of a device is a run's own: the same after an interruption, never shared."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import os
import socket
import tempfile
from pathlib import Path


class FolderClaim:
    """A name for a folder on a device that no other run of this user on this machine has.

    The name is the same in every run, so that a run finds what an interrupted one left; where
    that one is still at work it is the next. The claim ends with this process at the latest.

    Args:
        address: of the device.
    """

    def __init__(self, address: str) -> None:
        owner = f"{getpass.getuser()}@{socket.gethostname()}"
        number = 0
        while True:
            text = f"{owner} {address} {number}" if number else f"{owner} {address}"
            self.name = f"weightspace-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
            self._lock = Path(tempfile.gettempdir()) / f"{self.name}.lock"
            self._file = _locked(self._lock)
            if self._file is not None:
                return
            number += 1

    def release(self) -> None:
        """Give the name up."""
        if self._file is not None:
            self._lock.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def _locked(path: Path) -> int | None:
    """Lock a file, made if need be; None where another has it."""
    while True:
        file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_ino == path.stat().st_ino:
                return file
        except BlockingIOError:
            os.close(file)
            return None
        except FileNotFoundError:  # its holder gave it up between the two calls
            pass
        os.close(file)
