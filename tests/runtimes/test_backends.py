from __future__ import annotations

import importlib
import inspect
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from devices.measure import Candidate, time_side_by_side
from export.errors import BadFileError, MeasureError
from runtimes import BACKENDS, Backend, backend_module, open_artifact, require_measurable
from runtimes.bench import QUICK
from runtimes.memory import measure_fresh

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


def test_there_is_a_backend_and_each_is_listed_under_its_format():
    assert {"onnx", "tflite", "mlpackage"} <= BACKENDS.keys()
    assert all(backend.format == name for name, backend in BACKENDS.items())
    suffixes = [backend.suffix for backend in BACKENDS.values()]
    assert len(set(suffixes)) == len(suffixes)
    assert all(re.fullmatch(r"(\.\w+)+", suffix) for suffix in suffixes)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_opens_sessions_in_the_common_way(name):
    for module in filter(None, (BACKENDS[name].module, BACKENDS[name].reference)):
        parameters = inspect.signature(importlib.import_module(module).open_session).parameters
        assert list(parameters) == ["path", "threads", "options", "optimize"]
        assert parameters["threads"].default == 1
        assert parameters["optimize"].default is True


@pytest.mark.parametrize("name", BACKENDS)
def test_the_extra_of_a_backend_installs_its_package(name):
    backend = BACKENDS[name]
    assert backend.extra in EXTRAS
    packages = [re.split(r"[^\w.-]", requirement)[0] for requirement in EXTRAS[backend.extra]]
    assert backend.package in packages
    assert backend.package == importlib.import_module(backend.module).NAME


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_brings_a_model_that_warms_its_runtime_up(name, tmp_path):
    module = backend_module(tmp_path / f"net{BACKENDS[name].suffix}")
    if not BACKENDS[name].measurable and not BACKENDS[name].reference:
        pytest.skip(f"{BACKENDS[name].runtime} needs {BACKENDS[name].needs}")
    path = module.warm_up_model(tmp_path)
    session = open_artifact(path)
    assert type(session) is type(module.open_session(path))
    assert BACKENDS[name].suffix.endswith(path.suffix)
    feeds = {spec.name: np.ones((64, 64), spec.dtype) for spec in session.inputs}
    assert all(np.isfinite(value).all() for value in session.run(feeds).values())


def test_the_suffix_of_a_file_chooses_its_runtime_in_any_case(tmp_path):
    path = tmp_path / "NET.ONNX"
    with pytest.raises(BadFileError, match=r"NET\.ONNX is not a file"):
        open_artifact(path)


@pytest.mark.parametrize("name", ["net.bin", "net", ".onnx", "net.onnx.data"])
def test_a_file_that_no_backend_runs_is_refused_with_those_that_are(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(BadFileError) as caught:
        open_artifact(path)
    suffixes = ", ".join(backend.suffix for backend in BACKENDS.values())
    assert str(caught.value) == (
        f"{path} is of no format that can be run here; these are: {suffixes}"
    )


# ---- a runtime that only some machines have ------------------------------------------------------


def only_where(here):
    return Backend("x", ".x", "runtimes.coreml", "coremltools", "coreml", "Core ML",
                   here=lambda: here, reference="runtimes.coreml_reference")  # fmt: skip


def test_a_reference_takes_the_place_of_a_runtime_that_is_not_here():
    here, elsewhere = only_where(True), only_where(False)
    assert (here.measurable, here.module_here) == (True, "runtimes.coreml")
    assert here.evaluated_by == "coremltools"
    assert (elsewhere.measurable, elsewhere.module_here) == (False, "runtimes.coreml_reference")
    assert elsewhere.evaluated_by == "reference evaluation of the saved program (not Core ML)"


def test_core_ml_is_here_on_macos_alone():
    assert BACKENDS["mlpackage"].measurable == (sys.platform == "darwin")


def test_an_engine_without_a_gpu_is_refused_with_what_it_needs(monkeypatch):
    elsewhere = replace(BACKENDS["engine"], here=lambda: False)
    monkeypatch.setitem(BACKENDS, "engine", elsewhere)
    assert elsewhere.module_here == "runtimes.trt"
    with pytest.raises(MeasureError) as caught:
        require_measurable(Path("net.engine"))
    assert str(caught.value) == (
        "net.engine cannot be measured on this system: TensorRT needs an NVIDIA GPU, its driver "
        "and a TensorRT package"
    )


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_a_runtime_of_any_system_names_its_package(name):
    assert BACKENDS[name].measurable
    assert BACKENDS[name].evaluated_by == BACKENDS[name].package
    require_measurable(Path(f"net{BACKENDS[name].suffix}"))


def test_nothing_is_measured_by_a_reference(monkeypatch, tmp_path):
    monkeypatch.setitem(BACKENDS, "mlpackage", replace(BACKENDS["mlpackage"], here=lambda: False))
    path = backend_module(Path("net.mlpackage")).warm_up_model(tmp_path)
    session = open_artifact(path)
    feeds = {spec.name: np.ones((64, 64), spec.dtype) for spec in session.inputs}
    words = r"^warm-up\.mlpackage cannot be measured on this system: .* \(not Core ML\)$"
    with pytest.raises(MeasureError, match=words):
        require_measurable(path)
    with pytest.raises(MeasureError, match=words):
        measure_fresh(path, feeds)
    with pytest.raises(MeasureError, match=words):
        time_side_by_side(
            {"one": Candidate(path)}, session.inputs, axis="batch", sizes=(1,), threads=1,
            budget=QUICK, on_step=print,
        )  # fmt: skip
