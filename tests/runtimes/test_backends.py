from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from export.errors import BadFileError
from runtimes import BACKENDS, open_artifact

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


def test_there_is_a_backend_and_each_is_listed_under_its_format():
    assert {"onnx", "tflite"} <= BACKENDS.keys()
    assert all(backend.format == name for name, backend in BACKENDS.items())
    suffixes = [backend.suffix for backend in BACKENDS.values()]
    assert len(set(suffixes)) == len(suffixes)
    assert all(re.fullmatch(r"\.\w+", suffix) for suffix in suffixes)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_opens_sessions_in_the_common_way(name):
    module = importlib.import_module(BACKENDS[name].module)
    parameters = inspect.signature(module.open_session).parameters
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
    module = importlib.import_module(BACKENDS[name].module)
    path = module.warm_up_model(tmp_path)
    session = open_artifact(path)
    assert type(session) is type(module.open_session(path))
    assert path.suffix == BACKENDS[name].suffix
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
