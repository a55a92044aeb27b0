"""A Mac reached over ssh, the machine that runs ``.mlpackage`` artifacts.

A phone that is attached to it shows in ``phones``; Apple gives no command that times a model there.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from devices.device import Device
from devices.transports.ssh import SshTransport
from export.errors import DeviceError

_TIMEOUT_S = 120.0


class MacTransport(SshTransport):
    """Runs commands on a Mac; see ``Transport``."""

    def connect(self) -> None:
        """Reach the Mac and make the folder.

        Raises:
            DeviceError: it is not a Mac, or its Python has no coremltools.
        """
        super().connect()
        try:
            self._require_mac()
        except BaseException:
            self.close()
            raise

    def phones(self) -> tuple[str, ...]:
        """Names of the phones that are attached, as ``xcrun devicectl list devices`` has them.

        Raises:
            DeviceError: Xcode is not installed there, or says something else.
        """
        command = ["xcrun", "devicectl", "list", "devices", "--json-output", "phones.json"]
        done = self.run(command, timeout_s=_TIMEOUT_S)
        if done.exit_code:
            raise DeviceError(
                f"{self.device.name}: xcrun devicectl {done.ending}; install Xcode 15 there"
            )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "phones.json"
            self.pull("phones.json", file)
            try:
                return phones_of(json.loads(file.read_text(encoding="utf-8")))
            except (ValueError, KeyError, TypeError) as error:
                raise DeviceError(
                    f"{self.device.name}: xcrun devicectl writes what is not understood"
                ) from error

    def _require_mac(self) -> None:
        version = self.run(["sw_vers", "-productVersion"], timeout_s=_TIMEOUT_S)
        if version.exit_code:
            raise DeviceError(
                f"{self.device.name}: this is not a Mac, sw_vers {version.ending}; give another "
                "machine an ssh:// address"
            )
        python = self.device.python
        found = self.run([python, "-c", "import coremltools"], timeout_s=_TIMEOUT_S)
        if found.exit_code:
            raise DeviceError(
                f"{self.device.name}: {python} has no coremltools; run there: {python} -m pip "
                "install coremltools, or name another Python with --python"
            )


def phones_of(listing: Any) -> tuple[str, ...]:
    """Read the names from what ``devicectl list devices --json-output`` writes."""
    return tuple(each["deviceProperties"]["name"] for each in listing["result"]["devices"])


def open_transport(device: Device) -> MacTransport:
    """Make the transport of a ``mac://`` address."""
    return MacTransport(device)
