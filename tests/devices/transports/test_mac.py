"""What can be tested of a Mac without one: that another machine is refused, and what is read."""

from __future__ import annotations

import os

import pytest

from devices.device import Device
from devices.transports import open_transport
from devices.transports.mac import phones_of
from export.errors import DeviceError
from tests.devices.transports.ssh_server import SHELL

SW_VERS = "#!/bin/sh\n[ $1 = -productVersion ] && echo 15.1\n"


def mac_at(server):
    return open_transport(Device("mac", server.address.replace("ssh:", "mac:")))


def test_another_machine_is_refused_and_left_clean(ssh_server, known):
    with pytest.raises(DeviceError, match="this is not a Mac"):
        mac_at(ssh_server).connect()
    assert os.listdir(ssh_server.runs) == []


def test_a_python_without_coremltools_is_refused(server_with):
    server = server_with(SHELL, sw_vers=SW_VERS)
    with pytest.raises(DeviceError, match="python3 -m pip install coremltools"):
        mac_at(server).connect()
    assert os.listdir(server.runs) == []


def test_a_machine_that_answers_as_a_mac_does_is_used(server_with):
    transport = mac_at(server_with(SHELL, sw_vers=SW_VERS, python3="#!/bin/sh\n"))
    transport.connect()
    assert transport.run(["sw_vers", "-productVersion"], timeout_s=20).output == "15.1\n"
    with pytest.raises(DeviceError, match="install Xcode"):
        transport.phones()
    transport.close()


def test_the_names_of_phones_are_read():
    listing = {
        "info": {"outcome": "success"},
        "result": {"devices": [{"identifier": "X", "deviceProperties": {"name": "My phone"}}]},
    }
    assert phones_of(listing) == ("My phone",)
    assert phones_of({"result": {"devices": []}}) == ()
