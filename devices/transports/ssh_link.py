"""A connection to a device over ssh, and what each of its failures means to a user."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.device import Device
from devices.transports.ssh_scripts import BEGIN, command_line
from export.errors import DeviceError, DeviceLostError, MissingExtraError, UserError

if TYPE_CHECKING:
    import asyncssh

# A dead link is noticed after three intervals without an answer.
_KEEPALIVE_S = 5
_KEEPALIVE_COUNT = 2
_SCRIPT_TIMEOUT_S = 60.0

_ADDRESS = re.compile(
    r"(?:(?P<user>[^@:/\s]+)@)?(?P<host>\[[0-9A-Za-z:.%]+\]|[^@:/\s\[\]]+)(?::(?P<port>\d{1,5}))?/?"
)
_DOWN = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)


@dataclass(frozen=True, slots=True)
class SshAddress:
    """Where a device is; user and port are None where ``~/.ssh/config`` or the default decides."""

    host: str
    user: str | None = None
    port: int | None = None

    @property
    def command(self) -> str:
        """The command that reaches it by hand."""
        place = f"{self.user}@{self.host}" if self.user else self.host
        return f"ssh -p {self.port} {place}" if self.port else f"ssh {place}"


def parse_address(device: Device) -> SshAddress:
    """Read ``SCHEME://[user@]host[:port]``.

    Raises:
        UserError: it is something else.
    """
    found = _ADDRESS.fullmatch(device.address.partition("://")[2])
    port = int(found["port"]) if found and found["port"] else None
    if found is None or found["host"].startswith("-") or (port is not None and port > 65535):
        raise UserError(
            f"device address {device.address!r} cannot be read; it must be "
            f"{device.scheme}://[user@]host[:port]"
        )
    return SshAddress(found["host"].strip("[]"), found["user"], port)


class Link:
    """An open connection to a device."""

    def __init__(self, device: Device, connection: asyncssh.SSHClientConnection) -> None:
        self.device = device
        self._connection = connection
        self._sftp: asyncssh.SFTPClient | None = None

    async def start(self, script: str, name: str, *args: str) -> asyncssh.SSHClientProcess[bytes]:
        """Start a script; its standard input stays open.

        Raises:
            DeviceLostError: the link broke.
        """
        with self.explained("starting a command"):
            return await self._connection.create_process(
                command_line(script, name, *args), encoding=None
            )

    async def call(
        self, script: str, *args: str, timeout_s: float = _SCRIPT_TIMEOUT_S
    ) -> list[str]:
        """Run a script to its end; gives the lines that it printed.

        Raises:
            DeviceError: it failed, or took too long.
            DeviceLostError: the link broke.
        """
        process = await self.start(script, "weightspace", *args)
        try:
            with self.explained("running a command"):
                async with asyncio.timeout(timeout_s):
                    process.stdin.write_eof()
                    output, errors = await process.communicate()
        except TimeoutError:
            raise DeviceError(
                f"{self.device.name}: its shell did not answer within {timeout_s:g} s"
            ) from None
        finally:
            process.close()
        self.require_status(process.returncode)
        if process.returncode:
            raise DeviceError(f"{self.device.name}: {last_line(errors or b'')}")
        return after_begin(output or b"").decode(errors="replace").splitlines()

    def require_status(self, status: int | None) -> int:
        """Pass on a command's exit status.

        Raises:
            DeviceLostError: there is none, so the link ended before the command did.
        """
        if status is None:
            raise DeviceLostError(
                f"{self.device.name}: the connection broke while a command ran there; check its "
                "network and power, and try again"
            )
        return status

    async def sftp(self) -> asyncssh.SFTPClient:
        """Open the channel for files once.

        Raises:
            DeviceError: the device has none.
        """
        if self._sftp is None:
            with self.explained("opening sftp", "install openssh-sftp-server there"):
                async with asyncio.timeout(_SCRIPT_TIMEOUT_S):
                    self._sftp = await self._connection.start_sftp_client()
        return self._sftp

    @contextmanager
    def explained(self, doing: str, remedy: str = "") -> Iterator[None]:
        """Turn asyncssh's errors into ours.

        Args:
            doing: what was being done, for the message.
            remedy: what may help where the device refused it.
        """
        import asyncssh

        lost = (asyncssh.DisconnectError, asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection)
        try:
            yield
        except asyncssh.Error as error:
            if isinstance(error, lost) or self._connection.is_closed():
                raise DeviceLostError(
                    f"{self.device.name}: the connection broke while {doing}; check its network "
                    "and power, and try again"
                ) from error
            hint = f"; {remedy}" if remedy else ""
            raise DeviceError(
                f"{self.device.name}: {doing} failed: {error.reason}{hint}"
            ) from error
        except ConnectionError as error:
            raise DeviceLostError(
                f"{self.device.name}: the connection broke while {doing}; check its network and "
                "power, and try again"
            ) from error

    async def close(self) -> None:
        """Let go of the device."""
        self._connection.close()
        try:
            async with asyncio.timeout(2):
                await self._connection.wait_closed()
        except TimeoutError:
            self._connection.abort()


async def open_link(device: Device, timeout_s: float, delays_s: Sequence[float]) -> Link:
    """Connect; what may pass, such as a board that boots, is tried again after each delay.

    Raises:
        DeviceError: the device cannot be reached, or refuses us.
        MissingExtraError: asyncssh is not installed.
    """
    try:
        import asyncssh
    except ImportError as error:
        raise MissingExtraError.of("asyncssh", "ssh") from error
    address = parse_address(device)
    for delay_s in (*delays_s, None):
        options = None
        try:
            options = asyncssh.SSHClientConnectionOptions(
                host=address.host,
                port=address.port or (),
                username=address.user or (),
                connect_timeout=timeout_s,
                login_timeout=timeout_s,
                keepalive_interval=_KEEPALIVE_S,
                keepalive_count_max=_KEEPALIVE_COUNT,
            )
            connection = await asyncssh.connect(
                address.host, address.port or (), config=(), options=options
            )
            return Link(device, connection)
        except (OSError, asyncssh.Error, ValueError) as error:
            words, may_pass = _explain(error, address, options, timeout_s)
            if not may_pass or delay_s is None:
                raise DeviceError(f"{device.name}: {words}") from error
        await asyncio.sleep(delay_s)
    raise AssertionError("the last round returns or raises")


def _explain(
    error: Exception, address: SshAddress, options: Any, timeout_s: float
) -> tuple[str, bool]:
    """Say what kept us from connecting, and whether it may pass."""
    host = options.host if options is not None else address.host
    port = options.port if options is not None else address.port or 22
    place = f"{host} port {port}"
    if isinstance(error, TimeoutError):
        return (
            f"{place} did not answer within {timeout_s:g} s; check that it is on and in this "
            "network, and that no firewall is between"
        ), True
    if isinstance(error, socket.gaierror):
        return (
            f"the name {host!r} cannot be resolved; check the address, or give its HostName in "
            "~/.ssh/config"
        ), False
    if _has(error, errno.ECONNREFUSED):
        return (
            f"{place} refuses connections; check the port, and that an ssh server runs there"
        ), True
    if any(_has(error, code) for code in _DOWN):
        return f"{place} cannot be reached; check that it is on and in this network", True
    if isinstance(error, ValueError):
        return f"the ssh configuration cannot be used: {error}", False
    return _explain_refusal(error, address, options, place)


def _explain_refusal(
    error: Exception, address: SshAddress, options: Any, place: str
) -> tuple[str, bool]:
    """Say why there was an answer and yet no login."""
    import asyncssh

    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return _host_key_words(error, address, options), False
    if isinstance(error, asyncssh.PermissionDenied):
        return (
            f"{place} refuses to log in {options.username!r} with the keys that were offered; add "
            f"yours with ssh-copy-id, and try `{address.command}`"
        ), False
    if isinstance(error, asyncssh.ConnectionLost | ConnectionError):
        return (
            f"{place} closed the connection before the login; check that it is an ssh server and "
            "not about to restart"
        ), True
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return (
            f"{place} and this machine agree on no kind of key ({error}); known_hosts may hold one "
            f"of another kind: try `{address.command}`"
        ), False
    return f"{place} cannot be used: {error}", False


def _has(error: Exception, code: int) -> bool:
    """Whether an error is this one; asyncio joins the errors of several addresses in a text."""
    return isinstance(error, OSError) and (error.errno == code or f"[Errno {code}]" in str(error))


def _host_key_words(error: Exception, address: SshAddress, options: Any) -> str:
    """Tell an unknown host key from one that has changed."""
    import asyncssh

    name = options.host_key_alias or options.host
    if f"for host {options.host}" not in str(error):
        return f"a jump host on the way is not trusted ({error}); connect to it once with ssh"
    known = options.known_hosts or str(Path("~/.ssh/known_hosts").expanduser())
    port = None if options.port == 22 else options.port
    try:
        keys = asyncssh.match_known_hosts(known, name, "", port)[0]
    except (OSError, ValueError):
        keys = ()
    if keys:
        entry = f"'[{name}]:{port}'" if port else name
        return (
            f"the host key of {name} has changed; if you know why, such as a new system on it, "
            f"remove the old key with `ssh-keygen -R {entry}`; if not, somebody may be listening"
        )
    return (
        f"the host key of {name} is not known; connect once with `{address.command}` and check "
        "the fingerprint"
    )


def after_begin(output: bytes) -> bytes:
    """Leave out what a login shell printed before the script began."""
    before, mark, rest = output.partition(BEGIN.encode())
    return rest if mark else before


def last_line(errors: bytes) -> str:
    """Give the last words of a command."""
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its shell gave no reason"
