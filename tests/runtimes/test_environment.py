from __future__ import annotations

import os
import platform
from types import SimpleNamespace

import onnxruntime
import psutil
import pytest

from runtimes import environment
from runtimes.environment import cpu_name, read_environment, swapped_bytes


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Stand in for the system's files; none is there until it is written."""
    for constant in ("_CPUINFO", "_MODEL", "_GOVERNOR"):
        monkeypatch.setattr(environment, constant, tmp_path / constant)
    return tmp_path


def test_this_machine_is_described():
    found = read_environment("onnxruntime")
    assert found.cores == os.cpu_count()
    assert found.memory_bytes == psutil.virtual_memory().total > 100_000_000
    assert found.runtime == f"onnxruntime {onnxruntime.__version__}"
    assert found.python == platform.python_version()
    assert found.arch == platform.machine()
    assert found.host == platform.node()
    assert found.os == f"{platform.system()} {platform.release()}"
    assert found.cpu
    assert found.cpu == found.cpu.strip()


def test_the_processor_is_named_by_the_system(files):
    (files / "_CPUINFO").write_text(
        "processor\t: 0\nvendor_id\t: X\nmodel name\t: Fast CPU @ 2.00GHz \nflags\t: fpu\n\n"
        "processor\t: 1\nmodel name\t: Other CPU\n"
    )
    assert cpu_name() == "Fast CPU @ 2.00GHz"


def test_a_board_that_the_system_names_goes_before_its_processor(files):
    (files / "_CPUINFO").write_text("model name\t: Cortex-A72\n")
    (files / "_MODEL").write_bytes(b"Raspberry Pi 4 Model B Rev 1.5\0")
    assert cpu_name() == "Raspberry Pi 4 Model B Rev 1.5"


@pytest.mark.parametrize(
    ("processor", "expected"), [("aarch64 core", "aarch64 core"), ("", "riscv64")]
)
@pytest.mark.parametrize("cpuinfo", [None, "", "processor : 0\nBogoMIPS : 48.00\n"])
def test_what_the_system_does_not_tell_is_asked_of_python(
    files, monkeypatch, processor, expected, cpuinfo
):
    monkeypatch.setattr(platform, "processor", lambda: processor)
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    if cpuinfo is not None:
        (files / "_CPUINFO").write_text(cpuinfo)
    found = read_environment("onnxruntime")
    assert (found.cpu, found.governor) == (expected, None)


def test_the_governor_is_read_where_there_is_one(files):
    (files / "_GOVERNOR").write_text("performance\n")
    assert read_environment("onnxruntime").governor == "performance"


@pytest.mark.parametrize("swapped", [True, False])
def test_swapping_is_noted(swapped):
    assert read_environment("onnxruntime", swapped=swapped).swapped is swapped


def test_swapping_is_not_assumed():
    assert read_environment("onnxruntime").swapped is False


def test_bytes_swapped_in_and_out_are_added(monkeypatch):
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(sin=4096, sout=8192))
    assert swapped_bytes() == 12_288


def test_swapped_bytes_never_fall():
    one, other = swapped_bytes(), swapped_bytes()
    assert 0 <= one <= other


def test_every_runtime_is_noted_once_with_its_version():
    found = read_environment("onnxruntime", "no-such-runtime", "onnxruntime").runtime
    assert found == f"onnxruntime {onnxruntime.__version__}, no-such-runtime not installed"


def test_a_runtime_that_is_missing_is_said_to_be():
    assert read_environment("no-such-runtime").runtime == "no-such-runtime not installed"
