"""What only a device over ssh can do to its user."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import threading

import psutil
import pytest

from devices.device import Device
from devices.transports import ssh_link
from devices.transports.ssh import SshTransport
from devices.transports.ssh_link import parse_address
from export.errors import DeviceError, DeviceLostError, MissingExtraError, UserError
from tests.devices.transports.conftest import Place, is_running, wait_until
from tests.devices.transports.proxy import Proxy
from tests.devices.transports.ssh_server import SHELL, free_port, make_key
from tests.devices.transports.test_faults import RUN_LONG, shell


@pytest.fixture
def proxy(ssh_server, known):
    """Put a link in front of the server."""
    made = []

    def make(**options) -> Proxy:
        link = Proxy(ssh_server.port, **options)
        made.append(link)
        with known.open("a") as file:
            file.write(f"[127.0.0.1]:{link.port} {ssh_server.host_key}\n")
        return link

    yield make
    for link in made:
        link.close()


@pytest.fixture
def open_at(known, proxy, server_with):  # which outlive it
    """Make a transport for an address, closed in the end."""
    opened = []

    def make(address: str, timeout_s: float = 10, delays_s: tuple[float, ...] = (), **more: str):
        transport = SshTransport(Device("pi", address, **more), timeout_s, delays_s)
        opened.append(transport)
        return transport

    yield make
    for transport in opened:
        transport.close()


GREP_WITHOUT_Z = '#!/bin/sh\ncase $1 in *z*) exit 2 ;; esac\nexec busybox grep "$@"\n'
BUSYBOX = '#!/bin/sh\nexec busybox {} "$@"\n'


def refused(transport: SshTransport, message: str) -> str:
    """The device is not reached, and one line says why."""
    with pytest.raises(DeviceError, match=message) as caught:
        transport.connect()
    text = str(caught.value)
    assert text.startswith("pi: ")
    assert "\n" not in text
    assert not isinstance(caught.value, DeviceLostError)
    return text


# ---- connecting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("ssh://pi", ("pi", None, None)),
        ("ssh://pi.local:2222", ("pi.local", None, 2222)),
        ("ssh://me@pi", ("pi", "me", None)),
        ("ssh://me@10.0.0.2:22/", ("10.0.0.2", "me", 22)),
        ("ssh://me@[fe80::1%eth0]:22", ("fe80::1%eth0", "me", 22)),
        ("ssh://MyBoard", ("MyBoard", None, None)),
    ],
)
def test_addresses_are_read(address, found):
    read = parse_address(Device("pi", address))
    assert (read.host, read.user, read.port) == found


@pytest.mark.parametrize(
    "address",
    ["ssh://", "ssh://me@", "ssh://pi:port", "ssh://pi:70000", "ssh://me:secret@pi", "ssh://-oX=y",
     "ssh://a b", "ssh://pi/folder"],
)  # fmt: skip
def test_other_addresses_are_refused(address):
    with pytest.raises(UserError, match=r"must be ssh://\[user@\]host\[:port\]"):
        SshTransport(Device("pi", address))


def test_an_unknown_host_key_is_refused(open_at, ssh_server, known):
    known.write_text("")
    text = refused(open_at(ssh_server.address), "host key of 127.0.0.1 is not known")
    assert f"`ssh -p {ssh_server.port} 127.0.0.1` and check the fingerprint" in text
    known.unlink()
    refused(open_at(ssh_server.address), "host key of 127.0.0.1 is not known")
    assert ssh_server.runs.exists() is False or os.listdir(ssh_server.runs) == []


def test_a_changed_host_key_is_refused(open_at, ssh_server, known, tmp_path):
    other = make_key(tmp_path / "other")
    known.write_text(f"[127.0.0.1]:{ssh_server.port} {other}\n")
    text = refused(open_at(ssh_server.address), "host key of 127.0.0.1 has changed")
    assert f"ssh-keygen -R '[127.0.0.1]:{ssh_server.port}'" in text
    assert other in known.read_text()


def test_a_wrong_client_key_is_refused_without_trying_again(open_at, ssh_server, ssh_home):
    for path in (ssh_home / ".ssh").glob("id_*"):
        path.unlink()
    make_key(ssh_home / ".ssh/id_ed25519")
    text = refused(open_at(ssh_server.address, delays_s=(1000,)), "refuses to log in")
    assert "ssh-copy-id" in text


def test_a_refused_connection_is_said(open_at):
    port = free_port()
    refused(open_at(f"ssh://127.0.0.1:{port}"), f"127.0.0.1 port {port} refuses connections")


def test_a_device_that_boots_is_waited_for(open_at, server_with, known):
    server = server_with(SHELL)
    server.stop()
    key = (server.folder / "authorized_keys").read_text().strip()
    timer = threading.Timer(0.3, server.start, [key])
    timer.start()
    open_at(server.address, delays_s=(0.1,) * 100).connect()
    timer.join()


def test_a_name_that_cannot_be_resolved_is_said(open_at):
    refused(open_at("ssh://no-such-host.invalid", delays_s=(1000,)), "cannot be resolved")


def test_a_port_that_never_answers_is_given_up(open_at):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        refused(
            open_at(f"ssh://127.0.0.1:{port}", timeout_s=0.3, delays_s=(0.01,)),
            r"did not answer within 0\.3 s",
        )


def test_a_port_that_hangs_up_is_said(open_at):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up():
            for _ in range(2):
                listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        port = listener.getsockname()[1]
        refused(
            open_at(f"ssh://127.0.0.1:{port}", delays_s=(0.01,)), "closed the connection before"
        )
        thread.join()


def test_a_server_of_another_kind_is_said(open_at):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection = listener.accept()[0]
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2000)
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        refused(open_at(f"ssh://127.0.0.1:{listener.getsockname()[1]}"), "127.0.0.1 port")
        thread.join()


def test_the_users_ssh_configuration_counts(open_at, ssh_server, ssh_home, known):
    """Host aliases, keys under another name, and jump hosts."""
    folder = ssh_home / ".ssh"
    (folder / "id_ed25519").rename(folder / "board key")
    user = psutil.Process().username()
    (folder / "config").write_text(
        f"Host Board\n  HostName 127.0.0.1\n  Port {ssh_server.port}\n  User {user}\n"
        f'  IdentityFile "{folder}/board key"\n'
        f"Host inner\n  HostName 127.0.0.1\n  Port {ssh_server.port}\n  ProxyJump Board\n"
        f'  IdentityFile "{folder}/board key"\n'
    )
    for address in ("ssh://Board", "ssh://inner"):
        transport = open_at(address)
        transport.connect()
        assert transport.run(["echo", "there"], timeout_s=20).output == "there\n"
        transport.close()


def test_a_broken_configuration_is_said(open_at, ssh_server, ssh_home):
    (ssh_home / ".ssh/config").write_text("Port many\n")
    refused(open_at(ssh_server.address), "ssh configuration cannot be used: .*line 1")


def test_the_missing_extra_is_named(open_at, ssh_server, monkeypatch):
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'weightspace\[ssh\]'"):
        open_at(ssh_server.address).connect()


# ---- running ----------------------------------------------------------------------------------


def test_an_error_of_the_caller_ends_the_command(open_at, ssh_server):
    transport = open_at(ssh_server.address)
    transport.connect()

    def tell(line: str) -> None:
        raise ZeroDivisionError(line)

    with pytest.raises(ZeroDivisionError) as caught:
        transport.run(shell("echo $$ >&2; exec sleep 1000"), timeout_s=60, on_line=tell)
    assert not is_running(int(str(caught.value)))


def test_what_a_login_shell_prints_is_not_output(open_at, ssh_server, tmp_path):
    start = ssh_server.home / ".bashrc"
    start.write_text("echo welcome; echo to the board\n")
    try:
        transport = open_at(ssh_server.address)
        transport.connect()
        (tmp_path / "a").write_text("a")
        assert transport.push({"a": tmp_path / "a"}) == 1
        assert transport.push({"a": tmp_path / "a"}) == 0
        assert transport.run(["echo", "output"], timeout_s=20).output == "output\n"
        transport.close()
    finally:
        start.unlink()


def test_only_its_user_can_read_the_folder(open_at, ssh_server):
    transport = open_at(ssh_server.address)
    transport.connect()
    (folder,) = ssh_server.runs.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert ssh_server.runs.stat().st_mode & 0o777 == 0o700


# ---- devices that lack something ---------------------------------------------------------------


def test_a_device_without_python(open_at, server_with, tmp_path):
    server = server_with(f"{SHELL} sha256sum")
    transport = open_at(server.address)
    transport.connect()
    (tmp_path / "a").write_text("a")
    assert transport.push({"a": tmp_path / "a"}) == 1
    done = transport.run(["python3", "-c", "print()"], timeout_s=20)
    assert done.exit_code == 127
    assert "python3" in done.errors
    transport.close()
    assert os.listdir(server.runs) == []


@pytest.mark.parametrize("tool", ["python3", "shasum"])
def test_a_device_without_sha256sum(open_at, server_with, tmp_path, tool):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed here")
    transport = open_at(server_with(f"{SHELL} {tool}").address)
    transport.connect()
    (tmp_path / "a").write_text("a")
    assert transport.push({"a": tmp_path / "a"}) == 1
    assert transport.push({"a": tmp_path / "a"}) == 0


def test_a_device_that_cannot_verify_what_was_sent(open_at, server_with, tmp_path):
    transport = open_at(server_with(SHELL).address)
    transport.connect()
    (tmp_path / "a").write_text("a")
    with pytest.raises(DeviceError, match="python3"):
        transport.push({"a": tmp_path / "a"})


def test_a_file_that_arrives_damaged_is_not_kept(open_at, server_with, tmp_path):
    wrong = "#!/bin/sh\ncat >/dev/null; echo 00"
    server = server_with(SHELL, sha256sum=wrong)
    transport = open_at(server.address)
    transport.connect()
    (tmp_path / "a").write_text("a")
    with pytest.raises(DeviceError, match="a did not arrive as it was sent"):
        transport.push({"a": tmp_path / "a"})
    (folder,) = server.runs.iterdir()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("grep", [BUSYBOX.format("grep"), GREP_WITHOUT_Z], ids=["-z", "no -z"])
def test_a_device_with_busybox(open_at, server_with, tmp_path, grep):
    """As small boards have it: one program under every name."""
    if shutil.which("busybox") is None:
        pytest.skip("busybox is not installed: apt-get install busybox")
    names = [*SHELL.split(), "sha256sum", "setsid"]
    server = server_with("busybox", **{n: BUSYBOX.format(n) for n in names} | {"grep": grep})
    left = server.runs / "me@here-1.2.999999999"
    left.mkdir(parents=True)
    (left / "kept").write_text("kept")
    transport = open_at(server.address)
    transport.connect()
    assert not left.exists()
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "new").write_text("new")
    files = {"kept": tmp_path / "kept", "it's new;\n": tmp_path / "new"}
    assert transport.push(files) == 3
    assert transport.push(files) == 0
    assert transport.run(["cat", *files], timeout_s=20).output == "keptnew"
    assert transport.run(["sh", "-c", "exit 7"], timeout_s=20).exit_code == 7
    pids: list[str] = []
    with pytest.raises(DeviceError, match=r"did not finish within 1 s$"):
        transport.run(
            shell("setsid sh -c 'echo $$ >&2; exec sleep 1000' & sleep 1000"), timeout_s=1,
            on_line=pids.append,
        )  # fmt: skip
    assert not is_running(int(pids[0]))
    transport.close()
    assert os.listdir(server.runs) == []


def test_a_home_that_cannot_be_written_is_said(open_at, server_with):
    server = server_with(SHELL)
    (server.home / ".cache").write_text("in the way")
    refused(open_at(server.address), r"no work folder can be made there: mkdir: .*\.cache")


# ---- links that break --------------------------------------------------------------------------


def test_a_session_that_is_killed_is_a_lost_device(open_at, ssh_server):
    transport = open_at(ssh_server.address)
    transport.connect()
    pids: list[int] = []

    def tell(line: str) -> None:
        pids.append(int(line))
        ssh_server.cut_sessions()

    with pytest.raises(DeviceLostError, match="the connection broke while"):
        transport.run(shell("echo $$ >&2; exec sleep 1000"), timeout_s=60, on_line=tell)
    assert wait_until(lambda: not is_running(pids[0]))
    transport.close()
    assert os.listdir(ssh_server.runs) == []


def test_a_device_that_stays_away_is_named_with_what_may_be_left(open_at, server_with):
    server = server_with(SHELL)
    transport = open_at(server.address)
    transport.connect()
    (folder,) = server.runs.iterdir()
    server.stop()
    with pytest.raises(DeviceLostError, match=r"may be left there") as caught:
        transport.close()
    assert str(folder) in str(caught.value)
    transport.close()
    assert wait_until(lambda: os.listdir(server.runs) == [])


@pytest.mark.parametrize("sent_bytes", [20_000, 1_000_000])
def test_a_link_that_is_cut_while_a_file_is_sent(open_at, ssh_server, proxy, tmp_path, sent_bytes):
    (tmp_path / "a").write_bytes(random.Random(0).randbytes(3_000_000))
    transport = open_at(f"ssh://127.0.0.1:{proxy(cut_after_bytes=sent_bytes).port}")
    transport.connect()
    with pytest.raises(DeviceLostError, match="the connection broke while sending a"):
        transport.push({"a": tmp_path / "a"})
    with pytest.raises(DeviceLostError, match="may be left there"):
        transport.close()  # the proxy cuts the second connection as well
    assert wait_until(lambda: os.listdir(ssh_server.runs) == [])


def test_a_slow_link_is_only_slow(open_at, proxy, tmp_path):
    (tmp_path / "a").write_bytes(random.Random(0).randbytes(1_500_000))
    transport = open_at(f"ssh://127.0.0.1:{proxy(bytes_per_s=3_000_000).port}")
    transport.connect()
    seen: list[int] = []
    assert transport.push({"a": tmp_path / "a"}, seen.append) == 1_500_000
    assert len(seen) > 2


def test_a_link_that_goes_silent_is_noticed(open_at, ssh_server, proxy, monkeypatch):
    monkeypatch.setattr(ssh_link, "_KEEPALIVE_S", 0.2)
    link = proxy()
    transport = open_at(f"ssh://127.0.0.1:{link.port}", timeout_s=1)
    transport.connect()
    with pytest.raises(DeviceLostError, match="the connection broke"):
        transport.run(
            shell("echo started >&2; exec sleep 1000"), timeout_s=60,
            on_line=lambda line: link.go_silent(),
        )  # fmt: skip
    with pytest.raises(DeviceLostError, match="may be left there"):
        transport.close()
    assert len(os.listdir(ssh_server.runs)) == 1  # the device has not noticed
    link.close()
    assert wait_until(lambda: os.listdir(ssh_server.runs) == [])


# ---- what is left behind -----------------------------------------------------------------------


PUSH_LONG = """
import sys
from pathlib import Path
from devices.device import Device
from devices.transports import open_transport
transport = open_transport(Device("pi", sys.argv[1]))
try:
    transport.connect()
    transport.push({"big": Path.home() / "big"}, lambda sent: print(sent, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
finally:
    transport.close()
"""


def test_ctrl_c_while_a_file_is_sent_leaves_nothing(ssh_server, proxy, known):
    device = Device("pi", f"ssh://127.0.0.1:{proxy(bytes_per_s=1_000_000).port}")
    place = Place(device, ssh_server.runs, {"HOME": str(known.parents[1])}, survives_kill=True)
    (known.parents[1] / "big").write_bytes(bytes(10_000_000))
    process = place.start(PUSH_LONG)
    assert process.stdout.readline(), process.stderr.read()
    assert len(place.work_folders()) == 1
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert place.work_folders() == []


def test_what_a_dead_process_left_on_a_silent_link_is_removed_by_the_next(
    open_at, ssh_server, proxy, known
):
    link = proxy()
    environment = {"HOME": str(known.parents[1])}
    device = Device("pi", f"ssh://127.0.0.1:{link.port}")
    place = Place(device, ssh_server.runs, environment, survives_kill=True)
    process = place.start(RUN_LONG)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    link.go_silent()
    process.kill()
    process.communicate()
    (left,) = place.work_folders()
    transport = open_at(ssh_server.address)
    transport.connect()
    (ours,) = place.work_folders()
    assert ours != left
    assert not any(map(place.is_running, pids))


def test_what_a_crash_of_the_device_left_is_used_again(open_at, ssh_server, tmp_path):
    (tmp_path / "a").write_bytes(b"sent once")
    transport = open_at(ssh_server.address)
    transport.connect()
    transport.push({"a": tmp_path / "a"})
    (left,) = ssh_server.runs.iterdir()
    psutil.Process(int(left.suffix[1:])).kill()
    ssh_server.cut_sessions()
    other = open_at(ssh_server.address)
    other.connect()
    assert other.push({"a": tmp_path / "a"}) == 0
    assert not left.exists()
    assert len(os.listdir(ssh_server.runs)) == 1


def test_the_folders_of_others_are_left_alone(open_at, ssh_server):
    ssh_server.runs.mkdir(parents=True, exist_ok=True)
    foreign = [ssh_server.runs / name for name in ("notes.old", "no-number", ".hidden.1")]
    for folder in foreign:
        folder.mkdir()
    one, other = open_at(ssh_server.address), open_at(ssh_server.address)
    one.connect()
    other.connect()
    other.close()
    assert one.run(["pwd"], timeout_s=20).exit_code == 0
    for folder in foreign:
        folder.rmdir()


def test_many_start_at_once_on_one_leftover(open_at, ssh_server):
    left = ssh_server.runs / "me@here-1.2.999999999"
    left.mkdir(parents=True)
    transports = [open_at(ssh_server.address) for _ in range(5)]
    threads = [threading.Thread(target=each.connect) for each in transports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not left.exists()
    assert len(os.listdir(ssh_server.runs)) == 5
    for transport in transports:
        assert transport.run(["pwd"], timeout_s=20).exit_code == 0
