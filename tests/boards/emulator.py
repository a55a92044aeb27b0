"""Boot the board in QEMU, reach it on this machine's loopback, pull its plug."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.boards.image import BoardError, Image, MissingError, build_image

BOOT_S = 120.0
ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL")  # however the tests end
PROGRAMS = ("setpriv", "qemu-system-aarch64", "ssh", "adb")
EMULATOR_PORTS = range(5554, 5587)  # adb takes what listens there for an Android emulator


@dataclass(frozen=True, slots=True)
class Board:
    """A board that runs.

    Args:
        folder: of this boot, on this machine: what the console says, and all that ssh needs, so
            that it may be a client's home.
        adb_server_port: of an adb server of its own, so that no other is disturbed.
    """

    image: Image
    folder: Path
    process: subprocess.Popen[bytes]
    ssh_port: int
    adb_port: int
    adb_server_port: int

    @property
    def ssh_address(self) -> str:
        """The board as a device's address, for its ordinary user."""
        return f"ssh://pi@127.0.0.1:{self.ssh_port}"

    @property
    def adb_serial(self) -> str:
        """The serial by which adb knows it."""
        return f"127.0.0.1:{self.adb_port}"

    @property
    def adb_address(self) -> str:
        """The board as a device's address, as if it were a phone."""
        return f"adb://{self.adb_serial}"

    @property
    def key(self) -> Path:
        """The private key for ``pi`` and ``root``."""
        return self.folder / ".ssh" / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The board's host key for its port here."""
        return self.folder / ".ssh" / "known_hosts"

    @property
    def ssh_options(self) -> tuple[str, ...]:
        """Options for ssh and scp that reach the board whatever the user has configured."""
        return (
            "-F", "none", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={self.known_hosts}",
        )  # fmt: skip

    def shell(self, command: str, *, user: str = "root", timeout_s: float = 60.0) -> str:
        """Run a shell line on the board, by ssh and apart from what is tested.

        Raises:
            BoardError: it failed, or the board did not answer.
        """
        where = ("-p", str(self.ssh_port), f"{user}@127.0.0.1")
        # One connection for all: the board takes half a second to agree on keys.
        kept = ("-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "-o",
                f"ControlPath={self.folder}/{user}.link")  # fmt: skip
        try:
            done = subprocess.run(
                ["ssh", *self.ssh_options, *kept, *where, command],
                capture_output=True, text=True, timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise BoardError(f"the board did not answer within {timeout_s:g} s") from error
        if done.returncode:
            raise BoardError(f"{command!r} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def pull_the_plug(self) -> None:
        """Switch it off without warning."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for link in self.folder.glob("*.link"):
            subprocess.run(
                ["ssh", "-F", "none", "-o", f"ControlPath={link}", "-O", "exit", "board"],
                capture_output=True, check=False,
            )  # fmt: skip


def free_port() -> int:
    """Find a port of the loopback that is free and that adb does not scan."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in EMULATOR_PORTS:
            return port


@contextmanager
def boot(*, cpu: str = "cortex-a76", memory_mb: int = 1024) -> Iterator[Board]:
    """Boot a fresh board and wait until it answers; it is switched off in the end.

    One emulated instruction takes one nanosecond of the board's own time, so that what it measures
    repeats: its latencies count instructions and are no device's.

    Raises:
        MissingError: something that it needs is not installed here.
        BoardError: it does not boot.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise MissingError(f"the board needs {', '.join(missing)}: see docs/board.md")
    image = build_image()
    with tempfile.TemporaryDirectory(prefix="board-") as scratch:
        folder = Path(scratch)
        ports = free_port(), free_port()
        with (folder / "console").open("wb") as log:
            process = subprocess.Popen(
                _command(image, ports, cpu, memory_mb),
                stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        board = Board(image, folder, process, *ports, adb_server_port=free_port())
        _give_keys(board)
        try:
            _wait_for(board)
            yield board
        finally:
            board.pull_the_plug()


def _give_keys(board: Board) -> None:
    board.key.parent.mkdir(mode=0o700)
    shutil.copy(board.image.client_key, board.key)
    board.key.chmod(0o600)
    board.known_hosts.write_text(f"[127.0.0.1]:{board.ssh_port} {board.image.host_key}\n")


def _command(image: Image, ports: tuple[int, int], cpu: str, memory_mb: int) -> list[str]:
    forwards = ",".join(
        f"hostfwd=tcp:127.0.0.1:{here}-:{there}"
        for here, there in zip(ports, (22, 5555), strict=True)
    )
    return [
        *ENDS_WITH_US,
        "qemu-system-aarch64", "-M", "virt,gic-version=3", "-cpu", cpu, "-smp", "1",
        "-m", str(memory_mb), "-icount", "shift=0", "-display", "none", "-monitor", "none",
        "-serial", "stdio", "-no-reboot", "-kernel", str(image.kernel), "-initrd",
        str(image.initrd), "-append", "console=ttyAMA0 rdinit=/init panic=-1 quiet",
        "-drive", f"file={image.disk},if=none,id=disk,format=raw,snapshot=on",
        "-device", "virtio-blk-pci,drive=disk",
        "-netdev", f"user,id=net,restrict=on,{forwards}",
        "-device", "virtio-net-pci,netdev=net,romfile=",
    ]  # fmt: skip


def _wait_for(board: Board) -> None:
    """Wait for the console's word, and then for the link, which comes up a little later."""
    console = board.folder / "console"
    end = time.monotonic() + BOOT_S
    while True:
        said = console.read_text(errors="replace").strip()
        try:
            if "READY" in said:
                board.shell("true", timeout_s=5)
                return
            why = "it is not ready"
        except BoardError as error:
            why = str(error)
        if board.process.poll() is not None or time.monotonic() > end:
            raise BoardError(f"the board did not boot: {why}; {said[-500:]}")
        time.sleep(0.2)
