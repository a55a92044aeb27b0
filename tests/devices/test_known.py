"""Named devices: what is written is read again, and a damaged file is said."""

from __future__ import annotations

import os
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.device import Device
from devices.known import add_device, find_device, known_devices, known_file, remove_device
from export.errors import BadFileError, OutputError, UnknownNameError, UserError

PI = Device("pi", "ssh://pi@board:2222", python="/opt/venv/bin/python")


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    path = tmp_path / "settings" / "devices.toml"
    monkeypatch.setenv("WEIGHTSPACE_DEVICES", str(path))
    return path


def test_without_a_file_only_this_machine_is_known(file):
    assert known_devices() == {}
    assert find_device("local").address == "local"
    assert not file.parent.exists()


def test_a_named_device_is_found_again(file):
    add_device(PI)
    add_device(Device("nano.2", "ssh://nano"))
    assert find_device("pi") == PI
    assert list(known_devices()) == ["nano.2", "pi"]
    assert tomllib.loads(file.read_text())["nano.2"] == {"address": "ssh://nano"}
    assert os.listdir(file.parent) == ["devices.toml"]


def test_a_name_can_be_changed_and_removed():
    add_device(PI)
    add_device(Device("pi", "ssh://other"))
    assert find_device("pi").address == "ssh://other"
    remove_device("pi")
    assert known_devices() == {}
    with pytest.raises(UnknownNameError, match="`weightspace devices list` lists all"):
        remove_device("pi")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_any_path_survives(python, trtexec):
    device = Device("pi", "ssh://board", python=python, trtexec=trtexec)
    add_device(device)
    assert find_device("pi") == device


def test_an_address_needs_no_name():
    assert find_device("ssh://me@board") == Device("ssh://me@board", "ssh://me@board")
    with pytest.raises(UserError, match="of no known kind"):
        find_device("bluetooth://board")


def test_a_near_name_is_offered():
    add_device(PI)
    with pytest.raises(UnknownNameError, match="did you mean 'pi'"):
        find_device("pie")


@pytest.mark.parametrize("name", ["", "local", "a b", "-pi", "pi\n", "a/b", "größe", "x" * 65])
def test_a_name_that_would_be_awkward_is_refused(file, name):
    with pytest.raises(UserError, match="cannot be a device's name"):
        add_device(Device(name, "ssh://board"))
    assert not file.exists()


def test_an_address_that_cannot_be_is_not_kept(file):
    with pytest.raises(UserError, match="must be ssh"):
        add_device(Device("pi", "ssh://"))
    assert not file.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[pi\n", "is not TOML"),
        ("\udcff", "is not TOML"),
        ("pi = 3\n", r"\[pi\] must be a table with an address"),
        ("[pi]\npython = 'x'\n", r"\[pi\] must be a table with an address"),
        ("[pi]\naddress = 3\n", "'pi.address' must be a text"),
        ("[pi]\naddress = 'local'\npyton = 'x'\n", "did you mean 'python'"),
        ("[pi]\naddress = 'local'\nname = 'x'\n", "'pi.name' is not known"),
    ],
)
def test_a_damaged_file_is_said_and_kept(file, text, message):
    file.parent.mkdir()
    file.write_bytes(text.encode(errors="surrogateescape"))
    before = file.read_bytes()
    for act in (known_devices, lambda: add_device(PI), lambda: find_device("pi")):
        with pytest.raises(BadFileError, match=message) as caught:
            act()
        assert "\n" not in str(caught.value)
    assert file.read_bytes() == before


def test_a_place_that_cannot_be_written_is_said(file):
    file.parent.write_text("in the way")
    with pytest.raises((OutputError, BadFileError), match="cannot be"):
        add_device(PI)


def test_without_the_variable_the_users_folder_counts(tmp_path, monkeypatch):
    monkeypatch.delenv("WEIGHTSPACE_DEVICES")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert known_file().is_relative_to(tmp_path)
    assert known_file().name == "devices.toml"


def test_a_link_to_the_file_stays_one(file, tmp_path):
    file.parent.mkdir()
    real = tmp_path / "real.toml"
    real.write_text("")
    file.symlink_to(real)
    add_device(PI)
    assert file.is_symlink()
    assert "pi" in real.read_text()
