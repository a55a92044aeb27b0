"""A concrete machine that artifacts are run on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """A machine and how to reach it.

    Args:
        name: what the user calls it; the address where it has no name.
        address: ``local``, ``ssh://[user@]host[:port]``, ``adb://SERIAL`` (``adb://`` where only
            one is attached) or ``mac://[user@]host[:port]``.
        python: the interpreter that has the runtime: a program's name or a path on the device.
        benchmark_binary: of an Android phone, which has no Python: LiteRT's ``benchmark_model``,
            a file on this machine.
        trtexec: of a Jetson: the program's name or a path on the device.
    """

    name: str
    address: str
    python: str = "python3"
    benchmark_binary: str = ""
    trtexec: str = "trtexec"

    @property
    def scheme(self) -> str:
        """What kind of address it is: ``local``, ``ssh``, ``adb`` or ``mac``."""
        return self.address.partition("://")[0]
