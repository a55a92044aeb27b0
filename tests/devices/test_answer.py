"""Answers of devices that are broken, or not what they say."""

from __future__ import annotations

import copy
import io
import json
import zipfile

import numpy as np
import pytest

from devices.answer import Outputs, clean_line, read_answer, read_outputs
from export.errors import DeviceError
from export.manifest import sha256_of

MEMORY = {
    "baseline_rss_bytes": 1, "loaded_rss_bytes": 2, "settled_rss_bytes": 3, "peak_rss_bytes": 4,
    "anonymous_bytes": -1, "file_bytes": 6, "weights_resident_bytes": 7,
}  # fmt: skip
LOOK = {
    "clocks_hz": [1_500_000_000], "temperature_c": 40.5, "pi_throttled": 0, "cooling": [],
    "counters": {"thermal throttling": 0}, "speed_limit": None, "swapped_pages": 9,
}  # fmt: skip
GOOD = {
    "schema": 1,
    "run": "seven",
    "complete": True,
    "failure": "",
    "machine": {
        "host": "pi", "board": "Raspberry Pi 5", "cpu": "4 x Cortex-A76", "arch": "aarch64",
        "cores": 4, "memory_bytes": 8 << 30, "os": "Linux 6.6", "python": "3.11.2",
        "governor": "ondemand", "clocks_locked": False, "power_mode": None, "emulated": False,
        "runtimes": {"onnx": "onnxruntime 1.23.0"},
    },
    "looks": [LOOK, LOOK],
    "tegrastats": {},
    "notes": [],
    "artifacts": {
        "a": {
            "failure": "",
            "load_ms": 1.5,
            "memory": MEMORY,
            "latency": {"1": {"first_ms": 9, "warmup": 10, "samples_ms": [1.0, 2.0, 3.0]}},
        }
    },
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    def read(answer, ids=("a",)):
        path = tmp_path / "answer.json"
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        path.write_bytes(content)
        return read_answer(path, "pi", "seven", ids, 10_000)

    return read


def changed(value, *keys):
    """Give the good answer with one field of another value."""
    answer = copy.deepcopy(GOOD)
    table = answer
    for key in keys[:-1]:
        table = table[key]
    table[keys[-1]] = value
    return answer


def test_a_good_answer_becomes_records(read):
    answer = read(GOOD)
    finding = answer.findings["a"]
    assert finding.latency_ms_by_size[1].p50 == 2.0
    assert finding.latency_ms_by_size[1].samples == (1.0, 2.0, 3.0)
    assert finding.memory.weights_resident_bytes == 7
    environment = answer.environment
    assert environment.cpu == "Raspberry Pi 5 (4 x Cortex-A76)"
    assert environment.clocks_hz == ((1_500_000_000,), (1_500_000_000,))
    assert environment.temperatures_c == (40.5, 40.5)
    assert (environment.throttled, environment.swapped, answer.invalid) == (False, False, "")
    assert "not locked (governor ondemand)" in environment.warnings[0]


def ended(**changes):
    answer = copy.deepcopy(GOOD)
    answer["looks"] = [LOOK, {**LOOK, **changes}]
    return answer


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"pi_throttled": 0x1}, "throttled (under-voltage)"),
     ({"pi_throttled": 0x40000}, "throttled (throttling)"),
     ({"cooling": ["cpufreq-cpu0"]}, "throttled (cpufreq-cpu0)"),
     ({"counters": {"thermal throttling": 2}}, "throttled (thermal throttling)"),
     ({"speed_limit": 70}, "throttled (CPU speed limit)"),
     ({"swapped_pages": 10}, "swapped")],
)  # fmt: skip
def test_a_run_that_throttled_or_swapped_is_invalid(read, changes, words):
    answer = read(ended(**changes))
    assert answer.invalid == f"the device {words} while it was measured"
    assert any(words in warning for warning in answer.environment.warnings)
    assert answer.environment.throttled is ("throttled" in words)
    assert answer.environment.swapped is (words == "swapped")


def test_a_board_that_throttled_before_is_only_warned_of(read):
    look = {**LOOK, "pi_throttled": 0x50000}
    answer = read({**GOOD, "looks": [look, look]})
    assert answer.invalid == ""
    warning = "The board has known under-voltage and throttling since it started."
    assert warning in answer.environment.warnings


def test_an_emulated_machine_is_warned_of(read):
    answer = read(changed(True, "machine", "emulated"))
    assert answer.environment.emulated
    assert "emulated" in answer.environment.warnings[0]


def test_the_power_of_a_jetson_and_a_clock_that_moved_are_told(read):
    tegrastats = {"power_w": 7.5, "rails_w": {"VDD_IN": 7.5}, "gpu_hz": [300e6, 900e6]}
    answer = read({**GOOD, "tegrastats": tegrastats})
    assert answer.environment.power_w == 7.5
    assert "between 300 and 900 MHz" in answer.environment.warnings[-1]
    rails = read({**GOOD, "tegrastats": {"power_w": None, "rails_w": {"VDD_SOC": 2.0}}})
    assert "VDD_SOC 2.0 W" in rails.notes[0]


WRONG = [
    (b"", "not JSON"), (b"[" * 100_000, "more than 10,000 bytes"), (b"[" * 9_000, "not JSON"),
    (b"[]", "it is not a table"), (b"{}", "schema is not 1"), (b"\xff\xfe", "not JSON"),
    (b" " * 10_001, "more than 10,000 bytes"),
    (changed("eight", "run"), "run is not that of the request"),
    (changed([], "looks"), "looks is not"), (changed("x", "looks"), "looks is not"),
    (changed([3], "looks"), "looks is not"),
    (changed(None, "machine"), "machine is not"),
    (changed({}, "machine"), "machine.runtimes is not"),
    (changed(0, "machine", "cores"), "machine.cores is not"),
    (changed(True, "machine", "cores"), "machine.cores is not"),
    (changed(4.5, "machine", "cores"), "machine.cores is not"),
    (changed({}, "artifacts"), "artifacts.a is not"),
    (changed(7, "artifacts", "a", "failure"), "artifacts.a.failure is not"),
    (changed(-1, "artifacts", "a", "load_ms"), "load_ms is not"),
    (changed({}, "artifacts", "a", "memory"), "baseline_rss_bytes is not"),
    (changed(1 << 60, "artifacts", "a", "memory", "file_bytes"), "file_bytes is not"),
    (changed([], "artifacts", "a", "latency", "1", "samples_ms"), "samples_ms is not"),
    (changed(["1"], "artifacts", "a", "latency", "1", "samples_ms"), "samples_ms is not"),
    (changed([float("nan")], "artifacts", "a", "latency", "1", "samples_ms"), "samples_ms is not"),
    (changed([1e999], "artifacts", "a", "latency", "1", "samples_ms"), "samples_ms is not"),
    (changed([-1.0], "artifacts", "a", "latency", "1", "samples_ms"), "samples_ms is not"),
    (changed({}, "artifacts", "a", "latency", "../x"), "../x is not"),
    (changed(["x"] * 1001, "notes"), "notes is not"),
    (changed({"file": "x"}, "artifacts", "a", "outputs"), "outputs.names is not"),
    (changed({"steps": [3], "files": {}}, "artifacts", "a", "tensorrt"), "steps is not"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "words"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_answer_is_one_line(read, answer, words):
    with pytest.raises(DeviceError) as caught:
        read(answer)
    assert str(caught.value).startswith("pi gave an answer ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_device_says_cannot_steer_a_terminal(read):
    answer = read(changed("\x1b[2J\r\nall\u202e is well" + "x" * 999, "artifacts", "a", "failure"))
    failure = answer.findings["a"].failure
    assert failure.startswith("[2J all is well")
    assert failure.isprintable()
    assert len(failure) == 300
    assert clean_line("\x1b[31mred\x07") == "[31mred"


# ---- outputs ----------------------------------------------------------------------------------


def outputs_of(path, names=("y",)):
    return Outputs(path.name, tuple(names), path.stat().st_size, sha256_of(path))


def test_outputs_are_read(tmp_path):
    path = tmp_path / "outputs-0.npz"
    arrays = [np.eye(3, dtype=np.float32), np.arange(4)]
    np.savez(path, *arrays)
    found = read_outputs(path, outputs_of(path, ["y", "z"]), "pi")
    for array, expected in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(array, expected)


def archive(path, content, name="arr_0.npy", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(name, content)


def header(shape, dtype="<f4"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"PK no archive"),
        lambda path: archive(path, b"no array"),
        lambda path: archive(path, header((1 << 40,)) + b"\0" * 4),
        lambda path: archive(path, header((-1,)) + b"\0" * 4),
        lambda path: archive(path, header((2,)) + b"\0" * 4),
        lambda path: archive(path, header((1,), "|O") + b"\0" * 8),
        lambda path: archive(path, header((1,), "<U1") + b"\0" * 4),
        lambda path: archive(path, header((1,)) + b"\0" * 4, name="../arr_0.npy"),
        lambda path: archive(
            path, header((1 << 22,)) + b"\0" * (4 << 22), compression=zipfile.ZIP_DEFLATED
        ),
        lambda path: np.savez(path, np.array([{"a": 1}], object)),
    ],
    ids=range(10),
)
def test_outputs_that_are_no_arrays_of_numbers_are_refused(tmp_path, make):
    path = tmp_path / "outputs-0.npz"
    make(path)
    with pytest.raises(DeviceError, match=r"pi gave outputs that cannot be read \(outputs-0\.npz"):
        read_outputs(path, outputs_of(path), "pi")


def test_outputs_that_are_not_those_announced_are_refused(tmp_path):
    path = tmp_path / "outputs-0.npz"
    np.savez(path, np.eye(3))
    announced = outputs_of(path)
    np.savez(path, np.eye(3) * 2)
    with pytest.raises(DeviceError, match="cannot be read"):
        read_outputs(path, announced, "pi")
