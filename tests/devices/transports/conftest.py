from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from devices.device import Device
from devices.transports import Transport, open_transport
from tests.boards.emulator import Board
from tests.devices.transports.ssh_server import SshServer, make_key, why_not

ROOT = Path(__file__).parents[3]


def is_running(pid: int) -> bool:
    """Whether a process runs here; one that has ended may wait to be collected."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class Place:
    """A device of the fault tests, whose processes and work folders can be seen from here.

    Args:
        runs: the folder that holds the transport's work folders.
        survives_kill: whether nothing is left of a run even where this machine's process is
            killed with SIGKILL.
    """

    device: Device
    runs: Path
    environment: Mapping[str, str]
    survives_kill: bool
    opened: list[Transport] = field(default_factory=list)

    def open(self) -> Transport:
        transport = open_transport(self.device)
        self.opened.append(transport)
        transport.connect()
        return transport

    def work_folders(self) -> list[str]:
        return sorted(os.listdir(self.runs)) if self.runs.exists() else []

    def is_running(self, pid: int) -> bool:
        return is_running(pid)

    def processes(self) -> list[int]:
        """What runs in the work folders, even in those that have been removed."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.cwd().startswith(str(self.runs)):
                    found.append(process.pid)
        return found

    @contextmanager
    def small_disk(self, mib: int) -> Iterator[None]:
        """Put the work folders on a disk of this size."""
        self.runs.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", str(self.runs)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("a small disk can be mounted by root only")
        try:
            yield
        finally:
            for transport in self.opened:
                transport.close()
            subprocess.run(["umount", "-l", str(self.runs)], check=True)

    def start(self, code: str) -> subprocess.Popen[str]:
        """Start Python code in a process of its own, which takes Ctrl-C as a terminal's does."""
        return subprocess.Popen(
            [sys.executable, "-c", code, self.device.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **self.environment, "PYTHONPATH": str(ROOT)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def wait_until(holds: Callable[[], bool], seconds: float = 15) -> bool:
    """Whether something becomes true; the time is a limit, not what is tested."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="session")
def ssh_client_key(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("client") / "id_ed25519"
    if not why_not():
        make_key(path)
    return path


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory, ssh_client_key) -> Iterator[SshServer]:
    if reason := why_not():
        pytest.skip(reason)
    server = SshServer(tmp_path_factory.mktemp("ssh") / "server")
    server.start(ssh_client_key.with_suffix(".pub").read_text().strip())
    yield server
    server.stop()


@pytest.fixture
def ssh_home(tmp_path, monkeypatch, ssh_client_key) -> Path:
    """A home folder for the client: no agent and no configuration of the developer's is read."""
    home = tmp_path / "client home"
    folder = home / ".ssh"
    folder.mkdir(parents=True)
    for path in (ssh_client_key, ssh_client_key.with_suffix(".pub")):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "id_ed25519").chmod(0o600)
    (folder / "known_hosts").touch()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture
def known(ssh_home, ssh_server) -> Path:
    """The client's known hosts, which know the server."""
    path = ssh_home / ".ssh/known_hosts"
    path.write_text(ssh_server.known_hosts_line)
    return path


@pytest.fixture
def server_with(tmp_path, ssh_server, ssh_client_key, known):
    """Start a server whose sessions have only these programs."""
    started = []

    def make(programs: str, **scripts: str) -> SshServer:
        folder = tmp_path / "programs"
        folder.mkdir()
        for name in programs.split():
            found = os.path.realpath(sys.executable) if name == "python3" else shutil.which(name)
            (folder / name).symlink_to(found)
        for name, script in scripts.items():
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        server = SshServer(tmp_path / "server", {"PATH": str(folder)})
        server.start(ssh_client_key.with_suffix(".pub").read_text().strip())
        started.append(server)
        with known.open("a") as file:
            file.write(server.known_hosts_line)
        return server

    yield make
    for server in started:
        server.stop()


def make_local(request) -> Place:
    runs = request.getfixturevalue("tmp_path") / "runs"
    runs.mkdir()
    request.getfixturevalue("monkeypatch").setattr(tempfile, "tempdir", str(runs))
    device = Device("this machine", "local")
    return Place(device, runs, {"TMPDIR": str(runs)}, survives_kill=False)


def make_ssh(request) -> Place:
    server = request.getfixturevalue("ssh_server")
    home = request.getfixturevalue("ssh_home")
    (home / ".ssh/known_hosts").write_text(server.known_hosts_line)
    device = Device("pi", server.address)
    return Place(device, server.runs, {"HOME": str(home)}, survives_kill=True)


class BoardPlace(Place):
    """The emulated board, reached by adb; seen by ssh."""

    board: Board

    def work_folders(self) -> list[str]:
        return self.board.shell(f"ls {self.runs}").splitlines()

    def is_running(self, pid: int) -> bool:
        state = self.board.shell(f"grep -s ^State: /proc/{pid}/status; true")
        return bool(state) and "Z" not in state

    def processes(self) -> list[int]:
        links = self.board.shell(f"ls -l /proc/[0-9]*/cwd 2> /dev/null | grep {self.runs}/; true")
        return [int(link.split("/proc/")[1].split("/")[0]) for link in links.splitlines()]

    @contextmanager
    def small_disk(self, mib: int) -> Iterator[None]:
        self.board.shell(f"mount -t tmpfs -o size={mib}m,mode=777 none {self.runs}")
        try:
            yield
        finally:
            for transport in self.opened:
                transport.close()
            self.board.shell(f"umount -l {self.runs}")


def make_adb(request) -> Place:
    request.getfixturevalue("adb_server")
    board = request.getfixturevalue("board")
    device = Device("phone", board.adb_address)
    place = BoardPlace(device, Path("/data/local/tmp"), {}, survives_kill=False)
    place.board = board
    return place


# A transport's row: how the tests get a device of it. Each test that takes `place` runs on all.
PLACES: dict[str, Callable[[pytest.FixtureRequest], Place]] = {
    "local": make_local,
    "ssh": make_ssh,
    "adb": make_adb,
}


@pytest.fixture(params=PLACES)
def place(request) -> Iterator[Place]:
    made = PLACES[request.param](request)
    yield made
    for transport in made.opened:
        transport.close()
    assert wait_until(lambda: made.work_folders() == []), made.work_folders()


@pytest.fixture
def transport(place) -> Transport:
    return place.open()
