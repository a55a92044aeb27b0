"""Bundles measured through a transport: this machine's, with the agent in a process there."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import psutil
import pytest

from devices.answer import EngineRun
from devices.device import Device
from devices.measure import Candidate, measure
from devices.remote import ParityInputs, Task, measure_on
from devices.report.record import Result
from devices.transports import open_transport
from export.errors import DeviceError, MeasureError, UserError
from export.records import TensorSpec
from runtimes import open_artifact
from runtimes.bench import BRIEF, Budget
from tests.devices.agent_requests import COLUMNS, onnx_file, tflite_file
from tests.runtimes.models import random_weight, save, tied_ffn

SPECS = (TensorSpec("x", "float32", ("batch", COLUMNS)),)
HERE = Device("bench", "local", python=sys.executable)


@pytest.fixture
def connect(tmp_path):
    opened = []

    def connect(**changes):
        transport = open_transport(replace(HERE, **changes))
        transport.connect()
        opened.append(transport)
        return transport

    yield connect
    for transport in opened:
        transport.close()


@pytest.fixture
def tasks(tmp_path):
    files = {"onnx naive": onnx_file(tmp_path), "tflite latency-first": tflite_file(tmp_path)}
    return {
        name: Task(Candidate(path), path.suffix.removeprefix(".")) for name, path in files.items()
    }


def with_parity(task, outputs=None, limit=1e-4, names=("y",)):
    inputs = np.random.default_rng(2).standard_normal((120, COLUMNS)).astype(np.float32)
    if outputs is None:
        outputs = open_artifact(task.candidate.path).run({"x": inputs})["y"]
    parity = ParityInputs([inputs], [outputs], names, "random normal", limit, classifier=True)
    return replace(task, parity=parity)


def program(tmp_path, body):
    """Make a program that stands in for a device's Python."""
    path = tmp_path / "my python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def run(transport, tasks, **changes):
    settings = {"axis": "batch", "sizes": (4, 1), "budget": BRIEF, **changes}
    return measure_on(transport, tasks, SPECS, **settings)


def test_what_is_measured_becomes_a_run(connect, tasks):
    steps = []
    checked = {name: with_parity(task) for name, task in tasks.items()}
    found = run(connect(), checked, on_step=steps.append)
    assert (found.device, found.kind, found.threads) == ("bench", "measured", 1)
    assert found.measured_on == f"bench ({found.environment.cpu})"
    assert found.environment.runtime.startswith("onnxruntime ")
    assert "ai-edge-litert " in found.environment.runtime
    assert found.results.keys() == tasks.keys()
    for result in found.results.values():
        assert (result.failure, result.load_ms > 0) == ("", True)
        assert sorted(result.latency_ms_by_size) == [1, 4]
        assert all(latency.runs >= 5 for latency in result.latency_ms_by_size.values())
        assert result.memory.settled_rss_bytes > 0
        assert result.parity.max_rel < 1e-6
        assert result.parity.inputs == 120
        assert result.parity.top1_agreement == 1.0
        assert result.parity.reference.endswith(" on bench")
    assert steps[0] == "sending the artifacts to bench"
    assert any("timing onnx naive, tflite latency-first at batch 1" in step for step in steps)


def test_memory_is_that_which_is_measured_in_this_project_itself(connect, tmp_path):
    weight = random_weight(COLUMNS, 200_000)  # 26 MB
    path = save(tied_ffn(weight, as_input=True), tmp_path / "net.onnx", external=True)
    options = {"session.disable_prepacking": "1"}
    candidate = Candidate(path, options)
    here = measure({"a": candidate}, SPECS, axis="batch", sizes=(1,), budget=BRIEF)["a"].memory
    there = run(connect(), {"a": Task(candidate, "onnx")}, sizes=(1,)).results["a"].memory
    for name in ("weights_resident_bytes", "file_bytes"):
        assert getattr(there, name) == pytest.approx(getattr(here, name), abs=1 << 20)
    assert 0.99 * weight.nbytes <= there.weights_resident_bytes <= 1.05 * weight.nbytes


def test_two_runs_on_one_transport_send_the_artifacts_once(connect, tasks):
    transport = connect()
    assert run(transport, tasks).results.keys() == tasks.keys()
    sent = {path.name: path for path in (one.candidate.path for one in tasks.values())}
    there = {f"artifacts/{place}/{name}": sent[name] for place, name in enumerate(sent)}
    assert transport.push(there) == 0
    assert run(transport, tasks).results.keys() == tasks.keys()


def test_outputs_that_are_not_the_models_make_the_figures_invalid(connect, tasks):
    one = tasks["onnx naive"]
    wrong = with_parity(one, outputs=np.ones((120, 8), np.float32))
    result = run(connect(), {"a": wrong}, sizes=(1,)).results["a"]
    assert "its outputs on the device differ from the model's by" in result.invalid
    assert result.parity.max_rel > 1e-4
    shape = with_parity(one, outputs=np.ones((120, 9), np.float32))
    result = run(connect(), {"a": shape}, sizes=(1,)).results["a"]
    assert "its outputs on the device are not the model's: output shapes differ" in result.invalid
    assert result.parity is None


def test_outputs_are_found_by_their_names_or_else_by_their_places(connect, tasks):
    named = with_parity(tasks["onnx naive"], names=("of the torch model",))
    assert run(connect(), {"a": named}, sizes=(1,)).results["a"].parity.max_rel < 1e-6


def test_parity_inputs_that_do_not_fit_make_the_figures_invalid(connect, tasks):
    parity = with_parity(tasks["onnx naive"]).parity
    short = replace(parity, inputs=[np.ones((120, 3), np.float32)])
    task = replace(tasks["onnx naive"], parity=short)
    result = run(connect(), {"a": task}, sizes=(1,)).results["a"]
    assert result.invalid.startswith("its outputs could not be computed on the device: ")
    assert result.latency_ms_by_size[1].runs >= 5


def test_an_artifact_that_fails_has_its_reason_and_the_others_their_figures(
    connect, tasks, tmp_path
):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"\x10\0\0\0TFL3 and then nothing of use")
    found = run(connect(), {**tasks, "bad": Task(Candidate(bad), "tflite")}, sizes=(1,))
    assert "cannot load bad.tflite" in found.results["bad"].failure
    assert found.results["bad"].latency_ms_by_size == {}
    assert found.results["onnx naive"].failure == ""


def test_a_run_whose_agent_is_killed_keeps_what_was_measured(connect, tasks):
    budget = Budget(warmup_runs=1, warmup_s=0.0, runs=5, seconds=0.3)

    def on_step(words):
        if "at batch 4" in words:
            for child in psutil.Process().children():
                if "--private-folder" in child.cmdline():
                    child.kill()

    found = run(connect(), tasks, budget=budget, on_step=on_step)
    for result in found.results.values():
        assert sorted(result.latency_ms_by_size) == [1]
        assert "was not measured to its end: bench: the run was killed" in result.failure
        assert "want of memory" in result.failure


def test_home_and_temporary_folder_on_the_device_stay_as_they_were(
    connect, tasks, tmp_path, monkeypatch
):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    transport = connect()
    for name in ("HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(home))
    run(transport, tasks)
    assert list(home.rglob("*")) == []


def test_a_run_that_takes_too_long_is_given_up_and_leaves_nothing_running(connect, tasks):
    budget = Budget(warmup_runs=1, warmup_s=0.0, runs=5, seconds=100.0, most_runs=10**9)
    before = set(psutil.Process().children(recursive=True))
    running = []

    def on_step(words):
        if "timing" in words:
            running.extend(set(psutil.Process().children(recursive=True)) - before)

    with pytest.raises(DeviceError, match="did not finish within 5 s"):
        run(connect(), tasks, budget=budget, timeout_s=5.0, on_step=on_step)
    assert len(running) >= 2  # the agent and the child that times
    assert psutil.wait_procs(running, timeout=10)[1] == []


# ---- devices that lack something --------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [("exit 127", "is not there; install Python 3.8 or newer and numpy on the device"),
     ("exit 126", "cannot be executed there; name the device's Python interpreter"),
     ("exit 137", "the run was killed, most likely for want of memory"),
     ("echo '  File x' >&2; echo 'SyntaxError: future feature annotations is not defined' >&2; "
      "exit 1", "is older than 3.8; install a newer Python on the device"),
     ("echo 'Segmentation fault' >&2; exit 139", "ended with exit code 139: Segmentation fault"),
     ("exit 0", "answer.json")],
)  # fmt: skip
def test_a_device_that_lacks_something_is_told_in_one_line(connect, tasks, tmp_path, body, words):
    with pytest.raises(DeviceError) as caught:
        run(connect(python=program(tmp_path, body)), tasks)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_device_without_packages_is_told_what_to_install_there(connect, tasks, tmp_path):
    python = program(tmp_path, f'exec "{sys.executable}" -S "$@"')
    with pytest.raises(DeviceError, match=r"bench: numpy is not installed there; run on the devi"):
        run(connect(python=python), tasks)


@pytest.mark.parametrize(
    "answer",
    ["", "{}", "[]", '{"schema": 1}', '{"schema": 1, "looks": [{}], "machine": {}}'],
)
def test_an_answer_that_is_none_is_one_line(connect, tasks, tmp_path, answer):
    body = (
        f"printf '%s' '{answer}' > answer.json\n"
        """echo '{"weightspace": 1, "bytes": 2, "sha256": ""}'"""
    )
    with pytest.raises(DeviceError) as caught:
        run(connect(python=program(tmp_path, body)), tasks)
    assert str(caught.value).startswith("bench gave an answer that ")
    assert "\n" not in str(caught.value)


def test_an_answer_that_is_announced_as_too_large_is_not_fetched(connect, tasks, tmp_path):
    body = """echo '{"weightspace": 1, "bytes": 99999999999999, "sha256": ""}'"""
    with pytest.raises(DeviceError, match="gave an answer of more than"):
        run(connect(python=program(tmp_path, body)), tasks)


def test_outputs_of_another_name_are_not_fetched(connect, tasks, tmp_path):
    body = (
        f'"{sys.executable}" "$@" || exit\n'
        "sed -i 's/outputs-0.npz/..\\/secret.npz/' answer.json\n"
        """echo '{"weightspace": 1, "bytes": 2, "sha256": ""}'"""
    )
    task = with_parity(tasks["onnx naive"])
    with pytest.raises(DeviceError, match=r"offers outputs that were not asked for"):
        run(connect(python=program(tmp_path, body)), {"a": task}, sizes=(1,))


def test_a_format_that_no_device_runs_is_refused_before_anything_is_sent(connect, tasks):
    with pytest.raises(UserError, match="'pdf' is of no format that a device runs"):
        run(connect(), {"a": replace(tasks["onnx naive"], format="pdf")})


def test_the_answer_of_an_earlier_run_is_not_taken_for_one(connect, tasks, tmp_path):
    transport = connect()
    run(transport, tasks, sizes=(1,))
    transport.device = replace(HERE, python=program(tmp_path, "exit 137"))
    with pytest.raises(DeviceError, match="the run was killed"):
        run(transport, tasks, sizes=(1,))
    transport.device = replace(HERE, python=program(tmp_path, "exit 0"))
    with pytest.raises(DeviceError, match="run is not that of the request"):
        run(transport, tasks, sizes=(1,))


# ---- TensorRT ---------------------------------------------------------------------------------

BANNER = 'echo "TensorRT.trtexec [TensorRT v8602] # $1"'


@pytest.fixture
def recipe(tmp_path):
    folder = tmp_path / "tensorrt"
    folder.mkdir()
    (folder / "recipe.json").write_text(
        '{"trtexec": {"8.6": {"build": ["{trtexec}", "b"], "run": ["{trtexec}", "r"]}}}'
    )
    (folder / "model.onnx").write_bytes(b"whatever")
    return folder


def test_what_trtexec_says_is_read_by_the_tasks_own_reader(connect, recipe, tmp_path):
    seen = []

    def reader(engine: EngineRun) -> Result:
        seen.append(engine)
        return Result(load_ms=1.0)

    trtexec = program(tmp_path, BANNER + '; [ "$1" = --help ] || { echo "[1]" > "$1.json"; ls; }')
    task = Task(Candidate(recipe), "tensorrt", read_engine=reader)
    found = run(connect(trtexec=trtexec), {"engine": task})
    assert found.results["engine"].load_ms == 1.0
    assert seen[0].steps[0] == (
        "build", "TensorRT.trtexec [TensorRT v8602] # b\nb.json\nmodel.onnx\nrecipe.json\n"
    )  # fmt: skip
    assert seen[0].files == {"b.json": "[1]\n", "r.json": "[1]\n"}


def test_what_the_reader_refuses_is_the_failure_of_the_engine(connect, recipe, tmp_path):
    def reader(engine: EngineRun) -> Result:
        raise MeasureError("the log has no summary")

    task = Task(Candidate(recipe), "tensorrt", read_engine=reader)
    found = run(connect(trtexec=program(tmp_path, BANNER)), {"engine": task})
    assert found.results["engine"].failure == "the log has no summary"


def test_a_build_that_fails_is_the_failure_of_the_engine(connect, recipe, tmp_path):
    task = Task(Candidate(recipe), "tensorrt", read_engine=lambda engine: Result())
    found = run(connect(trtexec=program(tmp_path, f"{BANNER}; exit 3")), {"engine": task})
    assert found.results["engine"].failure == "trtexec failed to build it: exit code 3"


def test_a_device_without_trtexec_is_told_where_it_is(connect, recipe):
    task = Task(Candidate(recipe), "tensorrt", read_engine=lambda engine: Result())
    found = run(connect(trtexec="no-trtexec"), {"engine": task})
    assert "no-trtexec is not there; install TensorRT" in found.results["engine"].failure


def test_throttling_makes_every_figure_invalid(connect, tasks, tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    asked = tmp_path / "asked"
    tool = folder / "vcgencmd"
    tool.write_text(
        "#!/bin/sh\n"
        f'if [ -e "{asked}" ]; then echo throttled=0x50005; else echo throttled=0x0; fi\n'
        f'touch "{asked}"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    found = run(connect(), tasks, sizes=(1,))
    assert found.environment.throttled
    for result in found.results.values():
        assert result.invalid == (
            "the device throttled (under-voltage) and throttled (throttling) while it was measured"
        )
        assert result.latency_ms_by_size[1].runs >= 5
