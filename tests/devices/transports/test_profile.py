"""A bundle is measured on a device that is reached by ssh, and its reports tell so."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import pytest

from devices.deploy import deploy, profile
from devices.device import Device
from devices.known import LOCAL
from devices.options import Options
from devices.report.json_form import read_json
from devices.target import find_target
from export.errors import DeviceError, UserError
from runtimes.bench import BRIEF
from tests.devices.jetson.standin import TRTEXEC

BRIEFLY = Options(settings=("latency-first",), sizes=(1,), budget=BRIEF)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("profile") / "pi"
    options = replace(BRIEFLY, profile=False, keep_naive=True)
    deploy("vit-pe-fmnist", find_target("raspberry-pi"), out, options)
    return out


@pytest.fixture
def bundle(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "a bundle; with 'a name'")


@pytest.fixture
def pi(known, ssh_server):
    return Device("kitchen-pi", ssh_server.address, python=sys.executable)


def test_every_artifact_computes_on_the_device_what_the_model_does(bundle, pi, ssh_server):
    done = profile(bundle, replace(BRIEFLY, devices=(LOCAL, pi)))
    assert [(run.device, run.kind) for run in done.report.runs] == [
        ("local", "measured"), ("kitchen-pi", "measured"),
    ]  # fmt: skip
    here, there = done.report.runs
    assert set(there.results) == {variant.id for variant in done.report.variants}
    assert set(there.results) == set(here.results)
    for variant in done.report.variants:
        result = there.results[variant.id]
        assert not result.failure
        assert result.latency_ms_by_size[1].runs >= BRIEF.runs
        assert result.memory.weights_resident_bytes > 0
        # As close to torch there as here, where the same files were checked by the export.
        assert result.parity.max_rel < 1e-5
        assert result.parity.top1_agreement == 1.0
        assert "kitchen-pi" in result.parity.reference
    assert read_json(bundle / "report.json").runs == done.report.runs
    manifest = json.loads((bundle / "manifest.json").read_text())
    devices = [entry["device"] for entry in manifest["profile"]]
    assert devices.count("local") == devices.count("kitchen-pi") == len(done.report.variants)
    assert not list(ssh_server.runs.glob("*"))


def test_what_was_measured_stays_where_the_next_device_fails(bundle, pi):
    absent = Device("attic-pi", "ssh://127.0.0.1:1")
    with pytest.raises(DeviceError, match="attic-pi"):
        profile(bundle, replace(BRIEFLY, devices=(pi, absent)))
    assert [run.device for run in read_json(bundle / "report.json").runs] == ["kitchen-pi"]


def test_an_export_whose_device_fails_still_writes_the_bundle(tmp_path):
    absent = Device("attic-pi", "ssh://127.0.0.1:1")
    options = replace(BRIEFLY, profile=False, devices=(absent,))
    out = tmp_path / "pi"
    with pytest.raises(DeviceError, match=r"attic-pi.*the bundle is written.*profile"):
        deploy("vit-pe-fmnist", find_target("raspberry-pi"), out, options)
    assert (out / "manifest.json").is_file()


def test_a_device_that_runs_nothing_of_the_bundle_is_refused_before_it_is_reached(bundle):
    mac = Device("studio", "mac://127.0.0.1:1")
    with pytest.raises(UserError, match=r"studio runs \.mlpackage files, and .* holds \.onnx and"):
        profile(bundle, replace(BRIEFLY, devices=(mac,)))


def test_an_unknown_host_is_one_line_with_its_remedy(cli, bundle, ssh_home, ssh_server):
    done = cli("profile", bundle, "--device", ssh_server.address)
    assert done.code == 1
    (line,) = done.error_lines
    assert "host key" in line
    assert read_json(bundle / "report.json").runs == ()


@pytest.fixture(scope="module")
def jetson_bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("profile") / "jetson"
    options = replace(BRIEFLY, profile=False, keep_naive=True)
    deploy("vit-pe-fmnist", find_target("jetson"), out, options)
    return out


@pytest.mark.parametrize(("version", "tells_weights"), [("10.3.0", False), ("11.0.0", True)])
def test_a_jetson_builds_its_own_engine_and_its_trtexec_is_read(
    jetson_bundle, tmp_path, pi, version, tells_weights
):
    program = tmp_path / "trtexec"
    program.write_text(f'#!/bin/sh\nRECORDED_TRTEXEC_VERSION={version} exec "{TRTEXEC}" "$@"\n')
    program.chmod(0o755)
    jetson = replace(pi, name="stand-in", trtexec=str(program))
    done = profile(jetson_bundle, replace(BRIEFLY, devices=(jetson,)))
    (run,) = [run for run in done.report.runs if run.device == "stand-in"]
    assert sorted(run.results) == ["tensorrt latency-first", "tensorrt naive"]
    for result in run.results.values():
        assert not result.failure
        # What was recorded with trtexec: nothing was measured here.
        assert result.latency_ms_by_size[1].min == 0.263008
    assert any("by its builder's count" in note for note in run.notes) is tells_weights


def test_a_jetson_without_trtexec_says_where_it_is_to_be_had(jetson_bundle, pi):
    jetson = replace(pi, name="bare", trtexec="no-such-trtexec")
    done = profile(jetson_bundle, replace(BRIEFLY, devices=(jetson,)))
    (run,) = [run for run in done.report.runs if run.device == "bare"]
    for result in run.results.values():
        assert "install TensorRT on the device" in result.failure
