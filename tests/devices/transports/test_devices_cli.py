"""`weightspace devices`, with a real server as the device."""

from __future__ import annotations

import json
import os
import shlex
import sys

import pytest

from tests.devices.transports.ssh_server import SHELL


@pytest.fixture(autouse=True)
def names(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSPACE_DEVICES", str(tmp_path / "devices.toml"))
    monkeypatch.setenv("COLUMNS", "200")


def test_a_device_is_named_listed_checked_and_forgotten(cli, ssh_server, known):
    assert cli("devices", "add", "pi", ssh_server.address, "--python", sys.executable).code == 0
    assert ssh_server.address in cli("devices", "list").out
    listed = json.loads(cli("devices", "list", "--json").out)
    assert [each["name"] for each in listed] == ["local", "pi"]
    checked = cli("devices", "check", "--json")
    assert checked.code == 0, checked.err
    (found,) = json.loads(checked.out)
    assert found["usable"]
    assert {"numpy", "onnxruntime", "ai_edge_litert"} <= set(found["runtimes"])
    assert found["machine"] == os.uname().machine
    assert found["free_disk_bytes"] > 0
    assert found["free_memory_bytes"] > 0
    assert found["missing"] == []
    assert os.listdir(ssh_server.runs) == []
    assert cli("devices", "remove", "pi").code == 0
    assert "pi" not in cli("devices", "list").out.split()


def test_this_machine_can_be_checked(cli):
    outcome = cli("devices", "check", "local")
    assert outcome.code == 0
    assert "onnxruntime" in outcome.out


def test_what_is_missing_is_said_with_its_command(cli, ssh_server, known, tmp_path):
    """A virtual environment without any package."""
    import venv

    venv.create(tmp_path / "a venv", with_pip=False, symlinks=True)
    python = str(tmp_path / "a venv/bin/python")
    cli("devices", "add", "pi", ssh_server.address, "--python", python)
    outcome = cli("devices", "check", "pi")
    assert outcome.code == 1
    assert outcome.out.startswith("pi: not usable\n")
    assert (
        f"run there `{shlex.quote(python)} -m pip install numpy onnxruntime ai-edge-litert`"
        in outcome.out
    )


def test_a_runtime_that_ends_its_process_is_said(cli, ssh_server, known, tmp_path):
    """As one does that was built for another processor."""
    (tmp_path / "onnxruntime.py").write_text("import os; os.kill(os.getpid(), 4)\n")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nexport PYTHONPATH={shlex.quote(str(tmp_path))}\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    cli("devices", "add", "pi", ssh_server.address, "--python", python)
    outcome = cli("devices", "check", "pi")
    assert "onnxruntime: it is installed, and cannot be imported: signal 4 ended it" in outcome.out
    assert outcome.code == 0  # LiteRT is still there


def test_a_device_without_python_is_not_usable(cli, server_with):
    server = server_with(f"{SHELL} uname")
    cli("devices", "add", "pi", server.address)
    outcome = cli("devices", "check", "pi")
    assert outcome.code == 1
    assert "install python3 and python3-venv there" in outcome.out
    assert os.uname().machine in outcome.out


def test_a_python_that_is_none_is_said(cli, ssh_server, known):
    cli("devices", "add", "pi", ssh_server.address, "--python", "false")
    outcome = cli("devices", "check", "pi")
    assert outcome.code == 1
    assert len(outcome.error_lines) == 1
    assert "false ended with exit code 1" in outcome.error_lines[0]


def test_one_device_that_is_away_keeps_no_other_from_being_checked(cli, ssh_server, known):
    cli("devices", "add", "away", "ssh://no-such-host.invalid")
    cli("devices", "add", "pi", ssh_server.address, "--python", sys.executable)
    outcome = cli("devices", "check")
    assert outcome.code == 1
    assert outcome.out.startswith("pi: usable")
    assert outcome.error_lines[0].startswith("error: away: the name")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("check",), "no device has a name yet"),
        (("check", "pie"), "`weightspace devices list` lists all"),
        (("check", "usb://pi"), "of no known kind"),
        (("add", "pi", "raspberrypi"), "of no known kind"),
        (("add", "my pi", "ssh://pi"), "cannot be a device's name"),
        (("remove", "pi"), "`weightspace devices list` lists all"),
    ],
)
def test_a_mistake_is_one_line(cli, words, message):
    outcome = cli("devices", *words)
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert message in outcome.error_lines[0]


@pytest.mark.parametrize("command", ["add", "list", "check", "remove"])
def test_help_has_examples(cli, command):
    outcome = cli("devices", command, "--help")
    assert outcome.code == 0
    assert f"weightspace devices {command}" in outcome.out
    if command == "add":
        assert "ssh://[user@]host[:port]" in outcome.out
