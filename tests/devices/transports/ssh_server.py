"""A real OpenSSH server on the loopback, with a home, keys and known hosts of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
# The programs that a device must have.
SHELL = "sh mkdir chmod mv rm cat ls tr grep sleep kill df head"
KEYGEN = shutil.which("ssh-keygen")


def why_not() -> str:
    """Why no server can be started here; nothing where one can."""
    if SSHD is None or KEYGEN is None:
        return "no sshd is installed: apt-get install openssh-server"
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_key(path: Path) -> str:
    """Make a key pair; gives the public half."""
    command = [KEYGEN, "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path.with_name(f"{path.name}.pub").read_text().strip()


@dataclass
class SshServer:
    """One server; what its sessions see as their home is a folder of the test.

    Args:
        environment: of its sessions, above their home.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.home = self.folder / "home"
        self.home.mkdir()
        self.host_key = make_key(self.folder / "host_key")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> Path:
        """Where the transport keeps its work folders."""
        return self.home / ".cache/weightspace/runs"

    @property
    def address(self) -> str:
        return f"ssh://127.0.0.1:{self.port}"

    @property
    def known_hosts_line(self) -> str:
        return f"[127.0.0.1]:{self.port} {self.host_key}\n"

    def start(self, authorized_key: str) -> None:
        (self.folder / "authorized_keys").write_text(authorized_key + "\n")
        given = {"HOME": str(self.home), **self.environment}
        words = " ".join(f'"{name}={value}"' for name, value in given.items())
        (self.folder / "conf").write_text(
            f"Port {self.port}\n"
            "ListenAddress 127.0.0.1\n"
            f"HostKey {self.folder}/host_key\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\n"
            "PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "MaxStartups 100\nUseDNS no\nPrintMotd no\n"
            "Subsystem sftp internal-sftp\n"
            f"SetEnv {words}\n"
        )
        log = self.folder / "log"
        self.process = subprocess.Popen([SSHD, "-D", "-f", self.folder / "conf", "-E", log])
        end = time.monotonic() + 10
        while time.monotonic() < end and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"sshd does not answer: {log.read_text()}")

    def cut_sessions(self) -> None:
        """Kill what serves the connections, as a device that loses its power would."""
        assert self.process is not None
        servers = psutil.Process(self.process.pid).children()
        for session in servers:
            with suppress(psutil.NoSuchProcess):
                servers += [child for child in session.children() if child.name() == "sshd"]
        for session in servers:
            with suppress(psutil.NoSuchProcess):
                session.kill()

    def stop(self) -> None:
        if self.process is not None:
            self.cut_sessions()
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
            self.process = None
