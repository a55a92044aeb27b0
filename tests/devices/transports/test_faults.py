"""What every transport does alike, above all when something goes wrong."""

from __future__ import annotations

import random
import signal
import time

import pytest

from devices.device import Device
from devices.transports import open_transport
from export.errors import DeviceError, UserError
from tests.devices.transports.conftest import wait_until

NAMES = [
    "model.onnx",
    "a b.bin",
    "it's.bin",
    'say "hi".bin',
    "semi;colon && false | cat.bin",
    "$(touch hacked) `touch hacked` $HOME",
    "two\nlines\n",
    "-rf",
    "*?[a].bin",
    "back\\slash\\n.bin",
    "größe_模型_🍓.bin",
    " space ",
    "~",
    "{a,b}%s#!",
    "folder/in a folder/file.bin",
]


@pytest.fixture
def files(tmp_path):
    """Make files to send: name there -> file here."""
    folder = tmp_path / "to send"
    folder.mkdir()

    def make(**contents: bytes):
        found = {}
        for number, (name, content) in enumerate(contents.items()):
            path = folder / f"file {number}"
            path.write_bytes(content)
            found[name] = path
        return found

    return make


def shell(script: str, *args: str) -> list[str]:
    return ["sh", "-c", script, "sh", *args]


def test_files_come_back_as_they_were_sent(transport, files, tmp_path):
    content = random.Random(0).randbytes(3_000_000)
    assert transport.push(files(**{"a.bin": content, "empty": b""})) == len(content)
    transport.pull("a.bin", tmp_path / "back")
    transport.pull("empty", tmp_path / "empty")
    assert (tmp_path / "back").read_bytes() == content
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_link_here_is_sent_as_what_it_leads_to(transport, tmp_path):
    """As model stores keep their files."""
    (tmp_path / "stored").write_bytes(b"content")
    (tmp_path / "link").symlink_to("stored")
    assert transport.push({"a": tmp_path / "link"}) == 7
    assert transport.run(["cat", "a"], timeout_s=20).output == "content"
    assert transport.run(["test", "-h", "a"], timeout_s=20).exit_code == 1


def test_only_changed_files_are_sent(transport, files):
    transport.push(files(a=b"one", b=b"two"))
    assert transport.push(files(a=b"one", b=b"two")) == 0
    assert transport.push(files(a=b"one", b=b"TWO!", c=b"three")) == 9
    assert transport.run(["cat", "a", "b", "c"], timeout_s=20).output == "oneTWO!three"


def test_a_file_that_was_damaged_on_the_device_is_sent_again(transport, files):
    transport.push(files(a=b"right"))
    transport.run(shell("printf wrong >a"), timeout_s=20)
    assert transport.push(files(a=b"right")) == 5
    assert transport.run(["cat", "a"], timeout_s=20).output == "right"


def test_progress_ends_at_the_bytes_that_were_sent(transport, files):
    seen: list[int] = []
    sent = transport.push(files(a=bytes(1_000_000), b=b"b"), seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == sent == 1_000_001


def test_a_name_may_hold_any_character(transport, files, tmp_path):
    content = {name: f"content of {name}".encode() for name in NAMES}
    assert transport.push(files(**content)) == sum(map(len, content.values()))
    assert transport.push(files(**content)) == 0
    for number, name in enumerate(NAMES):
        transport.pull(name, tmp_path / f"back {number}")
        assert (tmp_path / f"back {number}").read_bytes() == content[name]
    listed = transport.run(["find", ".", "-type", "f", "-print0"], timeout_s=20).output
    assert sorted(listed.split("\0")[:-1]) == sorted(f"./{name}" for name in NAMES)


def test_a_name_outside_of_the_folder_is_refused(transport, files, tmp_path):
    for name in ("", ".", "/etc/passwd", "../up", "a/../../up", "nul\0"):
        with pytest.raises(DeviceError, match="not a file's name"):
            transport.push(files(**{name: b"content"}))
        with pytest.raises(DeviceError, match="not a file's name"):
            transport.pull(name, tmp_path / "back")


def test_arguments_reach_the_program_as_they_are(transport):
    done = transport.run(["printf", "[%s]", *NAMES, ""], timeout_s=20)
    assert done.output == "".join(f"[{name}]" for name in NAMES) + "[]"


@pytest.mark.parametrize(
    ("command", "code", "ending"),
    [
        (["true"], 0, "ended with exit code 0"),
        (shell("exit 7"), 7, "ended with exit code 7"),
        (["no-such-program"], 127, "ended with exit code 127"),
        (["./not-executable"], 126, "ended with exit code 126"),
        (shell("kill -s TERM $$"), 143, "was ended by SIGTERM"),
        (shell("kill -s KILL $$"), 137, "SIGKILL: the device may have run out of memory"),
        (shell("kill -s SEGV $$"), 139, "was ended by SIGSEGV"),
    ],
)
def test_exit_codes_arrive(transport, files, command, code, ending):
    transport.push(files(**{"not-executable": b"#!/bin/sh\n"}))
    transport.run(["chmod", "644", "not-executable"], timeout_s=20)
    done = transport.run(command, timeout_s=20)
    assert done.exit_code == code
    assert ending in done.ending


def test_standard_error_comes_line_by_line(transport):
    lines: list[str] = []
    done = transport.run(
        shell("echo one >&2; echo out; printf 'two\\n\\nthree' >&2"), timeout_s=20,
        on_line=lines.append,
    )  # fmt: skip
    assert lines == ["one", "two", "", "three"]
    assert done.output == "out\n"
    assert done.errors.splitlines() == lines


def test_big_output_arrives_whole(transport):
    script = "head -c 8000000 /dev/zero | tr '\\0' x; yes | head -n 200000 >&2"
    count = 0

    def tell(line: str) -> None:
        nonlocal count
        count += line == "y"

    done = transport.run(shell(script), timeout_s=60, on_line=tell)
    assert len(done.output) == 8_000_000
    assert count == 200_000


def test_standard_input_stays_open(transport):
    """A program on the device takes its end as the sign that the link is lost."""
    done = transport.run(shell("timeout 0.5 cat; echo $?"), timeout_s=20)
    assert done.output == "124\n"


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(place):
    transport = place.open()
    pids: list[str] = []
    script = "sleep 1000 & echo $! >&2; echo $$ >&2; trap '' TERM HUP; sleep 1001"
    with pytest.raises(DeviceError, match=r"sh did not finish within 1 s$"):
        transport.run(shell(script), timeout_s=1, on_line=pids.append)
    assert len(pids) == 2
    assert wait_until(lambda: not any(place.is_running(int(pid)) for pid in pids))
    assert transport.run(["echo", "usable"], timeout_s=20).output == "usable\n"


def test_a_process_that_left_its_group_is_ended_too(place):
    transport = place.open()
    pids: list[str] = []
    script = "setsid sh -c 'echo $$ >&2; exec sleep 1000' & sleep 1000"
    with pytest.raises(DeviceError, match="did not finish"):
        transport.run(shell(script), timeout_s=1, on_line=pids.append)
    assert wait_until(lambda: not place.is_running(int(pids[0])))


def test_what_outlives_its_command_is_ended(place):
    transport = place.open()
    done = transport.run(shell("sleep 1000 & echo $! >&2; exit 3"), timeout_s=60)
    assert done.exit_code == 3
    assert wait_until(lambda: not place.is_running(int(done.errors)))


def test_a_full_disk_is_said_and_leaves_no_part(place, files):
    with place.small_disk(mib=2):
        transport = place.open()
        transport.push(files(small=b"small"))
        with pytest.raises(DeviceError, match=r"no space left in .* \(needs 4\.0 MB\)$") as caught:
            transport.push(files(big=bytes(4_000_000)))
        assert "\n" not in str(caught.value)
        assert transport.run(["ls"], timeout_s=20).output == "small\n"


def test_a_file_that_is_not_there_is_not_fetched(transport, tmp_path):
    (tmp_path / "kept").write_text("before")
    with pytest.raises(DeviceError, match="absent"):
        transport.pull("absent", tmp_path / "kept")
    assert (tmp_path / "kept").read_text() == "before"
    assert not (tmp_path / "kept.part").exists()


def test_a_file_that_is_not_here_is_not_sent(transport, tmp_path):
    with pytest.raises((DeviceError, OSError)):
        transport.push({"a": tmp_path / "absent"})
    assert transport.run(["ls", "-A"], timeout_s=20).output == ""


def test_two_at_once_have_folders_of_their_own(place, files):
    one, other = place.open(), place.open()
    one.push(files(a=b"one"))
    other.push(files(a=b"other"))
    assert len(place.work_folders()) == 2
    one.close()
    assert other.run(["cat", "a"], timeout_s=20).output == "other"


def test_close_may_be_called_twice_and_connect_again(place, files):
    transport = place.open()
    transport.push(files(a=b"one"))
    transport.close()
    transport.close()
    assert place.work_folders() == []
    with pytest.raises(DeviceError, match="not connected"):
        transport.run(["true"], timeout_s=20)
    transport.connect()
    assert transport.run(["ls"], timeout_s=20).output == ""


RUN_LONG = """
import sys
from devices.device import Device
from devices.transports import open_transport
transport = open_transport(Device("it", sys.argv[1]))
try:
    transport.connect()
    transport.run(
        ["sh", "-c", "sleep 1000 & echo $! $$ >&2; wait"], timeout_s=100,
        on_line=lambda line: print(line, flush=True),
    )
except KeyboardInterrupt:
    sys.exit(130)
finally:
    transport.close()
"""


def test_ctrl_c_ends_the_command_and_removes_the_folder(place):
    process = place.start(RUN_LONG)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(place.work_folders()) == 1
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    assert place.work_folders() == []
    assert wait_until(lambda: not any(map(place.is_running, pids)))


def test_twenty_interrupted_runs_leave_nothing_behind(place):
    """Interrupted at any moment, by Ctrl-C or by the end of this machine's process."""
    chance = random.Random(0)
    signals = [signal.SIGINT, signal.SIGKILL] if place.survives_kill else [signal.SIGINT]
    told = 0
    for _ in range(5):
        started = [place.start(RUN_LONG) for _ in range(4)]
        for number, process in enumerate(started):
            if number < 2:  # the others are interrupted while they connect
                told += len(process.stdout.readline().split())
            else:
                time.sleep(chance.random() / 4)
            process.send_signal(chance.choice(signals))
        for process in started:
            process.communicate(timeout=30)
    assert told == 20
    assert wait_until(lambda: place.work_folders() == []), place.work_folders()
    assert wait_until(lambda: place.processes() == []), place.processes()


@pytest.mark.parametrize("address", ["bluetooth://pi", "ftp://pi", "raspberry"])
def test_an_address_of_no_known_kind_is_refused(address):
    with pytest.raises(UserError, match="of no known kind"):
        open_transport(Device("it", address))
