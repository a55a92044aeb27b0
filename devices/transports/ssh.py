"""A device reached over ssh: a Raspberry Pi, a Jetson, any Linux board.

The user's ``~/.ssh/config``, keys, agent and known hosts count as for ``ssh`` itself. On the device
a keeper holds the work folder for as long as the connection stands: when that ends, however it
ends, the keeper ends what runs there and removes the folder.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from devices.device import Device
from devices.transports import Finished, OnLine, require_relative
from devices.transports.ssh_link import Link, after_begin, last_line, open_link, parse_address
from devices.transports.ssh_scripts import (
    ACCEPT,
    BEGIN,
    DIGESTS,
    END,
    FREE,
    KEEPER,
    LIST,
    REMOVE,
    RUN,
)
from export.errors import DeviceError, DeviceLostError
from export.manifest import sha256_of

if TYPE_CHECKING:
    import asyncssh

T = TypeVar("T")

_TAIL_LINES = 50
_CONNECT_TIMEOUT_S = 10.0
_DELAYS_S = (1.0, 2.0, 4.0)  # a board that boots refuses connections for some seconds
_KEEPER_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 15.0
_POLL_S = 0.5
_NAMES_AT_ONCE = 100  # a command line holds 128 KiB at least
_BLOCK_BYTES = 1 << 16
# 1 MiB on the way fills any link to a board, and Ctrl-C waits for no more than that.
_SENT_AT_ONCE_BYTES = 1 << 15  # which every sftp server takes
_MOST_ON_THE_WAY = 32


class SshTransport:
    """Runs commands over ssh; see ``Transport``.

    Args:
        timeout_s: for each attempt to connect.
        delays_s: how long to wait before each further attempt.
    """

    def __init__(
        self,
        device: Device,
        timeout_s: float = _CONNECT_TIMEOUT_S,
        delays_s: Sequence[float] = _DELAYS_S,
    ) -> None:
        self.device = device
        self._timeout_s = timeout_s
        self._delays_s = delays_s
        self._runner: asyncio.Runner | None = None
        self._link: Link | None = None
        self._keeper: asyncssh.SSHClientProcess[bytes] | None = None
        self._folder = ""
        parse_address(device)

    def connect(self) -> None:
        """Reach the device and make the folder."""
        if self._link is not None:
            return
        self._runner = asyncio.Runner()
        try:
            self._do(self._connect())
        except BaseException:
            self._let_go()
            raise

    def push(self, files: Mapping[str, Path], on_bytes: Callable[[int], None] | None = None) -> int:
        """Copy files into the folder."""
        for name in files:
            require_relative(name)
        return self._do(self._push(files, on_bytes))

    def run(
        self, command: Sequence[str], *, timeout_s: float, on_line: OnLine | None = None
    ) -> Finished:
        """Run a command in the folder."""
        return self._do(self._run(command, timeout_s, on_line))

    def pull(self, name: str, to: Path) -> None:
        """Copy a file of the folder to here."""
        require_relative(name)
        self._do(self._pull(name, to))

    def close(self) -> None:
        """End what still runs, remove the folder, let go of the device.

        Raises:
            DeviceLostError: the device cannot be reached any more; names what may be left there.
        """
        if self._link is None:
            return
        try:
            self._do(self._close())
        finally:
            self._let_go()

    # ---- inside the loop ----------------------------------------------------------------------

    async def _connect(self) -> None:
        self._link = link = await open_link(self.device, self._timeout_s, self._delays_s)
        owner = _owner()
        gone = [name for name in await link.call(LIST) if _has_gone(name, owner)]
        self._keeper = await link.start(
            KEEPER, "weightspace-keeper", f"{owner}.{os.getpid()}", *gone
        )
        with link.explained("making its work folder"):
            try:
                async with asyncio.timeout(_KEEPER_TIMEOUT_S):
                    line = b""
                    while line != BEGIN.encode():
                        line = await self._keeper.stdout.readline()
                        if not line:
                            break
                    line = await self._keeper.stdout.readline()
            except TimeoutError:
                line = b""
            if not line:
                self._keeper.close()
                reason = last_line(await self._keeper.stderr.read())
                raise DeviceError(f"{self.device.name}: no work folder can be made there: {reason}")
        self._folder = line.decode().removesuffix("\n")

    async def _push(self, files: Mapping[str, Path], on_bytes: Callable[[int], None] | None) -> int:
        link = self._connected()
        here = {name: await asyncio.to_thread(sha256_of, file) for name, file in files.items()}
        there = await self._digests(list(files))
        sent = 0
        for name, file in files.items():
            if there[name] != here[name]:
                await self._send(link, name, file, here[name], sent, on_bytes)
                sent += file.stat().st_size
                if on_bytes:
                    on_bytes(sent)
        return sent

    async def _digests(self, names: list[str]) -> dict[str, str]:
        """What the device has of these files."""
        found: list[str] = []
        for start in range(0, len(names), _NAMES_AT_ONCE):
            some = names[start : start + _NAMES_AT_ONCE]
            found += await self._connected().call(DIGESTS, self._folder, *some, timeout_s=600)
        return {name: line.split(" ")[0] for name, line in zip(names, found, strict=True)}

    async def _send(
        self,
        link: Link,
        name: str,
        file: Path,
        digest: str,
        before: int,
        on_bytes: Callable[[int], None] | None,
    ) -> None:
        """Copy one file under another name, verify it there, and rename it."""

        def tell(_from: bytes, _to: bytes, done: int, _all: int) -> None:
            if on_bytes:
                on_bytes(before + done)

        sftp = await link.sftp()
        place = f"{self._folder}/{name}"
        part = f"{place}.part"
        try:
            with link.explained(f"sending {name}"):
                if "/" in name:
                    await sftp.makedirs(place.rpartition("/")[0], exist_ok=True)
                await sftp.put(
                    file,
                    part,
                    block_size=_SENT_AT_ONCE_BYTES,
                    max_requests=_MOST_ON_THE_WAY,
                    follow_symlinks=True,
                    progress_handler=tell,
                )
        except DeviceLostError:
            raise
        except DeviceError:
            await self._require_space(link, part, file)
            raise
        except OSError as error:
            raise DeviceError(f"{file} cannot be read: {error.strerror}") from error
        (found,) = await link.call(ACCEPT, self._folder, name, digest, timeout_s=600)
        if found.split(" ")[0] != digest:
            await self._require_space(link, part, file)
            raise DeviceError(
                f"{self.device.name}: {name} did not arrive as it was sent; check its storage, and "
                "try again"
            )

    async def _require_space(self, link: Link, part: str, file: Path) -> None:
        """Remove what was sent in part, and say so where the disk is full.

        Raises:
            DeviceError: the file does not fit.
        """
        import asyncssh

        with link.explained("removing a part"), suppress(asyncssh.SFTPNoSuchFile):
            await (await link.sftp()).remove(part)
        size_bytes = file.stat().st_size
        (free_kib,) = await link.call(FREE, self._folder)
        if free_kib.isdigit() and int(free_kib) * 1024 < size_bytes:
            raise DeviceError(
                f"{self.device.name}: no space left in {self._folder} "
                f"(needs {size_bytes / 1e6:.1f} MB)"
            )

    async def _run(
        self, command: Sequence[str], timeout_s: float, on_line: OnLine | None
    ) -> Finished:
        link = self._connected()
        process = await link.start(
            RUN, "weightspace-run", self._folder, self._folder.rpartition("/")[2], *command
        )
        output = asyncio.create_task(_read(process.stdout))
        errors = asyncio.create_task(_read_lines(process.stderr, on_line))
        try:
            with link.explained(f"running {command[0]}"):
                async with asyncio.timeout(timeout_s) as deadline:
                    await self._wait(link, process, output, errors)
        except BaseException as error:
            output.cancel()
            errors.cancel()
            await asyncio.gather(output, errors, return_exceptions=True)
            ended = await self._end(link)
            if isinstance(error, TimeoutError) and deadline.expired():
                words = f"{self.device.name}: {command[0]} did not finish within {timeout_s:g} s"
                if not ended:
                    words += ", and may still run there"
                raise DeviceError(words) from None
            raise
        finally:
            process.close()
        code = link.require_status(process.returncode)
        text = after_begin(output.result()).decode(errors="replace")
        return Finished(code if code >= 0 else 128 - code, text, "\n".join(errors.result()))

    async def _wait(
        self,
        link: Link,
        process: asyncssh.SSHClientProcess[bytes],
        *readers: asyncio.Task[Any],
    ) -> None:
        """Wait until a command has ended and its output is read; nothing it started outlives it."""
        pending = set(readers)
        while pending:
            done, pending = await asyncio.wait(
                pending, timeout=_POLL_S, return_when=asyncio.FIRST_EXCEPTION
            )
            for reader in done:
                reader.result()
            if pending and process.returncode is not None:
                await self._end(link)  # what it started holds its output
        await process.wait_closed()
        if process.returncode:
            await self._end(link)

    async def _end(self, link: Link) -> bool:
        """End what runs in the folder; whether it is gone for certain."""
        try:
            await link.call(END, self._folder.rpartition("/")[2], timeout_s=_END_TIMEOUT_S)
        except DeviceError:  # the keeper does it when the link is gone
            return False
        return True

    async def _pull(self, name: str, to: Path) -> None:
        link = self._connected()
        sftp = await link.sftp()
        part = to.with_name(f"{to.name}.part")
        try:
            with link.explained(f"fetching {name}"):
                await sftp.get(f"{self._folder}/{name}", part)
            part.replace(to)
        except OSError as error:
            raise DeviceError(f"{name} cannot be written to {to}: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)

    async def _close(self) -> None:
        """Have the folder removed by its keeper, or over a new connection."""
        if not self._folder:
            return
        assert self._keeper is not None
        link = self._connected()
        try:
            with link.explained("removing its work folder"):
                async with asyncio.timeout(_END_TIMEOUT_S):
                    self._keeper.stdin.write_eof()
                    await self._keeper.wait_closed()
            if self._keeper.returncode == 0:
                return
        except (DeviceError, TimeoutError):
            pass
        try:
            await link.close()
            self._link = link = await open_link(self.device, self._timeout_s, ())
            await link.call(REMOVE, self._folder, self._folder.rpartition("/")[2])
        except DeviceError as error:
            raise DeviceLostError(
                f"{self.device.name}: the connection broke and {self._folder} may be left there; "
                "the device removes it when it notices, and the next run at the latest"
            ) from error

    # ---- around the loop ----------------------------------------------------------------------

    def _connected(self) -> Link:
        if self._link is None:
            raise DeviceError(f"{self.device.name}: the transport is not connected")
        return self._link

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run in the private loop; Ctrl-C cancels the work, which then puts things in order."""
        if self._runner is None:
            work.close()
            raise DeviceError(f"{self.device.name}: the transport is not connected")
        return self._runner.run(work)

    def _let_go(self) -> None:
        """Close the connection and the loop, whatever state they are in."""
        runner, link = self._runner, self._link
        self._runner = self._link = self._keeper = None
        self._folder = ""
        if runner is not None:
            try:
                if link is not None:
                    runner.run(link.close())
            finally:
                runner.close()


async def _read(stream: asyncssh.SSHReader[bytes]) -> bytes:
    blocks = []
    while block := await stream.read(_BLOCK_BYTES):
        blocks.append(block)
    return b"".join(blocks)


async def _read_lines(stream: asyncssh.SSHReader[bytes], on_line: OnLine | None) -> list[str]:
    """Pass on lines as they come; gives the last of them."""
    tail: list[str] = []
    rest = b""
    while block := await stream.read(_BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            _tell(line, tail, on_line)
    if rest:
        _tell(rest, tail, on_line)
    return tail


def _tell(line: bytes, tail: list[str], on_line: OnLine | None) -> None:
    text = line.decode(errors="replace")
    tail.append(text)
    del tail[:-_TAIL_LINES]
    if on_line:
        on_line(text)


# ---- who owns a folder ------------------------------------------------------------------------


def _owner() -> str:
    """Who we are, as it can be part of a folder's name: the user, the machine, its processes.

    Containers may share a machine's name without seeing each other's processes.
    """
    name = f"{getpass.getuser()}@{socket.gethostname()}"
    try:
        space = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        space = "0"
    return re.sub(r"[^A-Za-z0-9@_-]", "-", name)[:80].lstrip("-") + f"-{space}"


def _has_gone(name: str, owner: str) -> bool:
    """Whether a folder is of a process of this machine that has ended."""
    found = re.fullmatch(re.escape(owner) + r"\.(\d+)\.\d+", name)
    return found is not None and not psutil.pid_exists(int(found[1]))


def open_transport(device: Device) -> SshTransport:
    """Make the transport of an ``ssh://`` address."""
    return SshTransport(device)
