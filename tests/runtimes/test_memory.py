from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from export.errors import MeasureError
from runtimes import fresh, memory
from runtimes.memory import measure_fresh
from tests.runtimes.models import matmul, random_weight, save, tied_ffn

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="/proc/self/smaps_rollup is not there"
)

SIDE = 3200
WEIGHT_BYTES = SIDE * SIDE * 4  # 41 MB
FEEDS = {"x": np.ones((1, SIDE), np.float32)}


@pytest.fixture(scope="module")
def weight():
    return random_weight(SIDE, SIDE)


@pytest.fixture(scope="module")
def constant(weight, tmp_path_factory):
    return save(tied_ffn(weight), tmp_path_factory.mktemp("constant") / "net.onnx")


@pytest.fixture(scope="module")
def mapped(weight, tmp_path_factory):
    model = tied_ffn(weight, as_input=True)
    return save(model, tmp_path_factory.mktemp("mapped") / "net.onnx", external=True)


@pytest.fixture(scope="module")
def constant_run(constant):
    return measure_fresh(constant, FEEDS)


@pytest.fixture(scope="module")
def mapped_run(mapped):
    return measure_fresh(mapped, FEEDS)


def test_a_constant_weight_that_is_read_both_ways_is_held_more_than_once(constant_run):
    assert constant_run.memory.weights_resident_bytes >= 1.5 * WEIGHT_BYTES


def test_a_mapped_weight_that_is_read_both_ways_is_held_once(mapped_run):
    held = mapped_run.memory.weights_resident_bytes
    assert 0.99 * WEIGHT_BYTES <= held <= 1.10 * WEIGHT_BYTES


def test_a_mapped_weight_is_in_pages_of_its_file_and_not_in_anonymous_ones(mapped_run):
    assert mapped_run.memory.file_bytes >= 0.99 * WEIGHT_BYTES
    assert mapped_run.memory.anonymous_bytes <= 0.1 * WEIGHT_BYTES


def test_a_mapped_weight_is_found_through_a_link_to_its_folder(mapped, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(mapped.parent, target_is_directory=True)
    held = measure_fresh(link / mapped.name, FEEDS).memory.weights_resident_bytes
    assert 0.99 * WEIGHT_BYTES <= held <= 1.10 * WEIGHT_BYTES


@pytest.mark.parametrize("run", ["constant_run", "mapped_run"])
def test_the_figures_of_a_process_fit_together(run, request):
    fresh = request.getfixturevalue(run)
    held = fresh.memory
    assert held.peak_rss_bytes >= held.settled_rss_bytes
    assert held.peak_rss_bytes >= held.loaded_rss_bytes
    assert held.settled_rss_bytes >= held.baseline_rss_bytes + 0.99 * WEIGHT_BYTES
    assert held.baseline_rss_bytes > 20_000_000  # an interpreter with numpy and the runtime
    growth = held.settled_rss_bytes - held.baseline_rss_bytes
    assert held.anonymous_bytes + held.file_bytes == growth
    assert fresh.load_ms > 0
    assert fresh.first_ms > 0


def test_loading_a_constant_weight_takes_place_before_the_first_run(constant_run, mapped_run):
    one, other = constant_run.memory, mapped_run.memory
    assert one.loaded_rss_bytes - one.baseline_rss_bytes >= 0.99 * WEIGHT_BYTES
    # what is mapped is read when the first run touches it
    assert other.loaded_rss_bytes - other.baseline_rss_bytes <= 0.5 * WEIGHT_BYTES


def test_options_reach_the_process(constant, constant_run):
    options = {"session.disable_prepacking": "1"}
    plain = measure_fresh(constant, FEEDS, options=options).memory
    saved = constant_run.memory.weights_resident_bytes - plain.weights_resident_bytes
    assert saved >= 0.4 * WEIGHT_BYTES


# ---- the process ------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    return save(matmul(random_weight(4, 3)), tmp_path / "net.onnx")


@pytest.fixture
def requests(monkeypatch):
    """Note how each process is started."""
    commands, real = [], subprocess.run

    def noted(command, **settings):
        commands.append((command, settings))
        return real(command, **settings)

    monkeypatch.setattr(fresh.subprocess, "run", noted)
    return commands


@pytest.mark.parametrize(
    "name",
    ["input:0", "a/b", "../up", "x.npy", "serving default", "größe", "self", "args", "file",
     "allow_pickle"],
)  # fmt: skip
def test_an_input_may_have_any_name(tmp_path, name):
    path = save(matmul(random_weight(4, 3), x=name), tmp_path / "net.onnx")
    fresh = measure_fresh(path, {name: np.ones((2, 4), np.float32)}, runs=1)
    assert fresh.memory.settled_rss_bytes > 0


def test_a_file_may_have_blanks_in_its_name(tmp_path):
    folder = tmp_path / "my models (1)"
    folder.mkdir()
    model = matmul(random_weight(1200, 1200), as_input=True)
    path = save(model, folder / "my net.onnx", external=True)
    held = measure_fresh(path, {"x": np.ones((1, 1200), np.float32)}).memory
    assert held.weights_resident_bytes >= 0.99 * 1200**2 * 4


def test_a_path_is_read_from_the_folder_that_one_is_in(small, monkeypatch):
    monkeypatch.chdir(small.parent)
    feeds = {"x": np.ones((2, 4), np.float32)}
    assert measure_fresh(Path(small.name), feeds, runs=1).memory.settled_rss_bytes > 0


@pytest.mark.parametrize("name", ["export.py", "runtimes.py", "onnx.py"])
def test_a_script_of_the_same_name_beside_the_user_is_not_taken_for_ours(
    small, tmp_path, monkeypatch, name
):
    (tmp_path / name).write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    feeds = {"x": np.ones((2, 4), np.float32)}
    assert measure_fresh(small, feeds, runs=1).memory.settled_rss_bytes > 0


def test_nothing_is_left_behind(small, tmp_path, monkeypatch, requests):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr(memory.tempfile, "tempdir", str(work))
    monkeypatch.setenv("TMPDIR", str(work))
    measure_fresh(small, {"x": np.ones((2, 4), np.float32)}, runs=1)
    assert str(work) in requests[0][0][-1]
    assert [file for file in work.rglob("*") if file.name.startswith("weightspace")] == []
    assert [file for file in work.rglob("*.np*")] == []


def failure(path, feeds, **settings):
    with pytest.raises(MeasureError) as caught:
        measure_fresh(path, feeds, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_corrupt_file_fails_in_one_line_that_names_it(small):
    small.write_bytes(small.read_bytes()[:40])
    message = failure(small, {"x": np.ones((2, 4), np.float32)})
    assert re.match(r"measuring net\.onnx failed: .*onnxruntime cannot load .*net\.onnx", message)


def test_a_missing_file_fails_in_one_line_that_names_it(tmp_path):
    message = failure(tmp_path / "gone.onnx", {"x": np.ones((2, 4), np.float32)})
    assert re.match(r"measuring gone\.onnx failed: .*gone\.onnx is not a file", message)


def test_a_wrong_input_fails_in_one_line(small):
    message = failure(small, {"z": np.ones((2, 4), np.float32)})
    assert message.startswith("measuring net.onnx failed: ")
    assert "'x'" in message


@pytest.mark.parametrize("stderr", ["", "INFO: all is well\n"])
def test_a_process_that_is_killed_is_told_by_its_code(small, monkeypatch, stderr):
    killed = subprocess.CompletedProcess([], returncode=-9, stdout="", stderr=stderr)
    monkeypatch.setattr(fresh.subprocess, "run", lambda *_, **__: killed)
    assert failure(small, {}) == "measuring net.onnx failed: exit code -9"


def test_a_process_that_does_not_end_is_given_up(small, monkeypatch):
    monkeypatch.setattr(fresh, "_TIMEOUT_S", 0.01)
    message = failure(small, {"x": np.ones((2, 4), np.float32)})
    assert message == "net.onnx did not finish within 0.01 s"
