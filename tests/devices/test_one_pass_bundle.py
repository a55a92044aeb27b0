"""A bundle in the one-pass form: the library in it, its record, and the bundle without it."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import devices.artifacts
import devices.deploy
from devices.deploy import deploy, profile
from devices.device import Device
from devices.golden import read_golden
from devices.measure import Candidate
from devices.options import Options
from devices.remote import ParityInputs, Task, measure_on
from devices.report.json_form import read_json
from devices.target import find_target
from devices.transports import open_transport
from export.audit import audit_file
from export.errors import BadFileError
from export.lower import LATENCY_FIRST
from export.lower.ort import MAPPED, ONE_PASS
from export.records import KERNELS, TensorSpec
from runtimes.bench import BRIEF
from runtimes.kernels import why_not
from runtimes.ort import find_kernels, open_session
from weightspace.layers import TiedFFN

HERE = platform.machine()
pytestmark = pytest.mark.skipif(why_not(HERE) is not None, reason=str(why_not(HERE)))
IN_BUNDLE = f"lib/{HERE}/libweightspace_ort.so"
MODEL, DATA = "model.latency-first.onnx", "model.latency-first.onnx.data"
BRIEFLY = Options(budget=BRIEF, sizes=(1,))


def factory():
    torch.manual_seed(0)
    module = nn.Sequential(TiedFFN(64, 256), nn.LayerNorm(64), TiedFFN(64, 256))
    for ffn in (module[0], module[2]):
        nn.init.normal_(ffn.hidden_bias)
        nn.init.normal_(ffn.bias)
    return module, (torch.randn(2, 5, 64),), ({0: "batch", 1: "sequence"},)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Export with the kernel, whatever the times of this machine are."""
    folder = tmp_path_factory.mktemp("one pass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "one_pass_nets", sys.modules[__name__])

        def choose(_canonical, setting, *_more, precision):
            return (ONE_PASS, "the tests") if setting == LATENCY_FIRST else (MAPPED, "the tests")

        patch.setattr(devices.artifacts, "choose_form", choose)
        return deploy("one_pass_nets:factory", find_target("local"), folder / "out", BRIEFLY)


@pytest.fixture
def bundle(made, tmp_path):
    return Path(shutil.copytree(made.folder, tmp_path / "bundle"))


def test_the_library_is_in_the_bundle_and_the_manifest_names_it(made):
    latency_first, memory_first = made.manifest["artifacts"]
    assert latency_first["session_options"] == {KERNELS: IN_BUNDLE}
    assert (made.folder / IN_BUNDLE).read_bytes() == find_kernels(HERE)[0].read_bytes()
    assert set(latency_first["sha256"]) == {MODEL, DATA, IN_BUNDLE}
    files = [made.folder / name for name in latency_first["sha256"]]
    assert latency_first["bytes"] == sum(file.stat().st_size for file in files)
    assert latency_first["parity"]["max_rel"] <= 1e-5
    assert memory_first["session_options"] == {}
    assert IN_BUNDLE not in memory_first["sha256"]


def test_weights_are_stored_once_and_the_tie_map_is_whole(made):
    latency_first = made.manifest["artifacts"][0]
    assert latency_first["ratio"] <= 1.01
    assert len(made.manifest["model"]["ties"]) == 2
    audit = audit_file(made.folder / MODEL)
    assert audit.duplicates == ()
    assert [{use.view for use in tied.uses} for tied in audit.ties] == [
        {"identity", "transpose"},
        {"identity", "transpose"},
    ]


def test_the_model_runs_from_the_bundle_with_and_without_the_library(bundle):
    golden = read_golden(bundle)
    (expected,) = golden.outputs
    for options in ({}, {KERNELS: IN_BUNDLE}):
        session = open_session(bundle / MODEL, options=options)
        (found,) = session.run({session.inputs[0].name: golden.inputs[0]}).values()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_a_bundle_that_lost_its_library_is_measured_all_the_same(bundle):
    shutil.rmtree(bundle / "lib")
    run = profile(bundle, BRIEFLY).report.runs[0]
    assert run.results["onnx latency-first"].latency_ms_by_size[1].p50 > 0


def test_a_library_that_was_changed_is_refused(bundle):
    (bundle / IN_BUNDLE).write_bytes(b"something else")
    with pytest.raises(BadFileError, match="sha256 differs"):
        profile(bundle, BRIEFLY)


def test_what_was_measured_without_the_kernel_says_so(bundle, monkeypatch):
    monkeypatch.setattr(devices.deploy, "find_kernels", lambda _: (None, "no compiler"))
    profile(bundle, BRIEFLY)
    (note,) = read_json(bundle / "report.json").runs[0].notes
    assert note == "onnx latency-first ran without the one-pass kernel: no compiler"


@pytest.mark.parametrize("case", ["with", "lost", "of another architecture"])
def test_a_device_runs_the_model_with_the_library_and_without(bundle, case, tmp_path):
    options = {KERNELS: IN_BUNDLE}
    words = f"{IN_BUNDLE} is not in the bundle"
    if case == "lost":
        shutil.rmtree(bundle / "lib")
    elif case != "with":
        options = {KERNELS: "lib/vax/libweightspace_ort.so"}
        words = f"lib/vax/libweightspace_ort.so is not for {HERE}"
        (bundle / "lib" / HERE).rename(bundle / "lib/vax")
        (bundle / options[KERNELS]).write_bytes(b"of a vax")
    golden = read_golden(bundle)
    (x,), outputs = golden.inputs, golden.outputs
    session = open_session(bundle / MODEL)
    (spec,), (output,) = session.inputs, session.outputs
    parity = ParityInputs([x], outputs, (output.name,), "the bundle's", 1e-5)
    tasks = {"onnx": Task(Candidate(bundle / MODEL, options), "onnx", parity)}
    transport = open_transport(Device("bench", "local", python=sys.executable))
    transport.connect()
    try:
        run = measure_on(
            transport, tasks, (replace_batch(spec),), axis="sequence", sizes=(3,), budget=BRIEF
        )
    finally:
        transport.close()
    result = run.results["onnx"]
    assert not result.failure
    assert not result.invalid
    assert result.parity.max_rel <= 1e-5
    notes = [note for note in run.notes if "kernel" in note]
    assert notes == ([] if case == "with" else [f"onnx ran without the one-pass kernel: {words}"])


def replace_batch(spec: TensorSpec) -> TensorSpec:
    return replace(spec, shape=("batch", "sequence", spec.shape[2]))


def test_the_report_names_the_library(made):
    assert IN_BUNDLE in (made.folder / "report.html").read_text()
    report = json.loads((made.folder / "report.json").read_text())
    by_name = {variant["name"]: variant for variant in report["variants"]}
    assert by_name["latency-first"]["session_options"] == {KERNELS: IN_BUNDLE}
    assert by_name["latency-first"]["form"].startswith(ONE_PASS.words)


@pytest.mark.skipif(why_not("aarch64") is not None, reason=str(why_not("aarch64")))
def test_a_bundle_for_a_board_brings_the_library_of_its_architecture(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "one_pass_nets", sys.modules[__name__])
    monkeypatch.setattr(
        devices.artifacts, "choose_form", lambda *_, precision: (ONE_PASS, "the tests")
    )
    options = replace(BRIEFLY, settings=(LATENCY_FIRST,), profile=False)
    done = deploy("one_pass_nets:factory", find_target("raspberry-pi"), tmp_path / "out", options)
    onnx = done.manifest["artifacts"][0]
    (path,) = (name for name in onnx["sha256"] if name.startswith("lib/"))
    assert path == onnx["session_options"][KERNELS] == "lib/aarch64/libweightspace_ort.so"
    machine = (done.folder / path).read_bytes()[18:20]  # ELF's e_machine
    assert int.from_bytes(machine, "little") == 183  # EM_AARCH64
