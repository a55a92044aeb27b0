import pytest

from tests.devices.report.reports import (
    make_report,
    make_several_device_report,
    make_two_format_report,
)


@pytest.fixture
def report():
    return make_report()


@pytest.fixture
def both():
    """A report of two formats."""
    return make_two_format_report()


@pytest.fixture
def several():
    """A report of several devices, one of them emulated, and of an estimate."""
    return make_several_device_report()


@pytest.fixture
def everything():
    """The same with two formats."""
    return make_several_device_report(make_two_format_report)
