"""The adb transport against a real adbd: what `test_faults.py` does not try on all transports."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from devices.device import Device
from devices.transports import adb
from devices.transports.adb import AdbTransport, parse_devices, remedy_of
from export.errors import DeviceError, DeviceLostError, MissingExtraError
from tests.boards.emulator import boot
from tests.devices.transports.adb_fakes import phone

pytestmark = pytest.mark.usefixtures("adb_server")


@pytest.fixture
def device(board):
    return Device("phone", board.adb_address)


@pytest.fixture
def transport(device):
    opened = AdbTransport(device)
    opened.connect()
    yield opened
    opened.close()


def left_behind(board) -> list[str]:
    return board.shell("find /data/local/tmp /small -mindepth 1").split("\n")[:-1]


def running(board, word: str) -> list[str]:
    return board.shell(f"pgrep -af '{word}' | grep -v pgrep; true").splitlines()


def test_the_board_has_a_phones_user_shell_and_programs(transport):
    said = transport.run(["sh", "-c", "id -un; echo $KSH_VERSION; readlink /system/bin/setsid"],
                         timeout_s=30)  # fmt: skip
    user, shell, setsid = said.output.splitlines()
    assert user == "shell"
    assert "MIRBSD KSH" in shell
    assert setsid == "/usr/bin/toybox"


def test_an_output_that_looks_like_an_end_is_output(transport):
    done = transport.run(["printf", "\nended-0123456789abcdef 0\n"], timeout_s=30)
    assert done.output == "\nended-0123456789abcdef 0\n"


def test_what_outlives_its_command_in_a_session_of_its_own_is_ended(transport, board):
    script = "setsid sleep 4322 < /dev/null > /dev/null 2>&1 & sleep 0.2; echo $!"
    transport.run(["sh", "-c", script], timeout_s=30)
    assert not running(board, "sleep 4322")


INTERRUPTED = """
import signal, sys, threading, time, os
from pathlib import Path
from devices.device import Device
from devices.transports.adb import AdbTransport
transport = AdbTransport(Device("phone", sys.argv[1]))
try:
    transport.connect()
    print("connected", flush=True)
    transport.push({"file": Path(sys.argv[2])})
    transport.run(["sh", "-c", "sleep 4323 & sleep 4323"], timeout_s=100)
finally:
    transport.close()
"""


def test_a_run_that_was_killed_is_found_and_put_in_order_by_the_next(board, device, tmp_path):
    small = tmp_path / "small"
    small.write_bytes(b"once")
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, board.adb_address, str(small)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not running(board, "sleep 4323"):
        assert process.poll() is None
    process.kill()
    process.communicate()
    following = AdbTransport(device)
    following.connect()
    assert not running(board, "sleep 4323")
    assert following.push({"file": small}) == 0
    following.close()
    assert not left_behind(board)


@pytest.mark.parametrize(
    ("parent", "words"),
    [
        ("/readonly", "read-only file system: /readonly is read-only there"),
        ("/root", "permission denied: /root may not be written there"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(device, parent, words):
    with pytest.raises(
        DeviceError, match=f"phone: {parent}/weightspace-.* cannot be made: {words}"
    ):
        AdbTransport(device, parent=parent).connect()


def test_with_one_device_attached_no_serial_is_needed(transport, board):
    alone = AdbTransport(Device("", "adb://"))
    alone.connect()
    assert alone.run(["echo", "hello"], timeout_s=30).output == "hello\n"
    alone.close()


def test_a_device_that_is_not_attached_is_told_with_those_that_are(transport, board):
    with pytest.raises(DeviceError, match=f"absent is not attached; attached: {board.adb_serial}"):
        AdbTransport(Device("", "adb://absent")).connect()
    with pytest.raises(DeviceError, match=r"127.0.0.1:1 is not attached \(Connection refused\)"):
        AdbTransport(Device("", "adb://127.0.0.1:1")).connect()


def test_a_phone_that_does_not_allow_debugging_says_what_to_do(transport, board):
    with phone(allows=False) as serial:
        with pytest.raises(DeviceError, match="is unauthorized; unlock it and allow USB debugging"):
            AdbTransport(Device("", f"adb://{serial}")).connect()
        with pytest.raises(DeviceError, match="several devices are attached") as told:
            AdbTransport(Device("", "adb://")).connect()
        assert f"{board.adb_serial} (device)" in str(told.value)
        assert f"{serial} (unauthorized)" in str(told.value)
        subprocess.run(["adb", "disconnect", serial], capture_output=True, check=True)


def test_a_phone_that_does_not_answer_says_what_to_do(monkeypatch):
    monkeypatch.setattr(adb, "_CONNECTING_S", 0.5)
    with phone(allows=None) as serial:
        with pytest.raises(DeviceError, match="is offline; unplug it and plug it in again"):
            AdbTransport(Device("", f"adb://{serial}")).connect()
        subprocess.run(["adb", "disconnect", serial], capture_output=True, check=True)


def test_every_state_has_a_remedy_of_one_line():
    # What adb prints for a USB device that the user may not open.
    listed = (
        "List of devices attached\n"
        "0123456789ABCDEF\tno permissions (user in plugdev group; are your udev rules wrong?)\n"
        "emulator-5554\toffline\nR58M12ABCDE\tunauthorized\nF00\trecovery\n\n"
    )
    states = parse_devices("* daemon started successfully\n" + listed)
    assert list(states) == ["0123456789ABCDEF", "emulator-5554", "R58M12ABCDE", "F00"]
    remedies = [remedy_of(state) for state in states.values()]
    for remedy, word in zip(remedies, ["udev", "plug it in", "unlock", "normal"], strict=True):
        assert word in remedy
        assert "\n" not in remedy


def test_without_an_adb_program_the_extra_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert Path(adb.adb_program()).is_file()  # the one that adbutils brings
    monkeypatch.setitem(sys.modules, "adbutils", None)
    with pytest.raises(MissingExtraError, match=r"weightspace\[adb\]"):
        adb.adb_program()


@pytest.fixture(scope="module")
def small_board():
    """A board of its own with little memory, which a test may break."""
    with boot(memory_mb=384) as board:
        yield board
        subprocess.run(["adb", "disconnect", board.adb_serial], capture_output=True, check=False)


def test_a_command_killed_for_want_of_memory_ends_with_137(small_board):
    transport = AdbTransport(Device("phone", small_board.adb_address))
    transport.connect()
    hungry = "blocks = []\nwhile True: blocks.append(b'x' * 20_000_000)"
    assert transport.run(["python3", "-c", hungry], timeout_s=300).exit_code == 137
    assert transport.run(["echo", "there"], timeout_s=30).output == "there\n"
    transport.close()
    assert "Out of memory: Killed process" in small_board.shell("dmesg")


def test_a_device_that_dies_in_the_middle_is_lost_and_not_done(small_board, tmp_path):
    transport = AdbTransport(Device("phone", small_board.adb_address))
    transport.connect()
    threading.Timer(1.0, small_board.pull_the_plug).start()
    with pytest.raises(DeviceLostError, match="phone: the link broke while sleep ran"):
        transport.run(["sleep", "4324"], timeout_s=100)
    with pytest.raises(DeviceLostError, match="phone: the link broke"):
        transport.push({"x": Path(__file__)})
    with pytest.raises(DeviceLostError, match="phone: the link broke"):
        transport.pull("x", tmp_path / "x")
    transport.close()
