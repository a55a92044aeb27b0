"""The way of a recipe over a real transport, with a trtexec that gives recorded output."""

from __future__ import annotations

import os

import pytest

from devices.device import Device
from devices.transports import open_transport
from export.errors import DeviceError
from runtimes.trtexec import parse_log, parse_profile, parse_times, require_passed
from tests.devices.jetson.standin import RECORDED, TRTEXEC, files_for_a_device

RUN = [
    "--warmUp=500", "--duration=5", "--iterations=100", "--percentile=50,90,95,99",
    "--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--exportTimes=times.json",
]  # fmt: skip


@pytest.fixture
def board(tmp_path):
    onnx = tmp_path / "net.onnx"
    onnx.write_bytes(b"any model: it is not read")
    transport = open_transport(Device("jetson", "local", trtexec=str(TRTEXEC)))
    transport.connect()
    transport.push({"net.onnx": onnx})
    yield transport
    transport.close()


def run(board, *arguments, program=None):
    command = program or [board.device.trtexec]
    return board.run([*command, *arguments], timeout_s=30)


def test_the_program_may_be_run_and_says_that_it_measures_nothing():
    assert os.access(TRTEXEC, os.X_OK)
    assert "measures nothing" in TRTEXEC.read_text()
    assert "recorded" in RECORDED


def test_an_engine_is_built_and_timed_and_both_answers_are_read(board, tmp_path):
    done = run(board, "--onnx=net.onnx", "--saveEngine=net.engine", *RUN)
    log = require_passed(parse_log(done.output), "jetson")
    assert (done.exit_code, log.version) == (0, (10, 3, 0))
    board.pull("times.json", tmp_path / "times.json")
    latency = parse_times((tmp_path / "times.json").read_text(), warmup_runs=log.warmup_runs or 0)
    assert (latency.runs, latency.min) == (12, 0.263008)
    again = run(board, "--loadEngine=net.engine", "--exportProfile=profile.json")
    board.pull("profile.json", tmp_path / "profile.json")
    assert again.exit_code == 0
    assert len(parse_profile((tmp_path / "profile.json").read_text())) == 5


def test_program_and_recordings_may_be_pushed_and_run_where_they_lie(board):
    board.push(files_for_a_device())
    program = ["env", "RECORDED_TRTEXEC=.", "RECORDED_TRTEXEC_VERSION=11.0.0", "python3", "trtexec"]
    done = run(board, "--onnx=net.onnx", "--saveEngine=e", "--skipInference", program=program)
    log = require_passed(parse_log(done.output), "jetson")
    assert log.version == (11, 0, 0)
    assert log.engine.weights_bytes == 13_098_880


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--onnx=absent.onnx"], "there is no readable file absent.onnx"),
        (
            ["--loadEngine=10.0.1-other-version.engine"],
            "an engine of another kind of TensorRT (this is 10.0.1)",
        ),
        (["--onnx=10.3.0-out-of-memory.onnx"], "the device ran out of memory"),
        (["--onnx=10.3.0-unsupported-node.onnx"], "operator Tile (node 146): "),
        (["--onnx=net.onnx", "--workspace=64"], "TensorRT 10.3.0 does not know --workspace; "),
    ],
)
def test_a_failure_on_the_board_is_one_line_that_names_the_board(board, arguments, words):
    done = run(board, *arguments)
    assert done.exit_code == 1
    with pytest.raises(DeviceError) as caught:
        require_passed(parse_log(done.output), "jetson")
    assert str(caught.value).startswith("trtexec on jetson: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_for_precision_are_refused_by_11_with_the_remedy(board):
    program = ["env", "RECORDED_TRTEXEC_VERSION=11.0.0", board.device.trtexec]
    log = parse_log(run(board, "--onnx=net.onnx", "--fp16", program=program).output)
    assert log.error.startswith("the trtexec of TensorRT 11.0.0 does not know --fp16; since")
